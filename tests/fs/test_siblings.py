"""Files that are fetched before they are asked for: when, how many, and what it costs if nobody does."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3blobfs.config import KIB, ReadOptions
from s3blobfs.errors import DamagedContent, TransientS3Error
from s3blobfs.fs.siblings import FIRST_WINDOW, IN_ORDER, NEAR
from s3blobfs.s3.protocol import ObjectData
from s3blobfs.tier.ahead import REQUESTS_MAX
from s3blobfs.trace import Count
from s3blobfs.types import Keying
from tests.fs.calls import find, xattr
from tests.support.rig import ROOT, USER, Rig, Setup, add_store, open_rig

FILES = 200


def name(number: int) -> bytes:
    # Not in the order of creation: that of the listing counts.
    return b"%03d" % (number * 37 % 1000)


def content(number: int) -> bytes:
    return b"content of file %d" % number


@pytest.fixture(params=list(Keying), ids=lambda keying: keying.value)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    return Setup(tmp_path / "volume", keying=request.param)


async def write(rig: Rig, count: int = FILES) -> int:
    """Files in a directory; answers its inode."""
    directory = (await rig.fs.mkdir(ROOT, b"d", 0o755, USER)).inode_id
    async with trio.open_nursery() as nursery:
        for number in range(count):
            opened, _ = await rig.fs.create(directory, name(number), 0o644, 0o1, USER)
            await rig.fs.write(opened.handle, 0, content(number))
            nursery.start_soon(close, rig, opened.handle)
    return directory


async def close(rig: Rig, handle: int) -> None:
    await rig.fs.flush(handle)
    await rig.fs.release(handle)


@asynccontextmanager
async def cold(setup: Setup, count: int = FILES, **changes: object) -> AsyncIterator[tuple[Rig, int]]:
    """A mount with an empty cache, and a directory of files; in the end nothing is under way."""
    async with open_rig(setup) as rig:
        await write(rig, count)
    shutil.rmtree(setup.directory / "tier")
    async with open_rig(replace(setup, **changes)) as rig:  # type: ignore[arg-type]
        directory = (await find(rig, b"d")).inode_id
        rig.tracer.counts.clear()
        yield rig, directory
        await arrived(rig)
        assert rig.tier.space.filling_bytes == 0
        assert [each for each in rig.tier.layout.store(1).names() if each.startswith(".")] == []


async def arrived(rig: Rig) -> None:
    """Until nothing is on its way."""
    with trio.fail_after(10):
        while rig.tier.fetcher.ahead.bytes_under_way or rig.tier.fetcher.fill_count:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def read(rig: Rig, directory: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        assert await rig.read_file(name(number), directory) == content(number)


async def key_of(rig: Rig, directory: int, number: int) -> str:
    """Of the file's object."""
    return await xattr(rig, (await find(rig, name(number), directory)).inode_id, "key")


def record_gets(rig: Rig) -> list[str]:
    """The keys of all that is fetched from now on."""
    keys = []
    get = rig.faults.get

    async def recorded(key: str, **options: Any) -> ObjectData:
        keys.append(key)
        return await get(key, **options)

    rig.faults.get = recorded  # type: ignore[method-assign]
    return keys


def counts(rig: Rig) -> tuple[int, int, int]:
    """Fetched ahead, used, not used."""
    found = rig.tracer.counts
    return found[Count.AHEAD_FETCHED], found[Count.AHEAD_USED], found[Count.AHEAD_UNUSED]


async def test_a_directory_read_in_order_is_fetched_once_and_mostly_ahead(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(FILES))
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] == FILES
        fetched, used, unused = counts(rig)
        assert (used, unused) == (fetched, 0)
        assert fetched > FILES * 0.6
        await read(rig, directory, range(FILES))
        assert rig.tracer.counts[Count.S3_GET] == FILES


async def test_nothing_is_fetched_before_the_third_file(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(5, 5 + IN_ORDER))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.tracer.counts[Count.S3_GET] == IN_ORDER
        await read(rig, directory, [5 + IN_ORDER])
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] == IN_ORDER + 1 + FIRST_WINDOW


async def test_reading_the_same_file_again_is_no_order(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        for _ in range(5):
            await read(rig, directory, [3, 4])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.tracer.counts[Count.S3_GET] == 2


async def test_what_is_read_here_and_there_is_all_that_is_fetched(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        numbers = list(range(0, FILES, NEAR + 1)) + list(range(FILES - 1, 0, -NEAR - 5))
        await read(rig, directory, numbers)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.tracer.counts[Count.S3_GET] == len(set(numbers))
        assert counts(rig) == (0, 0, 0)


async def test_each_directory_has_its_own_order(setup: Setup) -> None:
    """Alternately in two directories is in order in both."""
    async with cold(setup, 30) as (rig, directory):
        other = (await rig.fs.mkdir(ROOT, b"other", 0o755, USER)).inode_id
        for number in range(30):
            await rig.write_file(name(number), content(number)[::-1], other)
        await rig.tier.cache.evict(1 << 30)
        rig.tracer.counts.clear()
        for number in range(30):
            await read(rig, directory, [number])
            assert await rig.read_file(name(number), other) == content(number)[::-1]
        assert rig.tracer.counts[Count.S3_GET] == 60
        assert counts(rig)[0] == counts(rig)[1] > 30


async def test_many_readers_at_the_same_time_fetch_nothing_twice(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        rig.faults.on("get").delays(0.001)
        numbers = iter(range(FILES))

        async def one() -> None:
            for number in numbers:
                await read(rig, directory, [number])

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(one)
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] == FILES
        assert counts(rig)[2] == 0
        assert counts(rig)[0] > FILES // 4


async def test_a_jump_gives_up_what_was_not_asked_for_yet(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(40))
        await arrived(rig)
        before = rig.tracer.counts[Count.S3_GET]
        await read(rig, directory, [FILES - 1])
        await arrived(rig)
        fetched, used, unused = counts(rig)
        assert rig.tracer.counts[Count.S3_GET] == before + 1
        assert unused == fetched - used > 0
        await read(rig, directory, [0])
        assert rig.tracer.counts[Count.S3_GET] == before + 1


async def test_what_is_passed_by_makes_less_be_fetched(setup: Setup) -> None:
    """Every eighth file: what lies between is fetched in vain, and less and less of it."""
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(0, FILES, 8))
        await arrived(rig)
        fetched, used, unused = counts(rig)
        assert used <= fetched
        assert 0 < unused <= fetched < FILES // 4


async def test_a_demanded_read_waits_for_what_is_under_way(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        keys = record_gets(rig)
        await read(rig, directory, range(IN_ORDER))
        stall = rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1)).stalls()
        await read(rig, directory, [IN_ORDER])
        await stall.arrived.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, rig, directory, [IN_ORDER + 1])
            await trio.testing.wait_all_tasks_blocked(0.01)
            # What no thread has begun with yet is left to who asks.
            await read(rig, directory, range(IN_ORDER + 2, IN_ORDER + FIRST_WINDOW))
            stall.release()
        await arrived(rig)
        assert len(keys) == len(set(keys)) >= IN_ORDER + 1 + FIRST_WINDOW


@pytest.mark.parametrize("error", [TransientS3Error("scripted"), None])
async def test_what_does_not_come_is_told_to_who_asks_only(setup: Setup, error: Exception | None) -> None:
    async with cold(setup) as (rig, directory):
        fault = rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1), nth=1)
        if error is None:
            fault.flips_byte()
        else:
            fault.raises(error)
        await read(rig, directory, range(IN_ORDER + 1))
        await arrived(rig)
        assert fault.hits == 1
        await read(rig, directory, range(FILES))


@pytest.mark.expected_log("^fetching ahead failed")
async def test_a_bug_in_fetching_keeps_nobody_waiting(setup: Setup) -> None:
    """Neither for the one under way nor for those that were to come after it."""
    async with cold(setup) as (rig, directory):

        async def stumble(wanted: Iterable[object]) -> None:
            next(iter(wanted))
            await trio.testing.wait_all_tasks_blocked(0.01)
            raise ZeroDivisionError

        rig.faults.get_each = stumble  # type: ignore[method-assign]
        with trio.fail_after(10):
            await read(rig, directory, range(FILES))
        assert rig.tracer.counts[Count.S3_GET] == FILES


@pytest.mark.expected_log("reading .*: .*the content's digest is not the stored one")
async def test_damage_is_not_cached(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1)).flips_byte()
        await read(rig, directory, range(IN_ORDER + 1))
        await arrived(rig)
        with pytest.raises(DamagedContent):
            await rig.read_file(name(IN_ORDER + 1), directory)


async def test_what_is_deleted_on_its_way_does_not_come(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", keying=Keying.VERSIONED, grace_s=0.0)
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(IN_ORDER))
        stall = rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1)).stalls()
        await read(rig, directory, [IN_ORDER])
        await stall.arrived.wait()
        await rig.fs.unlink(directory, name(IN_ORDER + 1))
        await rig.reaper.drain()
        stall.release()
        await arrived(rig)
        assert rig.tier.cache.entry_count == IN_ORDER + FIRST_WINDOW


async def test_nothing_is_evicted_for_it(setup: Setup) -> None:
    """A cache that is full stays as it is, but for what is read."""
    size = sum(len(content(number)) for number in range(10))
    async with cold(setup, cache_bytes=size) as (rig, directory):
        await read(rig, directory, range(100))
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] >= 100
        assert rig.tier.space.used_bytes <= size
        fetched, used, unused = counts(rig)
        assert used + unused <= fetched


async def test_until_they_are_read_they_are_the_first_to_go(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        await read(rig, directory, range(10))
        await arrived(rig)
        ahead = counts(rig)[0] - counts(rig)[1]
        assert ahead > 0
        before = rig.tier.cache.entry_count
        while rig.tier.cache.entry_count > before - ahead:
            await rig.tier.cache.evict(1)
        gets = rig.tracer.counts[Count.S3_GET]
        await read(rig, directory, range(10))
        assert rig.tracer.counts[Count.S3_GET] == gets


async def test_large_ones_are_left_out_and_do_not_end_the_order(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", read=ReadOptions(sibling_bytes=4 * KIB))
    async with open_rig(setup) as rig:
        random_bytes = random.Random(1).randbytes
        contents = [random_bytes(5 * KIB if number % 5 == 4 else 100) for number in range(60)]
        for number, data in enumerate(contents):
            await rig.write_file(name(number), data)
    shutil.rmtree(setup.directory / "tier")
    async with open_rig(setup) as rig:
        for number, data in enumerate(contents):
            assert await rig.read_file(name(number)) == data
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] == 60
        fetched, used, unused = counts(rig)
        assert 48 - 20 < fetched == used <= 48
        assert unused == 0


async def test_it_is_bounded_in_bytes(setup: Setup) -> None:
    limit = 3 * len(content(100))
    async with cold(setup, read=ReadOptions(siblings_bytes=limit)) as (rig, directory):
        await read(rig, directory, range(IN_ORDER))
        stall = rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1)).stalls()
        await read(rig, directory, [IN_ORDER])
        await stall.arrived.wait()
        assert 0 < rig.tier.fetcher.ahead.bytes_under_way <= limit
        stall.release()
        await read(rig, directory, range(FILES))
        assert rig.tracer.counts[Count.S3_GET] == FILES


async def test_it_is_bounded_in_requests(setup: Setup) -> None:
    async with cold(setup) as (rig, directory):
        rig.faults.on("get").delays(0.01)
        in_flight = most = 0
        get = rig.faults.get

        async def counted(key: str, **options: Any) -> ObjectData:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            try:
                return await get(key, **options)
            finally:
                in_flight -= 1

        rig.faults.get = counted  # type: ignore[method-assign]
        await read(rig, directory, range(FILES))
        assert 2 < most <= REQUESTS_MAX + 1


@pytest.mark.parametrize("read_options", [ReadOptions(siblings=0), None])
async def test_it_can_be_turned_off_and_is_for_cached_stores_only(
    setup: Setup, read_options: ReadOptions | None
) -> None:
    setup = setup if read_options else replace(setup, cached=False)
    async with cold(setup, 20, read=read_options or ReadOptions()) as (rig, directory):
        await read(rig, directory, range(10))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.tracer.counts[Count.S3_GET] == 10
        assert counts(rig) == (0, 0, 0)
        if read_options is None:
            assert rig.tier.cache.entry_count == 0


async def test_files_of_several_stores_in_one_directory(setup: Setup) -> None:
    async with cold(setup, 20) as (rig, directory):
        await add_store(rig, "other", "other/")
        other = (await rig.fs.mkdir(ROOT, b"other", 0o755, USER)).inode_id
        await rig.fs.bind_store(other, 2)
        for number in range(20, 40):
            await rig.write_file(name(number), content(number), other)
            await rig.fs.rename(other, name(number), directory, name(number))
        await rig.tier.cache.evict(1 << 30)
        rig.tracer.counts.clear()
        await read(rig, directory, range(40))
        await arrived(rig)
        assert rig.tracer.counts[Count.S3_GET] == 40
        assert counts(rig)[0] == counts(rig)[1] > 20


async def test_the_end_of_a_mount_waits_for_nothing(setup: Setup) -> None:
    async with open_rig(setup) as rig:
        await write(rig, 40)
    shutil.rmtree(setup.directory / "tier")
    async with open_rig(setup) as rig:
        directory = (await find(rig, b"d")).inode_id
        await read(rig, directory, range(IN_ORDER))
        stall = rig.faults.on("get", key=await key_of(rig, directory, IN_ORDER + 1)).stalls()
        await read(rig, directory, [IN_ORDER])
        await stall.arrived.wait()
