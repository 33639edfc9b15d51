"""Reading into the cache: single flight, checks, cancellation, and what happens when there is no room."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3blobfs.config import KIB, MIB, TierOptions
from s3blobfs.errors import DamagedContent, TransientS3Error
from s3blobfs.tier.fetch import ContentReader
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Count, Local, Tracer
from tests.tier.conftest import MakeTier
from tests.tier.kit import (
    BLOCK,
    READ_EDGES,
    SMALL,
    SMALL_READS,
    WINDOW,
    FakeSource,
    assert_no_leftovers,
    blob_of,
    cancelled_when_blocked,
    flip,
    nothing_under_way,
    random_bytes,
    read_all,
    settled,
)


@pytest.mark.parametrize("size", READ_EDGES)
@pytest.mark.parametrize("checksums", [True, False])
async def test_read_through_and_from_the_cache(
    running: Tier, tracer: Tracer, size: int, checksums: bool
) -> None:
    data = random_bytes(size)
    blob = blob_of(data, checksums=checksums)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob, source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(running)
    source.assert_nothing_twice()
    assert source.fetched_bytes == size
    if 0 < size <= SMALL:
        assert len(source.calls) == 1
    assert_no_leftovers(running)
    assert running.space.cached_bytes == size
    reader = await running.fetcher.open(blob, source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    assert source.fetched_bytes == size
    if size:
        assert (tracer.counts[Count.CACHE_MISS], tracer.counts[Count.CACHE_HIT]) == (1, 1)


async def test_the_whole_is_verified_when_a_reader_is_through(running: Tier) -> None:
    """Not before: it takes the processor from those who wait."""
    data = random_bytes(4 * MIB)
    blob, source = blob_of(data), FakeSource(data)
    first, second = [await running.fetcher.open(blob, source, True) for _ in range(2)]
    await second.read(len(data) - BLOCK, 10)
    for offset in range(0, len(data) - BLOCK, BLOCK):
        await first.read(offset, BLOCK)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert source.fetched_bytes == len(data)
    assert not running.cache.contains(1, "id1@v1")
    await first.read(len(data) - BLOCK, BLOCK)
    while not running.cache.contains(1, "id1@v1"):  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.001)
    for reader in (first, second):
        await reader.aclose()
    source.assert_nothing_twice()


async def test_the_whole_is_verified_when_its_readers_have_left(running: Tier) -> None:
    data = random_bytes(4 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    for offset in reversed(range(0, len(data), BLOCK)):
        await reader.read(offset, BLOCK - 1)
    await reader.aclose()
    await settled(running)
    assert running.cache.contains(1, "id1@v1")


async def test_the_fill_is_drawn_as_a_rename(running: Tier, steps: list[str]) -> None:
    for size in (100, 3 * MIB):
        data = random_bytes(size)
        reader = await running.fetcher.open(blob_of(data, name=f"id{size}@v"), FakeSource(data), True)
        await read_all(reader)
        await settled(running)
        assert steps[-1] == f"Cache --> Cache: rename # id{size}@v"
        await reader.aclose()


async def test_nothing_is_fetched_before_it_is_read(running: Tier) -> None:
    source = FakeSource(b"abc")
    reader = await running.fetcher.open(blob_of(b"abc"), source, True)
    await trio.testing.wait_all_tasks_blocked()
    assert source.calls == []
    await reader.aclose()


async def test_windows_are_fetched_at_the_same_time_and_bounded(running: Tier) -> None:
    data = random_bytes(8 * MIB)
    source = FakeSource(data, delay_s=0.005)
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    assert 2 <= source.most_in_flight <= SMALL_READS.parallel_windows + 1
    assert max(call.length for call in source.calls) == WINDOW


async def test_one_long_read(running: Tier) -> None:
    data = random_bytes(8 * MIB + 1)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await reader.read(0, len(data)) == data
    await reader.aclose()
    source.assert_nothing_twice()


async def test_a_jump_fetches_its_blocks_only(running: Tier) -> None:
    data = random_bytes(8 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await reader.read(5 * MIB + 10, 100) == data[5 * MIB + 10 : 5 * MIB + 110]
    assert [(call.offset, call.length) for call in source.calls] == [(5 * MIB, BLOCK)]
    await reader.aclose()
    await settled(running)
    assert_no_leftovers(running)
    assert running.space.used_bytes == 0


# --- single flight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 4 * MIB])
async def test_any_number_of_readers_fetch_once(running: Tier, size: int) -> None:
    data = random_bytes(size)
    blob = blob_of(data)
    source = FakeSource(data, delay_s=0.002)

    async def one(step: int) -> None:
        reader = await running.fetcher.open(blob, source, True)
        assert await read_all(reader, step) == data
        await reader.aclose()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, 64 * KIB + 10_000 * number)
    await settled(running)
    source.assert_nothing_twice()
    assert source.fetched_bytes == size
    assert_no_leftovers(running)


async def test_reads_of_one_reader_at_the_same_time(running: Tier) -> None:
    data = random_bytes(4 * MIB)
    source = FakeSource(data, delay_s=0.001)
    reader = await running.fetcher.open(blob_of(data), source, True)

    async def one(offset: int) -> None:
        assert await reader.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]

    async with trio.open_nursery() as nursery:
        for offset in range(0, len(data), 128 * KIB):
            nursery.start_soon(one, offset)
    await reader.aclose()
    source.assert_nothing_twice()


async def test_a_staged_promotion_wins_over_a_fill(running: Tier) -> None:
    data = random_bytes(1000)
    blob = blob_of(data)
    source = FakeSource(data)
    source.gate = trio.Event()
    reader = await running.fetcher.open(blob, source, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        staged = await running.staging.create(Local.CACHE)
        await staged.write(0, data)
        await staged.seal(rename=True)
        entry = await running.cache.promote(staged, 1, "id1@v1")
        assert entry is not None
        source.gate.set()
    assert await reader.read(0, 1000) == data
    await reader.aclose()
    entry.unpin()
    assert_no_leftovers(running)
    assert running.space.used_bytes == 1000
    assert running.cache.pinned_count == 0


Reads = list[tuple[float, int]]


async def _read_at_random(directory: Path, readers: list[Reads]) -> None:
    data = random_bytes(3 * MIB + 77)
    source = FakeSource(data, delay_s=0.0005)
    tier = Tier(TierOptions(directory, min_free_bytes=0), SMALL_READS, Tracer())

    async def one(reader: ContentReader, reads: Reads) -> None:
        for where, length in reads:
            offset = int(where * len(data))
            assert await reader.read(offset, length) == data[offset : offset + length]

    async with trio.open_nursery() as nursery:
        await nursery.start(tier.run)
        opened = [await tier.fetcher.open(blob_of(data), source, True) for _ in readers]
        async with trio.open_nursery() as reading:
            for reader, reads in zip(opened, readers, strict=True):
                reading.start_soon(one, reader, reads)
        for reader in opened:  # only now: with the last reader goes what it did not need
            await reader.aclose()
        await settled(tier)
        nursery.cancel_scope.cancel()
    source.assert_nothing_twice()
    tier.cache.remove(1, "id1@v1")
    assert_no_leftovers(tier)
    assert tier.space.used_bytes == 0
    await tier.aclose()


@settings(deadline=None, max_examples=40)
@given(
    readers=st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 700 * KIB)), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
    )
)
def test_readers_at_random(readers: list[Reads]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_read_at_random, Path(directory), readers)


# --- damage and errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 4 * MIB])
async def test_a_flipped_bit_is_never_returned_and_the_next_read_tries_anew(running: Tier, size: int) -> None:
    data = random_bytes(size)
    source = FakeSource(data)
    source.answer = lambda call, answer: flip(answer, len(answer) // 2)
    readers = [await running.fetcher.open(blob_of(data), source, True) for _ in range(3)]
    failures = 0

    async def one(reader: ContentReader) -> None:
        nonlocal failures
        with pytest.raises(DamagedContent, match="prefix/id1@v1"):
            await reader.read(0, 100)
        failures += 1

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(one, reader)
    assert failures == 3
    await nothing_under_way(running)
    assert not running.cache.contains(1, "id1@v1")
    source.answer = lambda call, answer: answer
    for reader in readers:
        assert await read_all(reader) == data
        await reader.aclose()
    await settled(running)
    assert_no_leftovers(running)


async def test_an_error_in_the_middle(running: Tier) -> None:
    data = random_bytes(4 * MIB)
    source = FakeSource(data)
    broken = True

    def answer(call: object, answer: bytes) -> bytes:
        if broken and data.find(answer[:64]) + len(answer) > 2 * MIB:
            raise TransientS3Error("scripted")
        return answer

    source.answer = answer
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await reader.read(0, MIB) == data[:MIB]
    with pytest.raises(TransientS3Error):
        await reader.read(MIB, 3 * MIB)
    broken = False
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(running)
    assert running.space.cached_bytes == len(data)
    assert_no_leftovers(running)


async def test_a_bug_in_the_source_does_not_end_the_mount(running: Tier) -> None:
    source = FakeSource(b"abc")

    def answer(*_: object) -> bytes:
        raise ZeroDivisionError

    source.answer = answer
    reader = await running.fetcher.open(blob_of(b"abc"), source, True)
    with pytest.raises(ZeroDivisionError):
        await reader.read(0, 3)
    await reader.aclose()
    assert_no_leftovers(running)


@pytest.mark.expected_log("the content's digest is not the stored one")
async def test_blocks_right_and_digest_wrong_is_not_cached(running: Tier) -> None:
    """Without checksums the whole is checked before it gets its name, and then only."""
    data = random_bytes(2 * MIB)
    blob = blob_of(data, checksums=False)
    source = FakeSource(data)
    source.answer = lambda call, answer: flip(answer) if call.offset else answer
    reader = await running.fetcher.open(blob, source, True)
    await reader.read(0, len(data))
    with pytest.raises(DamagedContent, match="prefix/id1@v1"), trio.fail_after(5):
        while True:
            await reader.read(0, 10)
            await trio.sleep(0.001)
    assert not running.cache.contains(1, "id1@v1")
    source.answer = lambda call, answer: answer
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(running)
    assert running.cache.contains(1, "id1@v1")
    assert_no_leftovers(running)


@pytest.mark.expected_log("was altered")
async def test_a_flipped_bit_in_the_cache_is_never_returned(running: Tier) -> None:
    data = random_bytes(1000)
    blob = blob_of(data)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob, source, True)
    await reader.read(0, 1)
    await reader.aclose()
    path = running.layout.store(1).path / "id1@v1"
    path.write_bytes(flip(data))
    reader = await running.fetcher.open(blob, source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    assert len(source.calls) == 2


# --- cancellation -------------------------------------------------------------------------------------


async def test_a_cancelled_reader_does_not_disturb_the_others(running: Tier) -> None:
    data = random_bytes(4 * MIB)
    source = FakeSource(data)
    source.gate = trio.Event()
    first = await running.fetcher.open(blob_of(data), source, True)
    second = await running.fetcher.open(blob_of(data), source, True)

    async def patient() -> None:
        assert await second.read(0, 1000) == data[:1000]

    async with trio.open_nursery() as nursery, trio.open_nursery() as hasty:
        hasty.start_soon(first.read, 0, 1000)
        nursery.start_soon(patient)
        await trio.testing.wait_all_tasks_blocked()
        hasty.cancel_scope.cancel()
        await first.aclose()
        source.gate.set()
    assert source.cancelled == 0
    await second.aclose()


async def test_the_last_reader_takes_the_fill_with_it(running: Tier) -> None:
    data = random_bytes(8 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    await reader.read(0, MIB)
    await trio.testing.wait_all_tasks_blocked()
    source.gate = trio.Event()
    await cancelled_when_blocked(reader.read, 4 * MIB, MIB)
    in_flight = source.in_flight
    assert in_flight > 0
    await reader.aclose()
    assert running.fetcher.fill_count == 0
    await settled(running)
    assert source.cancelled == in_flight
    assert_no_leftovers(running)
    assert running.space.used_bytes == 0


async def test_what_is_nearly_complete_is_completed(running: Tier) -> None:
    data = random_bytes(8 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    await reader.read(0, 8 * MIB - MIB // 2)
    await reader.aclose()
    await settled(running)
    assert running.cache.contains(1, "id1@v1")
    source.assert_nothing_twice()
    assert_no_leftovers(running)


async def test_completing_without_readers_ends_at_an_error(running: Tier) -> None:
    data = random_bytes(8 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    for first in range(4):  # by jumps, so that nothing is fetched ahead
        for offset in range(first * WINDOW, 15 * WINDOW, 4 * WINDOW):
            await reader.read(offset, WINDOW)
    assert source.fetched_bytes == 15 * WINDOW
    source.answer = lambda call, answer: flip(answer)
    await reader.aclose()
    await settled(running)
    assert source.fetched_bytes == 17 * WINDOW  # the last one twice: perhaps it was damaged on its way
    assert not running.cache.contains(1, "id1@v1")
    assert_no_leftovers(running)


async def test_the_end_of_the_mount_wakes_who_waits(tier: Tier) -> None:
    source = FakeSource(random_bytes(100))
    source.gate = trio.Event()
    reader = await tier.fetcher.open(blob_of(source.data), source, True)

    async def wait() -> None:
        with pytest.raises(TransientS3Error):
            await reader.read(0, 1)

    async with trio.open_nursery() as readers, trio.open_nursery() as mount:
        await mount.start(tier.run)
        readers.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mount.cancel_scope.cancel()
    await reader.aclose()
    assert_no_leftovers(tier)
    reader = await tier.fetcher.open(blob_of(source.data), source, True)
    with pytest.raises(RuntimeError, match="not running"):
        await reader.read(0, 1)
    await reader.aclose()


# --- no room ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 4 * MIB])
async def test_what_has_no_room_is_read_past_the_cache(
    make_tier: MakeTier, nursery: trio.Nursery, size: int
) -> None:
    tier = make_tier(size_limit_bytes=5 * MIB)
    await nursery.start(tier.run)
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, bytes(5 * MIB - 500))
    data = random_bytes(size)
    source = FakeSource(data)
    reader = await tier.fetcher.open(blob_of(data), source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(tier)
    assert_no_leftovers(tier)
    assert tier.space.cached_bytes == 0


async def test_what_is_larger_than_the_tier_evicts_nothing(
    make_tier: MakeTier, nursery: trio.Nursery
) -> None:
    tier = make_tier(size_limit_bytes=3 * MIB)
    await nursery.start(tier.run)
    small, large = random_bytes(1000), random_bytes(4 * MIB)
    for name, data in (("small", small), ("large", large)):
        reader = await tier.fetcher.open(blob_of(data, name=name), FakeSource(data), True)
        assert await read_all(reader) == data
        await reader.aclose()
    assert tier.cache.contains(1, "small")


@pytest.mark.expected_log("is read past the cache: .*scripted")
async def test_a_broken_disk_does_not_keep_anyone_from_reading(
    running: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(4 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await reader.read(0, 1000) == data[:1000]

    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(running)
    assert_no_leftovers(running)


async def test_versions_of_a_file_do_not_mix(running: Tier) -> None:
    old, new = random_bytes(1000, 1), random_bytes(1000, 2)
    for name, data in (("id1@v1", old), ("id1@v2", new)):
        blob = replace(blob_of(data, name=name), blob_id=7)
        reader = await running.fetcher.open(blob, FakeSource(data), True)
        assert await read_all(reader) == data
        await reader.aclose()


async def test_who_opened_early_reads_what_another_cached(running: Tier) -> None:
    data = random_bytes(1000)
    early_source, source = FakeSource(data), FakeSource(data)
    early = await running.fetcher.open(blob_of(data), early_source, True)
    reader = await running.fetcher.open(blob_of(data), source, True)
    assert await read_all(reader) == data
    await reader.aclose()
    assert await read_all(early) == data
    await early.aclose()
    assert early_source.calls == []
    assert running.cache.pinned_count == 0


@pytest.mark.expected_log("is read past the cache: .*scripted")
@pytest.mark.expected_log("id1@v1 cannot be used and is dropped: .*scripted")
async def test_an_entry_the_disk_cannot_read_is_read_from_s3(
    running: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(1000)
    source = FakeSource(data)
    for _ in range(2):
        reader = await running.fetcher.open(blob_of(data), source, True)
        assert await read_all(reader) == data
        await reader.aclose()

        def preadv(*_: object) -> int:
            raise OSError(errno.EIO, "scripted")

        monkeypatch.setattr(os, "preadv", preadv)
    assert len(source.calls) == 2
    assert not running.cache.contains(1, "id1@v1")


@pytest.mark.expected_log("prefix/id1@v1 cannot be cached: .*scripted")
@pytest.mark.parametrize(("size", "call"), [(1000, "rename"), (4 * MIB, "rename"), (4 * MIB, "verify")])
async def test_a_whole_content_the_disk_refuses_to_keep(
    running: Tier, monkeypatch: pytest.MonkeyPatch, size: int, call: str
) -> None:
    data = random_bytes(size)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, True)

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "scripted")

    async def file_is_content(*_: object) -> None:
        raise OSError(errno.EIO, "scripted")

    if call == "rename":
        monkeypatch.setattr(os, "rename", rename)
    else:
        monkeypatch.setattr("s3blobfs.tier.filling.file_is_content", file_is_content)
    assert await read_all(reader) == data
    assert await read_all(reader) == data  # out of the file that has no name
    source.assert_nothing_twice()
    await reader.aclose()
    await settled(running)
    assert running.space.used_bytes == 0
    assert_no_leftovers(running)
