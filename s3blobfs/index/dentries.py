"""The table ``dentries``: names, and what can be said about the tree they make."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import apsw

from s3blobfs.config import NAME_MAX_BYTES
from s3blobfs.errors import FilesystemError
from s3blobfs.index import inodes
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction, extended_result


@dataclass(frozen=True, slots=True)
class DentryRow:
    """A name in a directory that is known from the context."""

    cookie: int
    """Where a listing goes on after this entry."""
    name: bytes
    inode_id: int


_JOINED = "FROM dentries CROSS JOIN inodes ON inodes.id = dentries.inode_id"
# CROSS JOIN fixes the order of the loops, INDEXED BY the index: the planner must not have second thoughts
# about a listing when the statistics change.
_LOOKUP = f"SELECT {inodes.COLUMNS} {_JOINED} WHERE parent_id = ? AND name = ?"
_PAGE = (
    "SELECT cookie + ?, name, id, mode, nlink, uid, gid, rdev, size_bytes,"
    " CASE WHEN mode & 0xf000 = 0x8000 THEN size_bytes / 512 + (size_bytes % 512 > 0) ELSE 0 END,"
    " atime_ns, mtime_ns, ctime_ns"
    " FROM dentries INDEXED BY dentries_in_order CROSS JOIN inodes ON inodes.id = dentries.inode_id"
    " WHERE parent_id = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)

Listed = tuple[int, bytes, int, int, int, int, int, int, int, int, int, int, int]
"""An entry of a listing: cookie, name, and what stat(2) says of the inode: id, mode, nlink, uid, gid, rdev,
size, blocks of 512 bytes (of a regular file; else 0), atime, mtime, ctime. The bare row: a record made of it
would take longer than to read it."""


def find(tx: Transaction, parent: int, name: bytes) -> int | None:
    """The id of the inode that has the name."""
    row = tx.execute(
        "SELECT inode_id FROM dentries WHERE parent_id = ? AND name = ?", (parent, name)
    ).fetchone()
    return row[0] if row is not None else None


def lookup(tx: Transaction, parent: int, name: bytes) -> InodeRow | None:
    """The inode that has the name."""
    row = tx.execute(_LOOKUP, (parent, name)).fetchone()
    return InodeRow(*row) if row is not None else None


def insert(tx: Transaction, parent: int, name: bytes, inode_id: int) -> DentryRow:
    """Add a name; ``nlink`` is the caller's to count.

    Raises :class:`FilesystemError`: EEXIST for a name that is taken, ENAMETOOLONG or EINVAL for one that
    cannot be, ENOENT where the directory or the inode does not exist."""
    with _refusals(name):
        tx.modify(
            "INSERT INTO dentries (parent_id, name, inode_id) VALUES (?, ?, ?)", (parent, name, inode_id)
        )
    return DentryRow(tx.last_id(), name, inode_id)


def remove(tx: Transaction, parent: int, name: bytes) -> None:
    """Raises :class:`FilesystemError` (ENOENT)."""
    tx.modify("DELETE FROM dentries WHERE parent_id = ? AND name = ?", (parent, name))
    _must_have_changed(tx, name)


def retarget(tx: Transaction, parent: int, name: bytes, inode_id: int) -> None:
    """Let the name stand for another inode, in its place. Raises :class:`FilesystemError` (ENOENT)."""
    with _refusals(name):
        tx.modify(
            "UPDATE dentries SET inode_id = ? WHERE parent_id = ? AND name = ?", (inode_id, parent, name)
        )
    _must_have_changed(tx, name)


def move(tx: Transaction, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
    """Rename; the entry keeps its cookie. The new name must be free.

    Raises :class:`FilesystemError` as :func:`insert` does, ENOENT too where the old name is missing."""
    with _refusals(new_name):
        tx.modify(
            "UPDATE dentries SET parent_id = ?, name = ? WHERE parent_id = ? AND name = ?",
            (new_parent, new_name, parent, name),
        )
    _must_have_changed(tx, name)


def page(tx: Transaction, parent: int, after_cookie: int, limit: int, shift: int = 0) -> list[Listed]:
    """Up to ``limit`` entries whose cookies are greater than ``after_cookie`` (0: from the start), in the
    order of cookies: what was there all the time is listed exactly once, whatever comes and goes. The cookies
    that are answered are greater by ``shift``."""
    rows: list[Any] = tx.execute(_PAGE, (shift, parent, after_cookie, limit)).fetchall()
    return rows


def is_empty(tx: Transaction, parent: int) -> bool:
    return tx.execute("SELECT 1 FROM dentries WHERE parent_id = ? LIMIT 1", (parent,)).fetchone() is None


def parent_of(tx: Transaction, inode_id: int) -> int | None:
    """The directory that a directory is in; ``None`` for the root and for one that was removed."""
    row = tx.execute("SELECT parent_id FROM dentries WHERE inode_id = ? LIMIT 1", (inode_id,)).fetchone()
    return row[0] if row is not None else None


def names_of(tx: Transaction, inode_id: int) -> list[tuple[int, bytes]]:
    """Every ``(parent, name)`` of an inode, the oldest first."""
    rows = tx.execute("SELECT parent_id, name FROM dentries WHERE inode_id = ? ORDER BY cookie", (inode_id,))
    return [(parent, name) for parent, name in rows]


def place_of(tx: Transaction, inode_id: int) -> tuple[int, int] | None:
    """``(parent, cookie)`` of an inode's oldest name; ``None`` without any."""
    row = tx.execute(
        "SELECT parent_id, cookie FROM dentries WHERE inode_id = ? ORDER BY cookie LIMIT 1", (inode_id,)
    ).fetchone()
    return None if row is None else (row[0], row[1])


def path_of(tx: Transaction, inode_id: int) -> bytes | None:
    """One path of the inode from the root, without a leading slash (of the root: empty); ``None`` when no
    name leads to it."""
    parts: list[bytes] = []
    passed = set()
    while inode_id != ROOT_INODE_ID:
        row = tx.execute(
            "SELECT parent_id, name FROM dentries WHERE inode_id = ? ORDER BY cookie LIMIT 1", (inode_id,)
        ).fetchone()
        # A directory met twice is a cycle, which only a damaged index has.
        if row is None or inode_id in passed:
            return None
        passed.add(inode_id)
        inode_id = row[0]
        parts.append(row[1])
    return b"/".join(reversed(parts))


def is_ancestor(tx: Transaction, ancestor: int, inode_id: int) -> bool:
    """Whether a directory is ``ancestor`` or lies somewhere below it."""
    row = tx.execute(
        "WITH RECURSIVE upwards (id) AS ("
        " VALUES (?) UNION"  # not UNION ALL: must end in a damaged index with a cycle, too
        " SELECT dentries.parent_id FROM upwards JOIN dentries ON dentries.inode_id = upwards.id"
        ") SELECT 1 FROM upwards WHERE id = ?",
        (inode_id, ancestor),
    ).fetchone()
    return row is not None


@contextmanager
def _refusals(name: bytes) -> Iterator[None]:
    """What the table's constraints refuse, as the errno of it."""
    try:
        yield
    except apsw.ConstraintError as error:
        code = {
            apsw.SQLITE_CONSTRAINT_UNIQUE: errno.EEXIST,
            apsw.SQLITE_CONSTRAINT_FOREIGNKEY: errno.ENOENT,
        }.get(extended_result(error), errno.ENAMETOOLONG if len(name) > NAME_MAX_BYTES else errno.EINVAL)
        raise FilesystemError(code, repr(name)) from error


def _must_have_changed(tx: Transaction, name: bytes) -> None:
    if not tx.changes():
        raise FilesystemError(errno.ENOENT, repr(name))
