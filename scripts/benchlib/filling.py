"""Very many names, made straight in the index of a volume that nobody has mounted.

Rows go through the package's own database and schema, its triggers and foreign keys included, so that its
check finds nothing; only the statements are made for many rows at a time, which is some tens of times as fast
as one create after another. All files share the few contents that the volume has already.

Names are scattered, so that each lands somewhere else in the index of names, as those of real files do: rows
in order would fill its pages better than they ever are.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.index import dentries, inodes, stores
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer

BRANCHING = 100
"""Entries of each directory of the tree."""
DIRECTORY = "directory"
TREE = "tree"
_SCATTER = 2654435761
"""Odd, so that multiplying by it modulo 2^32 makes no two numbers equal (Knuth, The Art of Computer
Programming, volume 3, section 6.4)."""
_NUMBERS = 2**32
_BATCH = 20_000
"""Rows in one transaction."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is in a volume."""

    files: int
    """In the one directory."""
    inodes: int
    """Of the tree, its top included: node 0. Node ``n`` is an entry of node ``(n - 1) // BRANCHING``."""

    @property
    def directories(self) -> int:
        """Nodes of the tree below this number are directories, the others files."""
        return -(-(self.inodes - 1) // BRANCHING)


def file_name(number: int) -> str:
    """Of an entry of the directory, or a node of the tree."""
    return f"file-{number * _SCATTER % _NUMBERS:08x}"


def parent_of(number: int) -> int:
    """The node of which a node is an entry."""
    return (number - 1) // BRANCHING


def node_path(number: int) -> str:
    """Of a node of the tree, relative to the volume's root."""
    parts = []
    while number > 0:
        parts.append(file_name(number))
        number = parent_of(number)
    return "/".join([TREE, *reversed(parts)])


def fill(index: Path, sizes: Sizes, progress: Callable[[int], None]) -> None:
    """Add the directory and the tree to an index that has contents; ``progress`` hears of inodes made."""
    trio.run(_fill, index, sizes, progress)


async def _fill(index: Path, sizes: Sizes, progress: Callable[[int], None]) -> None:
    db = Database.open(index, tracer=Tracer())
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)  # keeps the log short
            await _Filling(db, sizes, progress).run()
            nursery.cancel_scope.cancel()
    finally:
        await db.aclose()


class _Filling:
    def __init__(self, db: Database, sizes: Sizes, progress: Callable[[int], None]) -> None:
        self._db = db
        self._sizes = sizes
        self._progress = progress
        self._now_ns = time.time_ns()
        self._made = 0

    async def run(self) -> None:
        files, nodes, directories = self._sizes.files, self._sizes.inodes, self._sizes.directories
        parent = await self._db.write(lambda tx: self._top(tx, DIRECTORY, 0))
        await self._in_batches(0, files, lambda tx, numbers: self._files(tx, parent, numbers))
        top = await self._db.write(lambda tx: self._top(tx, TREE, min(directories - 1, BRANCHING)))
        await self._in_batches(
            1, directories, lambda tx, numbers: self._nodes(tx, top, numbers, _DIRECTORIES)
        )
        await self._in_batches(directories, nodes, lambda tx, numbers: self._nodes(tx, top, numbers, _FILES))
        await self._db.write(lambda tx: tx.modify(_COUNT_REFERENCES), durable=True)

    async def _in_batches(self, begin: int, end: int, make: Callable[[Transaction, range], None]) -> None:
        for first in range(begin, end, _BATCH):
            numbers = range(first, min(end, first + _BATCH))
            await self._db.write(lambda tx: make(tx, numbers))  # noqa: B023
            await self._db.flush()
            self._made += len(numbers)
            self._progress(self._made)
            await trio.lowlevel.checkpoint()  # the log is emptied meanwhile

    def _top(self, tx: Transaction, name: str, subdirectories: int) -> int:
        mode, links = stat.S_IFDIR | 0o755, 2 + subdirectories
        uid, gid = os.geteuid(), os.getegid()
        row = inodes.insert(tx, mode=mode, uid=uid, gid=gid, nlink=links, now_ns=self._now_ns)
        dentries.insert(tx, ROOT_INODE_ID, name.encode(), row.id)
        inodes.add_links(tx, ROOT_INODE_ID, 1, self._now_ns)
        return row.id

    def _files(self, tx: Transaction, parent: int, numbers: range) -> None:
        """Entry ``i`` has the inode ``parent + 1 + i``."""
        self._inodes(tx, parent + 1, numbers, _FILES)
        tx.modify(_INSERT_FILES, (*_ends(numbers), parent))

    def _nodes(self, tx: Transaction, top: int, numbers: range, sql: str) -> None:
        """Node ``i`` has the inode ``top + i``."""
        self._inodes(tx, top, numbers, sql)
        tx.modify(_INSERT_NODES, (*_ends(numbers), top))

    def _inodes(self, tx: Transaction, base: int, numbers: range, sql: str) -> None:
        parameters = (*_ends(numbers), base, os.geteuid(), os.getegid(), self._now_ns, tx.sequence)
        if sql is _DIRECTORIES:
            tx.modify(sql, (*parameters, self._sizes.directories))
        else:
            first_blob, blobs = self._shared(tx)
            tx.modify(sql, (*parameters, stores.DEFAULT_STORE_ID, first_blob, blobs))

    def _shared(self, tx: Transaction) -> tuple[int, int]:
        """The blobs that files refer to in turn: the first one's id, and how many follow one another."""
        ((first, last, count),) = tx.execute("SELECT min(id), max(id), count(*) FROM blobs")
        if not count or last - first + 1 != count:
            raise ValueError("the volume has no contents that were stored one after another")
        return first, count


def _ends(numbers: range) -> tuple[int, int]:
    return numbers.start, numbers.stop - 1


_NUMBERED = "WITH RECURSIVE n (i) AS (VALUES (?1) UNION ALL SELECT i + 1 FROM n WHERE i < ?2)"
_INODES = (
    f"{_NUMBERED} INSERT INTO inodes (id, mode, uid, gid, nlink, size_bytes, atime_ns, mtime_ns, ctime_ns,"
    " rdev, change, store_id, blob_id) SELECT i + ?3, %s FROM n"
)
_LINKS = f"2 + max(0, min({BRANCHING}, ?8 - {BRANCHING} * i - 1))"
_DIRECTORIES = _INODES % f"{stat.S_IFDIR | 0o755}, ?4, ?5, {_LINKS}, 0, ?6, ?6, ?6, 0, ?7, NULL, NULL"
_FILES = _INODES % (
    f"{stat.S_IFREG | 0o644}, ?4, ?5, 1, (SELECT size_bytes FROM blobs WHERE id = ?9 + i % ?10),"
    " ?6, ?6, ?6, 0, ?7, ?8, ?9 + i % ?10"
)
_NAME = f"CAST(printf('file-%08x', i * {_SCATTER} % {_NUMBERS}) AS BLOB)"
_INSERT_FILES = (
    f"{_NUMBERED} INSERT INTO dentries (parent_id, name, inode_id) SELECT ?3, {_NAME}, ?3 + 1 + i FROM n"
)
_INSERT_NODES = (
    f"{_NUMBERED} INSERT INTO dentries (parent_id, name, inode_id)"
    f" SELECT ?3 + (i - 1) / {BRANCHING}, {_NAME}, ?3 + i FROM n"
)
_COUNT_REFERENCES = "UPDATE blobs SET refs = (SELECT count(*) FROM inodes WHERE blob_id = blobs.id)"
