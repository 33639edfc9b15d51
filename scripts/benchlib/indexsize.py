"""What an index takes on the disk, table by table."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import trio

from benchlib.filling import file_name
from s3blobfs.index import blobs, dentries, inodes, stores
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from s3blobfs.types import BlobLocation, ContentDigests, DigestAlgorithm, Keying, StoredContent

SAMPLE_FILES = 50_000
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class IndexSize:
    """Of one index."""

    files: int
    """Rows by which it is divided: inodes with their names."""
    total_bytes: int
    tables: Mapping[str, int]
    """Bytes of tables and their indexes, by name."""

    def of(self, *tables: str) -> float:
        """Bytes for one file in these tables, with their indexes."""
        return sum(self.tables[table] for table in tables) / self.files


def index_size(path: Path, files: int) -> IndexSize:
    """Of an index that nobody has open."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        # Each index counts for its table (https://sqlite.org/dbstat.html).
        rows: list[Any] = connection.execute(
            "SELECT tbl_name, sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name) GROUP BY tbl_name"
        ).fetchall()
    finally:
        connection.close()
    return IndexSize(files, path.stat().st_size, dict(rows))


def size_with_contents(path: Path, files: int = SAMPLE_FILES) -> IndexSize:
    """Of a new index in which each file has a content of its own, of one block, in a digest store; they are
    made one by one, as uploads make them."""
    trio.run(_make_contents, path, files)
    return index_size(path, files)


async def _make_contents(path: Path, files: int) -> None:
    db = Database.create(path, tracer=Tracer())
    try:
        await db.write(_make_volume)
        for first in range(0, files, _BATCH):
            numbers = range(first, min(files, first + _BATCH))
            await db.write(lambda tx: _make_files(tx, numbers))  # noqa: B023
        await db.commit()
    finally:
        await db.aclose()


def _make_volume(tx: Transaction) -> None:
    inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, nlink=2, now_ns=1)
    stores.insert(
        tx,
        name="default",
        bucket="bucket",
        prefix="",
        keying=Keying.DIGEST,
        digest_algorithm=DigestAlgorithm.MD5,
        cached=True,
        conditional_put=True,
    )


def _make_files(tx: Transaction, numbers: range) -> None:
    for number in numbers:
        name = file_name(number).encode()
        row = inodes.insert(
            tx,
            mode=stat.S_IFREG | 0o644,
            uid=0,
            gid=0,
            nlink=1,
            now_ns=1_700_000_000_123_456_789,
            store_id=stores.DEFAULT_STORE_ID,
        )
        dentries.insert(tx, ROOT_INODE_ID, name, row.id)
        digests = ContentDigests(
            len(name), hashlib.md5(name).digest(), hashlib.sha256(name).digest(), b"\0" * 4
        )
        key = digests.md5.hex()
        stored = StoredContent(BlobLocation(key, None, key), f'"{key}"', existed=False)
        blob = blobs.adopt(tx, stores.DEFAULT_STORE_ID, stored, digests, 1_700_000_000_123_456_789)
        inodes.update(tx, row.id, size_bytes=len(name), blob_id=blob.id)
