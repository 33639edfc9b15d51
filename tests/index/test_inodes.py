"""Inodes: values come back as they went in, ids and counters behave."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.errors import FilesystemError
from s3blobfs.index import dentries, inodes, schema, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow, Usage
from s3blobfs.index.transaction import Transaction
from tests.index.volume import DIGEST_STORE, NOW, ROOT, VERSIONED_STORE, add_file, adopt

LARGEST = 2**63 - 1


async def test_what_was_inserted_is_found(db: Database) -> None:
    def write(tx: Transaction) -> InodeRow:
        row = inodes.insert(
            tx,
            mode=stat.S_IFREG | 0o4755,
            uid=2**32 - 2,
            gid=7,
            nlink=1,
            now_ns=NOW,
            store_id=VERSIONED_STORE,
            object_id="id1",
        )
        dentries.insert(tx, ROOT, b"file", row.id)
        return row

    row = await db.write(write)
    assert row == await db.read(lambda tx: inodes.get(tx, row.id))
    assert (row.atime_ns, row.mtime_ns, row.ctime_ns) == (NOW, NOW, NOW)
    assert (row.store_id, row.object_id, row.blob_id) == (VERSIONED_STORE, "id1", None)


async def test_a_symbolic_link_is_as_long_as_its_target(db: Database) -> None:
    def write(tx: Transaction) -> InodeRow:
        row = inodes.insert(
            tx, mode=stat.S_IFLNK | 0o777, uid=0, gid=0, nlink=1, now_ns=NOW, target=b"to/\xff"
        )
        dentries.insert(tx, ROOT, b"link", row.id)
        return row

    row = await db.write(write)
    assert (row.target, row.size_bytes) == (b"to/\xff", 4)
    assert row == await db.read(lambda tx: inodes.get(tx, row.id))


async def test_update_sets_what_is_given_and_nothing_else(db: Database) -> None:
    before = await db.write(lambda tx: add_file(tx, ROOT, b"file"))

    def write(tx: Transaction) -> InodeRow:
        blob = adopt(tx, b"")
        return inodes.update(
            tx, before.id, mode=stat.S_IFREG | 0o600, mtime_ns=-5, blob_id=blob.id, object_id="x"
        )

    after = await db.write(write)
    assert after.mode == stat.S_IFREG | 0o600
    assert (after.mtime_ns, after.atime_ns) == (-5, before.atime_ns)
    assert after.blob_id is not None
    assert after.object_id == "x"
    assert after.store_id == DIGEST_STORE
    assert after.change > before.change
    assert after == await db.read(lambda tx: inodes.get(tx, before.id))
    assert (await db.write(lambda tx: inodes.update(tx, before.id, object_id=None))).object_id is None


@pytest.mark.parametrize(
    "operation",
    [
        lambda tx: inodes.get(tx, 99),
        lambda tx: inodes.update(tx, 99, uid=1),
        lambda tx: inodes.add_links(tx, 99, 1, NOW),
        lambda tx: inodes.remove(tx, 99),
    ],
)
async def test_what_does_not_exist(db: Database, operation: Callable[[Transaction], object]) -> None:
    with pytest.raises(FilesystemError) as caught:
        await db.write(operation)
    assert caught.value.errno == errno.ENOENT
    assert await db.read(lambda tx: inodes.find(tx, 99)) is None


async def test_ids_are_never_used_again(db: Database) -> None:
    def write(tx: Transaction) -> int:
        row = add_file(tx, ROOT, b"file")
        xattrs.set(tx, row.id, b"user.x", b"1")
        dentries.remove(tx, ROOT, b"file")
        inodes.remove(tx, row.id)
        return row.id

    first = await db.write(write)
    assert await db.write(write) > first
    assert await db.read(lambda tx: xattrs.names(tx, first)) == []


async def test_orphans(db: Database) -> None:
    def orphan(tx: Transaction) -> InodeRow:
        row = add_file(tx, ROOT, b"file")
        dentries.remove(tx, ROOT, b"file")
        return inodes.add_links(tx, row.id, -1, NOW + 1)

    row = await db.write(orphan)
    assert (row.nlink, row.ctime_ns) == (0, NOW + 1)
    assert await db.read(inodes.orphans) == [row]


async def test_usage_counts_beyond_64_bits(db: Database) -> None:
    """Sparse files add up to more than a column holds; sizes here are the journal's business."""
    sizes = [LARGEST, LARGEST, LARGEST - 1, 1, 2**32 - 1, 2**32]
    taken = await db.read(inodes.usage)

    def write(tx: Transaction) -> list[int]:
        ids = [add_file(tx, ROOT, b"%d" % at).id for at in range(len(sizes))]
        for inode_id, size in zip(ids, sizes, strict=True):
            inodes.update(tx, inode_id, size_bytes=size)
        return ids

    ids = await db.write(write)
    assert await db.read(inodes.usage) == Usage(taken.inodes + len(sizes), taken.bytes + sum(sizes))

    def undo(tx: Transaction) -> None:
        for at, inode_id in enumerate(ids):
            if at % 2:
                inodes.update(tx, inode_id, size_bytes=0)
            dentries.remove(tx, ROOT, b"%d" % at)
            inodes.remove(tx, inode_id)

    await db.write(undo)
    assert await db.read(inodes.usage) == taken


@given(
    time=st.integers(-(2**63), LARGEST),
    size=st.integers(0, LARGEST),
    rdev=st.integers(0, 2**32 - 1),
    owner=st.integers(0, 2**32 - 1),
)
def test_all_values_that_fit_come_back(time: int, size: int, rdev: int, owner: int) -> None:
    # One index for all examples: what is under test is a row, not a file.
    row = _IN_MEMORY.write(
        lambda tx: inodes.insert(
            tx, mode=stat.S_IFCHR, uid=owner, gid=owner, nlink=1, now_ns=time, rdev=rdev, size_bytes=size
        )
    )
    assert (row.atime_ns, row.size_bytes, row.rdev, row.uid) == (time, size, rdev, owner)
    assert _IN_MEMORY.write(lambda tx: inodes.get(tx, row.id)) == row


class _InMemory:
    """A schema without a file, a loop or a commit."""

    def __init__(self) -> None:
        connection = apsw.Connection(":memory:")
        schema.migrate(connection, schema.MIGRATIONS)
        self._tx = Transaction(connection, writable=True, sequence=1)

    def write(self, fn: Callable[[Transaction], InodeRow]) -> InodeRow:
        return fn(self._tx)


_IN_MEMORY = _InMemory()
