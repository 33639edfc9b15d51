"""What each operation may cost: index transactions and S3 requests, counted by the tracer."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.index import inodes
from s3blobfs.trace import Count
from s3blobfs.types import Durability, Keying
from tests.support.rig import ROOT, USER, Rig, Setup, add_store, open_rig

T = TypeVar("T")

S3_REQUESTS = [count for count in Count if count.value.startswith("s3.")]


async def cost(rig: Rig, operation: Awaitable[T]) -> tuple[dict[Count, int], T]:
    """Index writes and S3 requests of one operation, zeros left out; and its answer."""
    before = rig.tracer.counts.copy()
    answer = await operation
    spent = {
        count: rig.tracer.counts[count] - before[count]
        for count in (Count.INDEX_WRITE, *S3_REQUESTS)
        if rig.tracer.counts[count] != before[count]
    }
    return spent, answer


FIRST_INODE = ROOT + 1

ONE_TRANSACTION = {Count.INDEX_WRITE: 1}


async def test_metadata_changes_cost_one_transaction_and_no_request(any_rig: Rig) -> None:
    fs = any_rig.fs
    spent, directory = await cost(any_rig, fs.mkdir(ROOT, b"d", 0o755, USER))
    assert spent == ONE_TRANSACTION
    spent, (opened, made) = await cost(any_rig, fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER))
    assert spent == ONE_TRANSACTION
    await fs.release(opened.handle)
    for operation in (
        fs.mknod(ROOT, b"n", 0o644, 0, USER),
        fs.symlink(ROOT, b"s", b"target", USER),
        fs.link(made.inode_id, directory.inode_id, b"l"),
        fs.setattr(made.inode_id, AttributeChanges(mode=0o600)),
        fs.setattr(made.inode_id, AttributeChanges(uid=5, gid=6)),
        fs.setattr(made.inode_id, AttributeChanges(atime_ns=1, mtime_ns=2)),
        fs.setxattr(made.inode_id, b"user.x", b"y", USER),
        fs.removexattr(made.inode_id, b"user.x"),
        fs.rename(ROOT, b"s", directory.inode_id, b"t"),
        fs.unlink(directory.inode_id, b"t"),
    ):
        spent, _ = await cost(any_rig, operation)
        assert spent == ONE_TRANSACTION, operation


async def test_a_rename_of_a_tree_of_any_size_costs_one_transaction(any_rig: Rig) -> None:
    fs = any_rig.fs
    top = await fs.mkdir(ROOT, b"top", 0o755, USER)
    parent = top.inode_id
    for number in range(50):
        made = await fs.mkdir(parent, b"d%d" % number, 0o755, USER)
        await any_rig.write_file(b"f", b"x", parent)
        parent = made.inode_id
    spent, _ = await cost(any_rig, fs.rename(ROOT, b"top", ROOT, b"other"))
    assert spent == ONE_TRANSACTION


async def test_looking_costs_no_transaction_and_no_request(any_rig: Rig) -> None:
    fs = any_rig.fs
    made = await any_rig.write_file(b"f", b"content")
    directory = await fs.opendir(ROOT)
    for operation in (
        fs.lookup(ROOT, b"f"),
        fs.lookup(ROOT, b"missing"),
        fs.getattr(made.inode_id),
        fs.readdir(directory, 0),
        fs.statfs(),
        fs.listxattr(made.inode_id),
    ):
        spent, _ = await cost(any_rig, operation)
        assert spent == {}, operation
    await fs.releasedir(directory)


async def test_what_is_in_core_costs_not_even_a_query(any_rig: Rig) -> None:
    made = await any_rig.write_file(b"f", b"content")
    await any_rig.fs.lookup(ROOT, b"f")
    before = any_rig.tracer.counts[Count.INDEX_READ]
    await any_rig.fs.getattr(made.inode_id)
    assert any_rig.tracer.counts[Count.INDEX_READ] == before


async def test_write_costs_nothing_and_close_what_the_store_promises(any_rig: Rig) -> None:
    fs = any_rig.fs
    opened, _ = await fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    spent, _ = await cost(any_rig, fs.write(opened.handle, 0, b"content"))
    assert spent == {}
    spent, _ = await cost(any_rig, fs.flush(opened.handle))
    assert spent.pop(Count.INDEX_WRITE) <= 2
    if any_rig.setup.keying is Keying.VERSIONED:
        assert spent == {Count.S3_PUT: 1}
    else:
        assert spent == {Count.S3_HEAD: 1, Count.S3_PUT: 1}
    spent, _ = await cost(any_rig, fs.release(opened.handle))
    assert spent == {}


async def test_times_set_before_the_close_are_written_by_the_close(any_rig: Rig) -> None:
    """As tar(1) and rsync(1) set them, with owners that are right already."""
    fs = any_rig.fs
    opened, made = await fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await fs.write(opened.handle, 0, b"content")
    for changes in (AttributeChanges(atime_ns=1, mtime_ns=2), AttributeChanges(uid=USER.uid, gid=USER.gid)):
        spent, _ = await cost(any_rig, fs.setattr(made.inode_id, changes))
        assert spent == {}
    spent, _ = await cost(any_rig, fs.setattr(made.inode_id, AttributeChanges(mode=0o600)))
    assert spent == ONE_TRANSACTION
    changed = await fs.setattr(made.inode_id, AttributeChanges(mtime_ns=3))
    assert (changed.atime_ns, changed.mtime_ns) == (1, 3)
    assert changed.ctime_ns > made.ctime_ns
    spent, _ = await cost(any_rig, fs.flush(opened.handle))
    assert spent.pop(Count.INDEX_WRITE) <= 2
    row = await any_rig.db.read(lambda tx: inodes.get(tx, made.inode_id))
    assert (row.atime_ns, row.mtime_ns, row.ctime_ns) == (1, 3, changed.ctime_ns)
    spent, _ = await cost(any_rig, fs.setattr(made.inode_id, AttributeChanges(mtime_ns=4)))
    assert spent == ONE_TRANSACTION  # the file is not dirty any more
    await fs.release(opened.handle)


@pytest.mark.parametrize("durability", list(Durability))
async def test_times_set_before_an_fsync_are_written_by_it(tmp_path: Path, durability: Durability) -> None:
    async with open_rig(Setup(tmp_path / "volume", durability=durability)) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        await rig.fs.setattr(made.inode_id, AttributeChanges(mtime_ns=2))
        await rig.fs.fsync(opened.handle)
        assert (await rig.db.read(lambda tx: inodes.get(tx, made.inode_id))).mtime_ns == 2


async def test_the_same_content_again_costs_one_head(rig: Rig) -> None:
    await rig.write_file(b"f", b"content")
    spent, _ = await cost(rig, rig.write_file(b"g", b"content"))
    assert spent == {Count.INDEX_WRITE: 3, Count.S3_HEAD: 1}  # create, journal, commit


async def test_open_and_read_of_a_cached_file_cost_nothing(tmp_path: Path) -> None:
    for keying in Keying:
        async with open_rig(Setup(tmp_path / keying.value, keying=keying)) as rig:
            await rig.write_file(b"f", b"content")
            spent, data = await cost(rig, rig.read_file(b"f"))
            assert (spent, data) == ({}, b"content")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
async def test_a_small_file_that_is_not_cached_costs_one_get(tmp_path: Path, cached: bool) -> None:
    setup = Setup(tmp_path / "volume", cached=cached)
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", b"content" * 1000)
        made = await rig.fs.getattr(FIRST_INODE)
        digest = await rig.fs.getxattr(made.inode_id, b"user.s3blobfs.digest")
        assert rig.tier.cache.remove(1, digest.decode()) == cached
        spent, data = await cost(rig, rig.read_file(b"f"))
        assert (spent, data) == ({Count.S3_GET: 1}, b"content" * 1000)


async def test_a_copy_inside_a_store_costs_no_request(any_rig: Rig) -> None:
    made = await any_rig.write_file(b"f", b"content")
    copy = any_rig.fs.copy_file(made.inode_id, ROOT, b"g", replace=False, caller=USER)
    spent, _ = await cost(any_rig, copy)
    assert spent == ONE_TRANSACTION
    assert await any_rig.read_file(b"g") == b"content"


async def test_a_copy_into_another_store_moves_no_bytes(any_rig: Rig) -> None:
    made = await any_rig.write_file(b"f", b"content")
    other = await add_store(any_rig, "other", "other/")
    directory = await any_rig.fs.mkdir(ROOT, b"other", 0o755, USER)
    await any_rig.fs.bind_store(directory.inode_id, other.config.id)
    copy = any_rig.fs.copy_file(made.inode_id, directory.inode_id, b"f", replace=False, caller=USER)
    spent, _ = await cost(any_rig, copy)
    spent.pop(Count.INDEX_WRITE)
    if any_rig.setup.keying is Keying.VERSIONED:
        assert spent == {Count.S3_COPY: 1}
    else:
        assert spent == {Count.S3_HEAD: 2, Count.S3_COPY: 1}
    assert await any_rig.read_file(b"f", directory.inode_id) == b"content"
    assert any(key.startswith("other/") for key in any_rig.object_keys())


async def test_many_unlinks_cost_few_deletes(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", keying=Keying.VERSIONED, cached=False)
    count = 1100
    async with open_rig(setup) as rig:
        for number in range(count):
            await rig.write_file(b"f%d" % number, b"%d" % number)
        before = rig.tracer.counts.copy()
        for number in range(count):
            await rig.fs.unlink(ROOT, b"f%d" % number)
        assert rig.tracer.counts[Count.INDEX_WRITE] - before[Count.INDEX_WRITE] == count
        assert await rig.reaper.drain() == 0
        spent = rig.tracer.counts - before
        assert spent[Count.S3_DELETE_BATCH] + spent[Count.S3_DELETE] <= 2
        assert rig.object_keys() == []
