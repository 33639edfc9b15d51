"""The tables ``scrubs`` and ``damages``: how far the comparison of blobs with S3 is, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s3blobfs.index import dentries
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.transaction import Transaction


@dataclass(frozen=True, slots=True)
class ScrubRow:
    """One row; the schema says what each column means."""

    depth: str
    started_ns: int
    ended_ns: int | None
    cursor: int
    last_id: int
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DamageRow:
    """One row of the log."""

    id: int
    blob_id: int
    store_id: int
    object_key: str
    version_id: str | None
    kind: str
    detail: str
    found_ns: int


def find(tx: Transaction) -> ScrubRow | None:
    """The one under way, or the last one."""
    row = tx.execute(
        "SELECT depth, started_ns, ended_ns, cursor, last_id, blobs, bytes FROM scrubs"
    ).fetchone()
    return ScrubRow(*row) if row is not None else None


def begin(tx: Transaction, depth: str, now_ns: int) -> ScrubRow:
    """Begin anew, with the blobs there are now."""
    ((last_id,),) = tx.execute("SELECT coalesce(max(id), 0) FROM blobs")
    tx.modify("INSERT OR REPLACE INTO scrubs VALUES (1, ?, ?, NULL, 0, ?, 0, 0)", (depth, now_ns, last_id))
    return ScrubRow(depth, now_ns, None, 0, last_id, 0, 0)


def advance(tx: Transaction, cursor: int, blobs_more: int, bytes_more: int) -> None:
    tx.modify(
        "UPDATE scrubs SET cursor = ?, blobs = blobs + ?, bytes = bytes + ?",
        (cursor, blobs_more, bytes_more),
    )


def finish(tx: Transaction, now_ns: int) -> None:
    tx.modify("UPDATE scrubs SET ended_ns = ?", (now_ns,))


# --- damage --------------------------------------------------------------------------------------------


def note_damage(tx: Transaction, row: BlobRow, kind: str, detail: str, now_ns: int) -> None:
    """Add to the log; what is known of the blob already is brought up to date."""
    location = row.location
    tx.modify(
        "INSERT INTO damages (blob_id, store_id, object_key, version_id, kind, detail, found_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (blob_id) WHERE closed_ns IS NULL DO UPDATE SET kind = excluded.kind,"
        "  detail = excluded.detail",
        (row.id, row.store_id, location.object_key, location.version_id or "", kind, detail, now_ns),
    )


def is_open(tx: Transaction, blob_id: int) -> bool:
    """Whether the blob's object is known to be damaged."""
    return (
        tx.execute("SELECT 1 FROM damages WHERE blob_id = ? AND closed_ns IS NULL", (blob_id,)).fetchone()
        is not None
    )


def close_damage(tx: Transaction, blob_id: int, outcome: str, now_ns: int) -> bool:
    """The blob's object is well; whether it was known not to be."""
    tx.modify(
        "UPDATE damages SET closed_ns = ?, outcome = ? WHERE blob_id = ? AND closed_ns IS NULL",
        (now_ns, outcome, blob_id),
    )
    return tx.changes() > 0


def close_gone(tx: Transaction, now_ns: int) -> None:
    """Damage to contents that nobody wants any more is over."""
    tx.modify(
        "UPDATE damages SET closed_ns = ?, outcome = 'unwanted' WHERE closed_ns IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM blobs WHERE blobs.id = blob_id AND state IN ('live', 'superseded'))",
        (now_ns,),
    )


def count_open(tx: Transaction) -> int:
    ((count,),) = tx.execute("SELECT count(*) FROM damages WHERE closed_ns IS NULL")
    return count  # type: ignore[no-any-return]


def open_damages(tx: Transaction, limit: int, after_id: int = 0) -> list[DamageRow]:
    """What is damaged now, in the order in which it was found, from behind a row of the log."""
    rows: list[Any] = tx.execute(
        "SELECT id, blob_id, store_id, object_key, version_id, kind, detail, found_ns FROM damages"
        " WHERE closed_ns IS NULL AND id > ? ORDER BY id LIMIT ?",
        (after_id, limit),
    ).fetchall()
    return [DamageRow(row[0], row[1], row[2], row[3], row[4] or None, *row[5:]) for row in rows]


def paths_of(tx: Transaction, blob_id: int, limit: int) -> tuple[list[bytes], int]:
    """Paths of files that have the content, at most ``limit``; and how many files have it."""
    rows: list[Any] = tx.execute(
        "SELECT id FROM inodes WHERE blob_id = ? ORDER BY id LIMIT ?", (blob_id, limit)
    ).fetchall()
    paths = [path for (inode_id,) in rows if (path := dentries.path_of(tx, inode_id)) is not None]
    ((count,),) = tx.execute("SELECT count(*) FROM inodes WHERE blob_id = ?", (blob_id,))
    return paths, count
