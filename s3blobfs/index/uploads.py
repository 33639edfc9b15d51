"""The table ``uploads``: the journal of what is staged on the local disk and not yet in S3."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from s3blobfs.index.transaction import Transaction, one
from s3blobfs.types import ContentDigests


class UploadState(enum.Enum):
    SEALED = "sealed"
    """Closed: the staged file is final and its digests are known."""
    DIRTY = "dirty"
    """Synced to disk while still open for writing: the digests are not known."""


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One row; the schema says what each column means."""

    id: int
    inode_id: int
    store_id: int
    staged_name: str
    size_bytes: int
    digests: ContentDigests | None
    """``None`` exactly when DIRTY."""
    write_id: str
    state: UploadState
    created_ns: int
    attempts: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits for its upload."""

    files: int
    bytes: int
    oldest_ns: int | None
    """When the one that waits longest was staged."""


_COLUMNS = (
    "id, inode_id, store_id, staged_name, size_bytes, write_id, state, created_ns, attempts, last_error,"
    " md5, sha256, checksums"
)
_SELECT = f"SELECT {_COLUMNS} FROM uploads"  # noqa: S608
_DELETE = "DELETE FROM uploads"
_RETURNING = f" RETURNING {_COLUMNS}"


def insert(
    tx: Transaction,
    *,
    inode_id: int,
    store_id: int,
    staged_name: str,
    size_bytes: int,
    digests: ContentDigests | None,
    write_id: str,
    state: UploadState,
    now_ns: int,
) -> UploadRow:
    """Add a row; earlier ones of the inode stay until :func:`supersede`. ``digests`` belong to SEALED
    alone."""
    tx.modify(
        f"INSERT INTO uploads ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 0, NULL, ?, ?, ?)",  # noqa: S608
        (
            inode_id,
            store_id,
            staged_name,
            size_bytes,
            write_id,
            state.value,
            now_ns,
            digests.md5 if digests is not None else None,
            digests.sha256 if digests is not None else None,
            digests.checksums if digests is not None else None,
        ),
    )
    return UploadRow(
        tx.last_id(), inode_id, store_id, staged_name, size_bytes, digests, write_id, state, now_ns, 0, None
    )


def find(tx: Transaction, upload_id: int) -> UploadRow | None:
    return _found(tx.execute(_SELECT + " WHERE id = ?", (upload_id,)).fetchone())


def get(tx: Transaction, upload_id: int) -> UploadRow:
    """Raises :class:`KeyError` for a row that was finished or superseded."""
    row = find(tx, upload_id)
    if row is None:
        raise KeyError(upload_id)
    return row


def latest_of(tx: Transaction, inode_id: int) -> UploadRow | None:
    """The row that holds the inode's current content."""
    return _found(
        tx.execute(_SELECT + " WHERE inode_id = ? ORDER BY id DESC LIMIT 1", (inode_id,)).fetchone()
    )


def of_inode(tx: Transaction, inode_id: int) -> list[UploadRow]:
    """The rows of one file, in the order in which they were staged."""
    return [_row(row) for row in tx.execute(_SELECT + " WHERE inode_id = ? ORDER BY id", (inode_id,))]


def every(tx: Transaction) -> list[UploadRow]:
    """In the order in which they were staged."""
    return [_row(row) for row in tx.execute(_SELECT + " ORDER BY id")]


def supersede(tx: Transaction, inode_id: int) -> list[UploadRow]:
    """Remove and return all rows of the inode, in the order in which they were staged: a newer content takes
    their place, or the file is gone. Their staged files are the caller's to remove, after the commit."""
    rows = tx.modify(_DELETE + " WHERE inode_id = ?" + _RETURNING, (inode_id,)).fetchall()
    return sorted((_row(row) for row in rows), key=lambda row: row.id)


def finish(tx: Transaction, upload_id: int) -> UploadRow | None:
    """Remove and return the row, its content being in S3; ``None`` when it was superseded meanwhile."""
    return _found(one(tx.modify(_DELETE + " WHERE id = ?" + _RETURNING, (upload_id,))))


def failed(tx: Transaction, upload_id: int, error: str) -> None:
    """Note that an attempt failed; nothing happens to a row that was superseded meanwhile."""
    tx.modify("UPDATE uploads SET attempts = attempts + 1, last_error = ? WHERE id = ?", (error, upload_id))


def pending(tx: Transaction) -> Pending:
    ((files, size_bytes, oldest_ns),) = tx.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0), min(created_ns) FROM uploads"
    )
    return Pending(files, size_bytes, oldest_ns)


def _found(row: Any | None) -> UploadRow | None:
    return _row(row) if row is not None else None


def _row(row: Any) -> UploadRow:
    return UploadRow(
        id=row[0],
        inode_id=row[1],
        store_id=row[2],
        staged_name=row[3],
        size_bytes=row[4],
        digests=ContentDigests(row[4], row[10], row[11], row[12]) if row[10] is not None else None,
        write_id=row[5],
        state=UploadState(row[6]),
        created_ns=row[7],
        attempts=row[8],
        last_error=row[9],
    )
