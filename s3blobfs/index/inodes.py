"""The table ``inodes``: everything about a file but its names and its bytes."""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from s3blobfs.errors import FilesystemError
from s3blobfs.index.transaction import Transaction, Value, one

ROOT_INODE_ID = 1
"""The root directory: the first inode of a volume, made by mkfs."""


class InodeRow(NamedTuple):
    """One row; the schema says what each column means. A tuple, since listings make very many."""

    id: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    target: bytes | None
    store_id: int | None
    object_id: str | None
    blob_id: int | None
    change: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the volume holds, for statfs."""

    inodes: int
    bytes: int
    """The sum of all sizes, orphans' included; contents stored once count for each file."""


class Unset(enum.Enum):
    """The type of :data:`UNSET`."""

    UNSET = enum.auto()


UNSET: Final = Unset.UNSET
"""Leave the column as it is (``None`` would be a value)."""

COLUMNS = (
    "inodes.id, inodes.mode, inodes.uid, inodes.gid, inodes.nlink, inodes.size_bytes,"
    " inodes.atime_ns, inodes.mtime_ns, inodes.ctime_ns, inodes.rdev, inodes.target,"
    " inodes.store_id, inodes.object_id, inodes.blob_id, inodes.change"
)
"""The fields of :class:`InodeRow`, in its order."""

_SELECT = f"SELECT {COLUMNS} FROM inodes"  # noqa: S608
_RETURNING = f" RETURNING {COLUMNS.replace('inodes.', '')}"
_TAKE_CHANGES = (
    "UPDATE inodes SET size_bytes = ?, mtime_ns = coalesce(?, mtime_ns),"  # noqa: S608
    " ctime_ns = max(ctime_ns, coalesce(?, ctime_ns)), atime_ns = coalesce(?, atime_ns), change = ?"
    " WHERE id = ?" + _RETURNING
)
_SET_BLOB = "UPDATE inodes SET blob_id = ?, change = ? WHERE id = ?" + _RETURNING  # noqa: S608
_ENTRY_CHANGED = "UPDATE inodes SET mtime_ns = ?, ctime_ns = ?, change = ? WHERE id = ?" + _RETURNING  # noqa: S608
_ADD_LINKS = "UPDATE inodes SET nlink = nlink + ?, ctime_ns = ?, change = ? WHERE id = ?" + _RETURNING  # noqa: S608


def insert(
    tx: Transaction,
    *,
    mode: int,
    uid: int,
    gid: int,
    nlink: int,
    now_ns: int,
    rdev: int = 0,
    target: bytes | None = None,
    store_id: int | None = None,
    object_id: str | None = None,
    size_bytes: int = 0,
) -> InodeRow:
    """Make an inode, all three times ``now_ns``; its names are the caller's to add.

    The size of a symbolic link (an inode with ``target``) is its target's length, whatever is given."""
    if target is not None:
        size_bytes = len(target)
    tx.modify(
        "INSERT INTO inodes (mode, uid, gid, nlink, size_bytes, atime_ns, mtime_ns, ctime_ns, rdev, target,"
        " store_id, object_id, change) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            mode, uid, gid, nlink, size_bytes, now_ns, now_ns, now_ns, rdev, target,
            store_id, object_id, tx.sequence,
        ),
    )  # fmt: skip
    return InodeRow(
        tx.last_id(), mode, uid, gid, nlink, size_bytes, now_ns, now_ns, now_ns, rdev, target,
        store_id, object_id, None, tx.sequence,
    )  # fmt: skip


def get(tx: Transaction, inode_id: int) -> InodeRow:
    """Raises :class:`FilesystemError` (ENOENT)."""
    return _existing(find(tx, inode_id), inode_id)


def find(tx: Transaction, inode_id: int) -> InodeRow | None:
    row = tx.execute(_SELECT + " WHERE id = ?", (inode_id,)).fetchone()
    return InodeRow(*row) if row is not None else None


def update(
    tx: Transaction,
    inode_id: int,
    *,
    mode: int | Unset = UNSET,
    uid: int | Unset = UNSET,
    gid: int | Unset = UNSET,
    size_bytes: int | Unset = UNSET,
    atime_ns: int | Unset = UNSET,
    mtime_ns: int | Unset = UNSET,
    ctime_ns: int | Unset = UNSET,
    store_id: int | Unset | None = UNSET,
    object_id: str | Unset | None = UNSET,
    blob_id: int | Unset | None = UNSET,
) -> InodeRow:
    """Set what is given, and ``change``. References of blobs are the caller's to count.

    Raises :class:`FilesystemError` (ENOENT)."""
    given: Mapping[str, Value | Unset] = {
        "mode": mode,
        "uid": uid,
        "gid": gid,
        "size_bytes": size_bytes,
        "atime_ns": atime_ns,
        "mtime_ns": mtime_ns,
        "ctime_ns": ctime_ns,
        "store_id": store_id,
        "object_id": object_id,
        "blob_id": blob_id,
    }
    # A statement for each combination in use, of which there are few: setting a column to itself would make
    # SQLite maintain its index and run its triggers.
    names: list[str] = ["change"]
    values: list[Value] = [tx.sequence]
    for name, value in given.items():
        if value is not UNSET:
            names.append(name)
            values.append(value)
    key = tuple(names)
    sql = _UPDATES.get(key)
    if sql is None:
        changes = ", ".join(f"{name} = ?" for name in names)
        sql = _UPDATES[key] = f"UPDATE inodes SET {changes} WHERE id = ?{_RETURNING}"  # noqa: S608
    return _existing(_row(one(tx.modify(sql, (*values, inode_id)))), inode_id)


_UPDATES: dict[tuple[str, ...], str] = {}


def take_changes(
    tx: Transaction,
    inode_id: int,
    size_bytes: int,
    *,
    mtime_ns: int | None,
    ctime_ns: int | None,
    atime_ns: int | None,
) -> InodeRow:
    """Set the size, and the times that are given; ctime never goes back. Raises :class:`FilesystemError`
    (ENOENT)."""
    row = one(tx.modify(_TAKE_CHANGES, (size_bytes, mtime_ns, ctime_ns, atime_ns, tx.sequence, inode_id)))
    return _existing(_row(row), inode_id)


def set_blob(tx: Transaction, inode_id: int, blob_id: int) -> InodeRow:
    """References of blobs are the caller's to count. Raises :class:`FilesystemError` (ENOENT)."""
    return _existing(_row(one(tx.modify(_SET_BLOB, (blob_id, tx.sequence, inode_id)))), inode_id)


def entry_changed(tx: Transaction, directory_id: int, now_ns: int) -> InodeRow:
    """A name came to a directory, or went. Raises :class:`FilesystemError` (ENOENT)."""
    row = one(tx.modify(_ENTRY_CHANGED, (now_ns, now_ns, tx.sequence, directory_id)))
    return _existing(_row(row), directory_id)


def add_links(tx: Transaction, inode_id: int, delta: int, ctime_ns: int) -> InodeRow:
    """Raises :class:`FilesystemError` (ENOENT)."""
    row = one(tx.modify(_ADD_LINKS, (delta, ctime_ns, tx.sequence, inode_id)))
    return _existing(_row(row), inode_id)


def remove(tx: Transaction, inode_id: int) -> None:
    """Remove the inode with its extended attributes and binding. Its names, its journal rows and its
    reference to a blob must be gone. Raises :class:`FilesystemError` (ENOENT)."""
    tx.modify("DELETE FROM inodes WHERE id = ?", (inode_id,))
    if not tx.changes():
        raise FilesystemError(errno.ENOENT, f"inode {inode_id}")


def orphans(tx: Transaction) -> list[InodeRow]:
    """Inodes without a name: open when the volume was last unmounted, or open now."""
    return [InodeRow(*row) for row in tx.execute(_SELECT + " WHERE nlink = 0 ORDER BY id")]


def find_with_blob(tx: Transaction, blob_id: int) -> InodeRow | None:
    """The oldest file that has the content."""
    row = tx.execute(_SELECT + " WHERE blob_id = ? ORDER BY id LIMIT 1", (blob_id,)).fetchone()
    return InodeRow(*row) if row is not None else None


def with_blob(tx: Transaction, blob_id: int) -> list[InodeRow]:
    """Every file that has the content, the oldest first."""
    return [InodeRow(*row) for row in tx.execute(_SELECT + " WHERE blob_id = ? ORDER BY id", (blob_id,))]


def find_with_object_id(tx: Transaction, store_id: int, object_id: str) -> InodeRow | None:
    """The file that has a name and this key for life. Reads all inodes."""
    row = tx.execute(
        _SELECT + " WHERE store_id = ? AND object_id = ? AND nlink > 0 ORDER BY id LIMIT 1",
        (store_id, object_id),
    ).fetchone()
    return InodeRow(*row) if row is not None else None


def usage(tx: Transaction) -> Usage:
    """In constant time."""
    ((inodes, high, low),) = tx.execute("SELECT inodes, bytes_high, bytes_low FROM counters")
    return Usage(inodes, (high << 32) + low)


def _row(values: Any | None) -> InodeRow | None:
    return InodeRow(*values) if values is not None else None


def _existing(row: InodeRow | None, inode_id: int) -> InodeRow:
    if row is None:
        raise FilesystemError(errno.ENOENT, f"inode {inode_id}")
    return row
