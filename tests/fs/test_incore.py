"""How many inodes are in core, and that nobody notices."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from itertools import count, islice

import pytest

from s3blobfs.fs import incore
from s3blobfs.fs.incore import InodeTable
from s3blobfs.index.inodes import InodeRow
from tests.fs.calls import Clock, find, make_file
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

LIMIT, BATCH = 16, 4


@pytest.fixture(autouse=True)
def few_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incore, "_EVICTED_AT_ONCE", BATCH)
    monkeypatch.setattr(incore, "INODES_KEPT", LIMIT)


def row(inode_id: int, mode: int = 0o100644) -> InodeRow:
    return InodeRow(inode_id, mode, 0, 0, 1, 0, 1, 1, 1, 0, None, 1, None, None, 1)


_ids = count(10_000)


def fill(table: InodeTable, many: int) -> None:
    """Others come, and what is idle goes."""
    for number in islice(_ids, many):
        table.admit(row(number)).lookup_count = 1
        if table.crowded:
            for inode in table.idle():
                table.evict(inode)


def test_the_table_stays_about_its_limit() -> None:
    table = InodeTable()
    fill(table, 10 * LIMIT)
    assert len(table) <= LIMIT + BATCH
    assert not table._dropped


def test_what_was_used_last_stays() -> None:
    table = InodeTable()
    kept, other = table.admit(row(1)), table.admit(row(2))
    for _ in range(10 * LIMIT):
        fill(table, 1)
        assert table.find(1) is kept
    assert other not in list(table)


def test_what_is_open_or_removed_stays() -> None:
    table = InodeTable()
    opened, removed, staged = (table.admit(row(number)) for number in (1001, 1002, 1003))
    opened.open_count = 1
    removed.removed = True
    staged.atime_ns = 5
    fill(table, 10 * LIMIT)
    assert {opened, removed, staged} <= set(table)


def test_it_shrinks_again_after_many_were_open() -> None:
    table = InodeTable()
    opened = [table.admit(row(number)) for number in range(2, 2 + 10 * LIMIT)]
    for inode in opened:
        inode.open_count = 1
    fill(table, 10 * LIMIT)
    assert len(table) >= 10 * LIMIT
    for inode in opened:
        inode.open_count = 0
    fill(table, 10 * LIMIT)
    assert len(table) <= LIMIT + BATCH


def test_what_a_call_holds_is_the_same_object_when_it_comes_back() -> None:
    table = InodeTable()
    held = table.admit(row(1000))
    fill(table, 10 * LIMIT)
    assert 1000 not in [inode.id for inode in table]
    newer = held.row._replace(size_bytes=7, change=2)
    assert table.admit(newer) is held
    assert held.size_bytes == 7
    assert 1000 in [inode.id for inode in table]


def test_when_nobody_holds_it_nothing_is_left() -> None:
    table = InodeTable()
    table.admit(row(1000))
    fill(table, 10 * LIMIT)
    gc.collect()
    assert table.find(1000) is None


async def test_many_files_are_looked_up_listed_and_changed(any_setup: Setup) -> None:
    """Ten times as many as fit, each used again after it was evicted."""
    many = 10 * LIMIT
    async with open_rig(any_setup) as rig:
        made = [await rig.write_file(b"f%d" % number, b"%d" % number) for number in range(many)]
        assert rig.fs.status().inodes_in_core <= LIMIT + 2 * BATCH
        for number, each in enumerate(made):
            assert (await rig.fs.getattr(each.inode_id)).size_bytes == len(b"%d" % number)
            await rig.fs.setxattr(each.inode_id, b"user.x", b"%d" % number, USER)
        handle = await rig.fs.opendir(ROOT)
        listed: set[bytes] = set()
        after = 0
        while page := await rig.fs.readdir(handle, after, BATCH):
            rig.fs.refer(page)
            listed.update(entry.name for entry in page)
            after = page[-1].cookie
        await rig.fs.releasedir(handle)
        assert len(listed) == many + 2
        assert rig.fs.status().inodes_in_core <= LIMIT + 2 * BATCH
        for number in range(many):
            assert await rig.read_file(b"f%d" % number) == b"%d" % number
        for each in made:
            await rig.fs.forget([(each.inode_id, 5)])
    async with open_rig(any_setup) as rig:
        for number in (0, 17, many - 1):
            inode_id = (await find(rig, b"f%d" % number)).inode_id
            assert await rig.fs.getxattr(inode_id, b"user.x") == b"%d" % number


async def test_open_files_stay_while_others_come_and_go(rig: Rig) -> None:
    opened, made = await rig.fs.create(ROOT, b"open", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, b"abc")
    for number in range(5 * LIMIT):
        await make_file(rig, b"f%d" % number)
    await rig.fs.write(opened.handle, 3, b"def")
    assert (await rig.fs.getattr(made.inode_id)).size_bytes == 6
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    assert await rig.read_file(b"open") == b"abcdef"


async def test_access_times_are_kept(any_setup: Setup) -> None:
    clock = Clock()
    async with open_rig(replace(any_setup, now_ns=clock)) as rig:
        made = await rig.write_file(b"f", b"content")
        read_at = clock.tick()
        assert await rig.read_file(b"f") == b"content"
        for number in range(5 * LIMIT):
            await make_file(rig, b"f%d" % number)
        assert made.inode_id not in [inode.id for inode in rig.fs._core.inodes]
        assert (await rig.fs.getattr(made.inode_id)).atime_ns == read_at


async def test_what_is_removed_after_it_was_evicted_can_still_be_asked_about(rig: Rig) -> None:
    """As by fstat(2) of a descriptor opened with O_PATH, or in a removed working directory."""
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    for number in range(5 * LIMIT):
        await make_file(rig, b"f%d" % number)
    await rig.fs.rmdir(ROOT, b"d")
    assert (await rig.fs.getattr(directory.inode_id)).nlink == 0
    await rig.fs.forget([(directory.inode_id, 1)])
    assert directory.inode_id not in [inode.id for inode in rig.fs._core.inodes]
