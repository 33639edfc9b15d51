"""What the index knows of objects in a bucket: which it names, and which are on their way to being named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from s3blobfs.index import blobs
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.transaction import Transaction

Key = tuple[int, str]
"""Store id and object key."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What the journal says is on its way to S3."""

    write_ids: frozenset[str]
    names: frozenset[tuple[int, str]]
    """Store id and what the object's key may be, without the store's prefix."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """An earlier version of a file."""

    id: int
    store_id: int
    object_key: str
    size_bytes: int
    unreferenced_ns: int


def rows_of(tx: Transaction, keys: Iterable[Key]) -> dict[Key, list[BlobRow]]:
    """The blobs under each key, the oldest version first; a key without any is left out."""
    return {key: rows for key in keys if (rows := blobs.history(tx, *key))}


def journal(tx: Transaction) -> Journal:
    rows: list[Any] = tx.execute(
        "SELECT write_id, uploads.store_id, object_id, md5, sha256"
        " FROM uploads LEFT JOIN inodes ON inodes.id = inode_id"
    ).fetchall()
    names = {
        (store_id, name)
        for _, store_id, object_id, md5, sha256 in rows
        for name in (
            object_id,
            *((md5.hex(), sha256.hex()) if md5 is not None else ()),
            *((f"{md5.hex()}-{sha256.hex()}", f"{sha256.hex()}-{md5.hex()}") if md5 is not None else ()),
        )
        if name is not None
    }
    return Journal(frozenset(row[0] for row in rows), frozenset(names))


def superseded(tx: Transaction, after: tuple[int, str, int] | None, limit: int) -> list[Superseded]:
    """Earlier versions, file by file and the newest of each first, that come after a place in that order:
    store id, key and id of the last one seen."""
    store_id, key, blob_id = after or (0, "", 0)
    rows: list[Any] = tx.execute(
        "SELECT id, store_id, object_key, size_bytes, unreferenced_ns FROM blobs"
        " WHERE state = 'superseded' AND (store_id, object_key) >= (?, ?)"
        " AND ((store_id, object_key) <> (?, ?) OR id < ?)"
        " ORDER BY store_id, object_key, id DESC LIMIT ?",
        (store_id, key, store_id, key, blob_id, limit),
    ).fetchall()
    return [Superseded(*row) for row in rows]


def mark_superseded(tx: Transaction, blob_ids: Iterable[int]) -> int:
    """Mark as DELETING those that are still SUPERSEDED; answers how many. Their objects are the reaper's."""
    marked = 0
    for blob_id in blob_ids:
        tx.modify("UPDATE blobs SET state = 'deleting' WHERE id = ? AND state = 'superseded'", (blob_id,))
        marked += tx.changes()
    return marked


def garbage(tx: Transaction, before_ns: int) -> tuple[int, int]:
    """Blobs that are the reaper's to delete now (marked, or GARBAGE since ``before_ns``): how many, and
    their bytes."""
    row: Any = tx.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM blobs"
        " WHERE state = 'deleting' OR (state = 'garbage' AND unreferenced_ns <= ?)",
        (before_ns,),
    ).fetchone()
    return row[0], row[1]
