"""Calls on ranges of bytes: copy_file_range, fallocate, and looking for data and holes."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from s3blobfs.config import KIB, MIB, OBJECT_MAX_BYTES
from s3blobfs.fs import ranges
from s3blobfs.fs.ranges import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from s3blobfs.trace import Count
from s3blobfs.types import Durability, Keying
from tests.fs.calls import find, opened_file, pattern, refused, xattr
from tests.fs.test_copy import directory_of_another_store
from tests.fs.test_durability import crashing
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

DATA = pattern(300_001)
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


@asynccontextmanager
async def new_file(rig: Rig, name: bytes, parent: int = ROOT) -> AsyncIterator[tuple[int, int]]:
    """``(handle, inode)``, closed as a program's is."""
    opened, made = await rig.fs.create(parent, name, 0o644, os.O_RDWR, USER)
    try:
        yield opened.handle, made.inode_id
    finally:
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)


async def copy_all(rig: Rig, source: int, target: int, length: int = 2**31) -> int:
    """As cp(1) does: from where the last call ended, until nothing is copied."""
    copied = 0
    while done := await rig.fs.copy_file_range(source, copied, target, copied, length):
        copied += done
    return copied


def requests(rig: Rig) -> int:
    """To S3."""
    return sum(count for what, count in rig.tracer.counts.items() if what.value.startswith("s3."))


# -- copies of whole contents --------------------------------------------------------------------------


async def test_a_copy_inside_a_store_is_one_transaction_and_no_request(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, copy):
        rig.tracer.counts.clear()
        assert await rig.fs.copy_file_range(source, 0, target, 0, 2**40) == len(DATA)
        assert rig.tracer.counts[Count.INDEX_WRITE] == 1
        assert requests(rig) == 0
        assert (await rig.fs.getattr(copy)).size_bytes == len(DATA)
        assert await rig.fs.copy_file_range(source, len(DATA), target, len(DATA), 2**40) == 0
    assert requests(rig) == 0
    assert await rig.read_file(b"g") == DATA
    assert await xattr(rig, copy, "key") == await xattr(rig, made.inode_id, "key")


async def test_the_two_go_their_own_ways(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, _):
        await copy_all(rig, source, target)
        await rig.fs.write(target, 0, b"CHANGED")
        assert await rig.fs.read(source, 0, 7) == DATA[:7]
    assert await rig.read_file(b"g") == b"CHANGED" + DATA[7:]
    assert await rig.read_file(b"f") == DATA
    await rig.fs.unlink(ROOT, b"f")
    assert await rig.read_file(b"g") == b"CHANGED" + DATA[7:]


@pytest.mark.parametrize("to", [(k, c) for k in Keying for c in (True, False)], ids=str)
async def test_into_another_store_s3_copies(any_rig: Rig, to: tuple[Keying, bool]) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    other = await directory_of_another_store(rig, keying=to[0], cached=to[1])
    if to[0] is Keying.VERSIONED:
        await rig.setup.server.client(BUCKET).enable_versioning()
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source:
        rig.tracer.counts.clear()
        async with new_file(rig, b"g", other) as (target, copy):
            assert await copy_all(rig, source, target) == len(DATA)
        assert rig.tracer.counts[Count.S3_COPY] == 1
        assert rig.tracer.counts[Count.S3_PUT] == rig.tracer.counts[Count.S3_GET] == 0
    assert (await xattr(rig, copy, "key")).startswith("other/")
    assert await rig.read_file(b"g", other) == DATA


@pytest.mark.parametrize("before", ["emptied", "shorter", "written", "uploading", "stored and longer"])
async def test_over_what_the_target_has(any_rig: Rig, before: str) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    there = await rig.write_file(b"g", pattern(400_000, 3) if "longer" in before else b"older")
    flags = os.O_RDWR | (os.O_TRUNC if before == "emptied" else 0)
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as source,
        opened_file(rig, there.inode_id, flags) as target,
        trio.open_nursery() as nursery,
    ):
        if before in ("written", "uploading"):
            await rig.fs.write(target, 0, b"newer")
        if before == "uploading":
            stall = rig.faults.on("put", nth=1).stalls()
            nursery.start_soon(rig.fs.fsync, target)
            await stall.arrived.wait()
        assert await copy_all(rig, source, target) == len(DATA)
        if before == "uploading":
            stall.release()
    expected = DATA + pattern(400_000, 3)[len(DATA) :] if "longer" in before else DATA
    assert await rig.read_file(b"g") == expected
    assert await rig.read_file(b"f") == DATA
    await rig.fs.unlink(ROOT, b"f")
    await rig.reaper.drain()
    assert await rig.read_file(b"g") == expected


async def test_times_and_pages_are_new(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    there = await rig.write_file(b"g", b"older")
    opened = await rig.fs.open(there.inode_id, os.O_RDONLY)
    await rig.fs.release(opened.handle)
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as source,
        opened_file(rig, there.inode_id, os.O_WRONLY | os.O_TRUNC) as target,
    ):
        await copy_all(rig, source, target)
    after = await rig.fs.getattr(there.inode_id)
    assert after.mtime_ns > there.mtime_ns and after.ctime_ns > there.ctime_ns
    opened = await rig.fs.open(there.inode_id, os.O_RDONLY)
    assert not opened.keep_cache
    await rig.fs.release(opened.handle)


async def test_into_an_unlinked_file(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, _):
        await rig.fs.unlink(ROOT, b"g")
        assert await copy_all(rig, source, target) == len(DATA)
        assert await rig.fs.read(target, 0, len(DATA)) == DATA
    assert await rig.read_file(b"f") == DATA


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
async def test_a_copy_is_there_after_a_crash(any_setup: Setup, durability: Durability) -> None:
    """What close has promised holds for a copy."""
    setup = replace(any_setup, durability=durability)
    async with crashing(setup) as rig:
        made = await rig.write_file(b"f", DATA)
        await rig.fs.sync(None, None)
        async with (
            opened_file(rig, made.inode_id, os.O_RDONLY) as source,
            new_file(rig, b"g") as (target, copy),
        ):
            await copy_all(rig, source, target)
        assert await xattr(rig, copy, "state") == "stored"
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"g") == DATA


# -- copies of what is larger than a request ------------------------------------------------------------


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> int:
    """As if requests of so many bytes were the largest."""
    monkeypatch.setattr(ranges, "PREFIX_MIN_BYTES", 100_000)
    return 100_000


async def test_in_several_requests_it_is_one_transaction(any_rig: Rig, small_requests: int) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, copy):
        rig.tracer.counts.clear()
        for number in (1, 2, 3):
            done = await rig.fs.copy_file_range(
                source, (number - 1) * 100_000, target, (number - 1) * 100_000, 100_000
            )
            assert done == 100_000
            assert (await rig.fs.getattr(copy)).size_bytes == number * 100_000
            assert await rig.fs.read(target, number * 100_000 - 5, 100) == DATA[number * 100_000 - 5 :][:5]
        assert await rig.fs.copy_file_range(source, 300_000, target, 300_000, 100_000) == 1
        assert rig.tracer.counts[Count.INDEX_WRITE] == 1
    assert rig.tracer.counts[Count.S3_PUT] == 0
    assert await rig.read_file(b"g") == DATA


@pytest.mark.parametrize(
    "then", ["close", "write", "extend", "cut", "write behind", "copy elsewhere", "fsync"]
)
async def test_a_copy_that_does_not_go_on_is_cut(any_rig: Rig, small_requests: int, then: str) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    expected = DATA[:small_requests]
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, copy):
        assert await rig.fs.copy_file_range(source, 0, target, 0, small_requests) == small_requests
        if then == "write":
            await rig.fs.write(target, 7, b"XYZ")
            expected = expected[:7] + b"XYZ" + expected[10:]
        elif then == "write behind":
            await rig.fs.write(target, small_requests, b"behind")
            expected += b"behind"
        elif then == "extend":
            await rig.fs.fallocate(target, 0, 0, small_requests + 10)
            expected += bytes(10)
        elif then == "cut":
            await rig.fs.fallocate(target, PUNCH, small_requests - 10, 10)
            expected = expected[:-10] + bytes(10)
        elif then == "copy elsewhere":
            await rig.fs.copy_file_range(source, 0, target, small_requests, 5)
            expected += DATA[:5]
        elif then == "fsync":
            await rig.fs.fsync(target)
            assert await xattr(rig, copy, "state") == "stored"
        assert (await rig.fs.getattr(copy)).size_bytes == len(expected)
        assert await rig.fs.read(target, 0, 2 * len(DATA)) == expected
    assert (await rig.fs.getattr(copy)).size_bytes == len(expected)
    assert await rig.read_file(b"g") == expected
    assert await rig.read_file(b"f") == DATA


@pytest.mark.parametrize("durability", Durability, ids=lambda each: each.value)
@pytest.mark.parametrize("synced", [False, True])
async def test_a_crash_in_the_middle_of_a_copy(
    any_setup: Setup, small_requests: int, durability: Durability, synced: bool
) -> None:
    """What fsync has promised is there, and no more; else all of the source may be, and nothing that is not
    of it."""
    setup = replace(any_setup, durability=durability)
    async with crashing(setup) as rig:
        made = await rig.write_file(b"f", DATA)
        await rig.fs.sync(None, None)
        opened, _ = await rig.fs.create(ROOT, b"g", 0o644, os.O_RDWR, USER)
        async with opened_file(rig, made.inode_id, os.O_RDONLY) as source:
            assert await rig.fs.copy_file_range(source, 0, opened.handle, 0, small_requests) == small_requests
        if synced:
            await rig.fs.fsync(opened.handle)
        await rig.fs.unlink(ROOT, b"f")
        await rig.db.flush()
    async with open_rig(setup) as rig:
        found = await find(rig, b"g")
        assert await rig.read_file(b"g") == DATA[: small_requests if synced else len(DATA)]
        assert found.size_bytes == (small_requests if synced else len(DATA))
        await rig.fs.sync(None, None)
        await rig.tier.cache.evict(2**60)
        assert len(await rig.read_file(b"g")) == found.size_bytes


async def test_a_direct_copy_of_what_is_being_copied(any_rig: Rig, small_requests: int) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, copy):
        await rig.fs.copy_file_range(source, 0, target, 0, small_requests)
        async with new_file(rig, b"h") as (third, _):
            assert await copy_all(rig, target, third) == small_requests
        await rig.fs.copy_file(copy, ROOT, b"i", replace=False, caller=USER)
    for name in (b"g", b"h", b"i"):
        assert await rig.read_file(name) == DATA[:small_requests]


async def test_an_unmount_cuts_it(any_setup: Setup, small_requests: int) -> None:
    async with open_rig(any_setup) as rig:
        made = await rig.write_file(b"f", DATA)
        source = await rig.fs.open(made.inode_id, os.O_RDONLY)
        target, _ = await rig.fs.create(ROOT, b"g", 0o644, os.O_RDWR, USER)
        await rig.fs.copy_file_range(source.handle, 0, target.handle, 0, small_requests)
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"g") == DATA[:small_requests]


# -- copies of bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "target_offset", "length"),
    [(0, 0, 1000), (5, 0, 300_000), (0, 5, 400_000), (299_990, 1_000_000, 100), (100_000, 100_000, 100_000)],
)
async def test_of_a_part(any_rig: Rig, offset: int, target_offset: int, length: int) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    there = await rig.write_file(b"g", pattern(500_000, 3))
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as source,
        opened_file(rig, there.inode_id, os.O_WRONLY) as target,
    ):
        done = await rig.fs.copy_file_range(source, offset, target, target_offset, length)
        assert done == min(length, len(DATA) - offset)
    expected = bytearray(pattern(500_000, 3))
    expected += bytes(max(0, target_offset - len(expected)))
    expected[target_offset : target_offset + done] = DATA[offset : offset + done]
    assert await rig.read_file(b"g") == expected


@pytest.mark.parametrize("state", ["dirty", "uploading"])
async def test_of_what_is_not_in_s3_yet(any_rig: Rig, state: str) -> None:
    """Nobody waits for S3: the bytes are copied."""
    rig = any_rig
    async with new_file(rig, b"f") as (source, _), trio.open_nursery() as nursery:
        await rig.fs.write(source, 0, DATA)
        stall = rig.faults.on("put", nth=1).stalls()
        if state == "uploading":
            nursery.start_soon(rig.fs.fsync, source)
            await stall.arrived.wait()
        opened, _ = await rig.fs.create(ROOT, b"g", 0o644, os.O_RDWR, USER)
        assert await copy_all(rig, source, opened.handle) == len(DATA)
        stall.release()
        await rig.fs.write(source, 0, b"CHANGED")
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
    assert await rig.read_file(b"g") == DATA
    assert await rig.read_file(b"f") == b"CHANGED" + DATA[7:]


async def test_within_one_file(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as source,
        opened_file(rig, made.inode_id, os.O_WRONLY) as target,
    ):
        assert await rig.fs.copy_file_range(source, 0, target, len(DATA), 1000) == 1000
    assert await rig.read_file(b"f") == DATA + DATA[:1000]


async def test_large_parts_are_copied_in_steps(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "COPIED_AT_ONCE_BYTES", 100_000)
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 30_000)
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as source, new_file(rig, b"g") as (target, _):
        assert await rig.fs.copy_file_range(source, 1, target, 0, 2**30) == 100_000
    assert await rig.read_file(b"g") == DATA[1:100_001]


async def test_when_the_tier_is_full_what_was_copied_counts(setup: Setup) -> None:
    async with open_rig(replace(setup, cached=False, cache_bytes=6 * MIB)) as rig:
        made = await rig.write_file(b"f", pattern(5 * MIB))
        async with opened_file(rig, made.inode_id, os.O_RDONLY) as source:
            opened, _ = await rig.fs.create(ROOT, b"g", 0o644, os.O_RDWR, USER)
            done = 0
            with refused(errno.ENOSPC):
                while True:
                    done += await rig.fs.copy_file_range(source, 0, opened.handle, done + 1, 5 * MIB)
            assert 4 * MIB <= done <= 6 * MIB
            assert await rig.fs.read(opened.handle, 1, 100) == pattern(100)
            await rig.fs.flush(opened.handle)
            await rig.fs.release(opened.handle)


async def test_what_may_not_be_copied(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as reader,
        new_file(rig, b"g") as (target, copy),
        opened_file(rig, copy, os.O_WRONLY | os.O_APPEND) as appender,
        opened_file(rig, copy, os.O_WRONLY) as writer,
    ):
        for source, to in ((reader, reader), (writer, target), (reader, appender)):
            with refused(errno.EBADF):
                await rig.fs.copy_file_range(source, 0, to, 0, 10)
        with refused(errno.EFBIG):
            await rig.fs.copy_file_range(reader, 0, target, OBJECT_MAX_BYTES, 10)
        assert await rig.fs.copy_file_range(reader, len(DATA) + 5, target, 0, 10) == 0
        rig.fs.refuse_changes()
        with refused(errno.EROFS):
            await rig.fs.copy_file_range(reader, 0, target, 0, 10)
        rig.fs._core.read_only = False


# -- fallocate -----------------------------------------------------------------------------------------


async def test_allocating_extends_with_zeros(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id) as handle:
        await rig.fs.fallocate(handle, 0, 0, 10)
        assert (await rig.fs.getattr(made.inode_id)).size_bytes == len(DATA)
        await rig.fs.fallocate(handle, 0, 400_000, 100)
        after = await rig.fs.getattr(made.inode_id)
        assert after.size_bytes == 400_100
        assert after.mtime_ns > made.mtime_ns and after.ctime_ns > made.ctime_ns
    assert await rig.read_file(b"f") == DATA + bytes(400_100 - len(DATA))


async def test_blocks_are_allocated_where_they_are_said_to_be(rig: Rig) -> None:
    async with new_file(rig, b"f") as (handle, inode):
        await rig.fs.fallocate(handle, FALLOC_KEEP_SIZE, 0, 1 * MIB)
        kept = await rig.fs.getattr(inode)
        assert kept.size_bytes == 0 and kept.blocks * 512 >= 1 * MIB
        await rig.fs.fallocate(handle, 0, 0, 1 * MIB)
        assert (await rig.fs.getattr(inode)).size_bytes == 1 * MIB
        await rig.fs.fallocate(handle, PUNCH, 0, 1 * MIB)
        punched = await rig.fs.getattr(inode)
        assert punched.size_bytes == 1 * MIB and punched.blocks * 512 < 64 * KIB
    assert await rig.read_file(b"f") == bytes(1 * MIB)


async def test_room_kept_behind_the_end_is_given_back_when_it_is_closed(rig: Rig) -> None:
    async with new_file(rig, b"f") as (handle, _):
        await rig.fs.write(handle, 0, DATA)
        await rig.fs.fallocate(handle, FALLOC_KEEP_SIZE, 0, 8 * MIB)
        assert rig.tier.space.staged_bytes >= 8 * MIB
    assert rig.tier.space.used_bytes < 1 * MIB
    assert await rig.read_file(b"f") == DATA


@pytest.mark.parametrize("mode", [PUNCH, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE])
@pytest.mark.parametrize("start", [0, 5, 4096, 299_000])
async def test_ranges_become_zeros(any_rig: Rig, mode: int, start: int) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id) as handle:
        await rig.fs.fallocate(handle, mode, start, 9000)
        size = (await rig.fs.getattr(made.inode_id)).size_bytes
        assert size == (max(len(DATA), start + 9000) if mode == FALLOC_ZERO_RANGE else len(DATA))
        expected = (DATA[:start] + bytes(9000) + DATA[start + 9000 :])[:size]
        assert await rig.fs.read(handle, 0, 2 * len(DATA)) == expected
    assert await rig.read_file(b"f") == expected


async def test_zeros_while_the_digests_are_being_computed(rig: Rig) -> None:
    """What was hashed already is hashed again."""
    data = pattern(20 * MIB)
    async with new_file(rig, b"f") as (handle, _):
        for offset in range(0, len(data), MIB):
            await rig.fs.write(handle, offset, data[offset : offset + MIB])
        await rig.fs.fallocate(handle, PUNCH, 3, 10)
        await rig.fs.fallocate(handle, FALLOC_ZERO_RANGE, 2 * MIB, 10)
    expected = bytearray(data)
    expected[3:13] = expected[2 * MIB : 2 * MIB + 10] = bytes(10)
    assert await rig.read_file(b"f") == expected


async def test_a_hole_behind_the_end_is_none(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    rig.tracer.counts.clear()
    async with opened_file(rig, made.inode_id) as handle:
        await rig.fs.fallocate(handle, PUNCH, len(DATA), 10)
    assert requests(rig) == 0
    assert await rig.read_file(b"f") == DATA


async def test_allocating_more_than_there_is_room_for(setup: Setup) -> None:
    async with open_rig(replace(setup, cache_bytes=4 * MIB)) as rig:
        made = await rig.write_file(b"f", DATA)
        async with opened_file(rig, made.inode_id) as handle:
            with refused(errno.ENOSPC):
                await rig.fs.fallocate(handle, 0, 0, 5 * MIB)
            assert (await rig.fs.getattr(made.inode_id)).size_bytes == len(DATA)
            assert await rig.fs.read(handle, 0, len(DATA)) == DATA
            assert rig.tier.space.staged_bytes <= len(DATA)
        assert await rig.read_file(b"f") == DATA


async def test_what_is_allocated_can_be_written_when_the_tier_is_full(setup: Setup) -> None:
    async with open_rig(replace(setup, cache_bytes=4 * MIB)) as rig:
        async with new_file(rig, b"f") as (handle, _):
            await rig.fs.fallocate(handle, FALLOC_KEEP_SIZE, 0, 3 * MIB)
            opened, _ = await rig.fs.create(ROOT, b"other", 0o644, os.O_WRONLY, USER)
            with refused(errno.ENOSPC):
                for number in range(100):
                    await rig.fs.write(opened.handle, number * 64 * KIB, bytes(64 * KIB))
            data = pattern(3 * MIB)
            for offset in range(0, len(data), 100_000):
                await rig.fs.write(handle, offset, data[offset : offset + 100_000])
            with refused(errno.ENOSPC):
                await rig.fs.write(handle, 4 * MIB, bytes(MIB))
            await rig.fs.unlink(ROOT, b"other")
            await rig.fs.release(opened.handle)
        assert await rig.read_file(b"f") == data


async def test_modes_that_are_refused(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id) as handle:
        for mode in (0x08, 0x20, 0x40, FALLOC_PUNCH_HOLE, PUNCH | FALLOC_ZERO_RANGE, 0x09):
            with refused(errno.EOPNOTSUPP):
                await rig.fs.fallocate(handle, mode, 0, 4096)
        for offset, length in ((-1, 10), (0, 0), (10, -1)):
            with refused(errno.EINVAL):
                await rig.fs.fallocate(handle, 0, offset, length)
        with refused(errno.EFBIG):
            await rig.fs.fallocate(handle, 0, OBJECT_MAX_BYTES, 1)
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as handle:
        with refused(errno.EBADF):
            await rig.fs.fallocate(handle, 0, 0, 10)
    assert await rig.read_file(b"f") == DATA


# -- data and holes ------------------------------------------------------------------------------------


async def test_holes_of_what_is_being_written(any_rig: Rig) -> None:
    rig = any_rig
    async with new_file(rig, b"f") as (handle, _):
        await rig.fs.write(handle, 0, b"x" * 4096)
        await rig.fs.write(handle, 8 * MIB, b"y" * 4096)
        size = 8 * MIB + 4096
        assert await rig.fs.seek(handle, 0, os.SEEK_HOLE) == 4096
        assert await rig.fs.seek(handle, 4096, os.SEEK_DATA) == 8 * MIB
        assert await rig.fs.seek(handle, 8 * MIB + 1, os.SEEK_DATA) == 8 * MIB + 1
        assert await rig.fs.seek(handle, 8 * MIB, os.SEEK_HOLE) == size
        await rig.fs.fallocate(handle, PUNCH, 8 * MIB, 4096)
        with refused(errno.ENXIO):
            await rig.fs.seek(handle, 4096, os.SEEK_DATA)
        for offset in (-1, size, size + 1):
            with refused(errno.ENXIO):
                await rig.fs.seek(handle, offset, os.SEEK_HOLE)
        with refused(errno.EINVAL):
            await rig.fs.seek(handle, 0, os.SEEK_END)


async def test_what_is_stored_has_none(any_rig: Rig) -> None:
    rig = any_rig
    async with new_file(rig, b"f") as (handle, _):
        await rig.fs.write(handle, 8 * MIB, b"y")
    made = await find(rig, b"f")
    assert made.blocks * 512 >= made.size_bytes
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as handle:
        assert await rig.fs.seek(handle, 0, os.SEEK_DATA) == 0
        assert await rig.fs.seek(handle, 5, os.SEEK_HOLE) == made.size_bytes
