"""Reading past the cache: nothing on the disk, a bound on memory, no window twice."""

from __future__ import annotations

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
from s3blobfs.tier.memory import MemoryBudget
from s3blobfs.tier.streaming import StreamReader
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Count, Tracer
from tests.tier.conftest import MakeTier
from tests.tier.kit import (
    BLOCK,
    READ_EDGES,
    SMALL,
    SMALL_READS,
    WINDOW,
    FakeSource,
    blob_of,
    cancelled_when_blocked,
    flip,
    nothing_under_way,
    random_bytes,
    read_all,
    settled,
)


@pytest.fixture
async def running(tier: Tier, nursery: trio.Nursery) -> Tier:
    """Not even started, which would leave the file of its session on the disk."""
    await nursery.start(tier.run)
    return tier


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize("size", READ_EDGES)
@pytest.mark.parametrize("checksums", [True, False])
async def test_all_is_read_once_and_nothing_is_on_the_disk(
    running: Tier, tracer: Tracer, size: int, checksums: bool
) -> None:
    data = random_bytes(size)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data, checksums=checksums), source, False)
    assert await read_all(reader) == data
    assert await reader.read(size, 1) == b""
    assert await reader.read(size + 5, 1) == b""
    source.assert_nothing_twice()
    assert source.fetched_bytes == size
    if 0 < size <= SMALL:
        assert len(source.calls) == 1
    assert files_below(running.layout.directory) == []
    await reader.aclose()
    await settled(running)
    assert running.fetcher.memory_bytes == 0
    assert running.space.used_bytes == 0
    assert tracer.counts[Count.CACHE_MISS] == tracer.counts[Count.CACHE_HIT] == 0


async def test_windows_are_bounded_and_at_the_same_time(running: Tier) -> None:
    data = random_bytes(12 * MIB)
    source = FakeSource(data, delay_s=0.002)
    reader = await running.fetcher.open(blob_of(data), source, False)
    assert isinstance(reader, StreamReader)
    most = 0
    for offset in range(0, len(data), 64 * KIB):
        assert await reader.read(offset, 64 * KIB) == data[offset : offset + 64 * KIB]
        assert reader.window_count <= SMALL_READS.parallel_windows
        most = max(most, reader.window_count)
    assert most == SMALL_READS.parallel_windows
    assert source.most_in_flight >= 2
    source.assert_nothing_twice()
    await reader.aclose()


async def test_slightly_out_of_order_reads_fetch_nothing_twice(running: Tier) -> None:
    """As the kernel's readahead does it: several requests at once, in no order."""
    data = random_bytes(6 * MIB)
    source = FakeSource(data, delay_s=0.001)
    reader = await running.fetcher.open(blob_of(data), source, False)

    async def one(offset: int) -> None:
        assert await reader.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]

    for start in range(0, len(data), 512 * KIB):
        async with trio.open_nursery() as nursery:
            for part in (2, 0, 3, 1):
                nursery.start_soon(one, start + part * 128 * KIB)
    source.assert_nothing_twice()
    await reader.aclose()


async def test_many_reads_at_once_keep_the_bound(running: Tier) -> None:
    data = random_bytes(16 * MIB)
    source = FakeSource(data, delay_s=0.001)
    reader = await running.fetcher.open(blob_of(data), source, False)
    assert isinstance(reader, StreamReader)

    async def one(offset: int) -> None:
        assert await reader.read(offset, 1000) == data[offset : offset + 1000]

    async with trio.open_nursery() as nursery:
        for offset in range(0, len(data), MIB):
            nursery.start_soon(one, offset + 7)
    assert source.most_in_flight <= SMALL_READS.parallel_windows
    await reader.aclose()
    await settled(running)
    assert running.fetcher.memory_bytes == 0


async def test_jumps_fetch_their_blocks_only(running: Tier) -> None:
    data = random_bytes(16 * MIB)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, False)
    for offset in (9 * MIB, 2 * MIB, 14 * MIB + 5):
        await reader.read(offset, 4096)
    assert [call.length for call in source.calls] == [BLOCK] * 3
    await reader.read(9 * MIB + 100, 10)
    assert len(source.calls) == 3
    await reader.aclose()


async def test_one_long_read_within_the_bound(running: Tier) -> None:
    data = random_bytes(9 * MIB + 1)
    source = FakeSource(data)
    reader = await running.fetcher.open(blob_of(data), source, False)
    assert await reader.read(0, len(data)) == data
    source.assert_nothing_twice()
    assert running.fetcher.memory_bytes <= SMALL_READS.parallel_windows * WINDOW
    await reader.aclose()


# --- memory over all readers --------------------------------------------------------------------------


async def test_memory_of_all_readers_is_bounded(make_tier: MakeTier, nursery: trio.Nursery) -> None:
    options = replace(SMALL_READS, memory_limit_bytes=2 * MIB)
    tier = make_tier(read=options)
    await nursery.start(tier.run)
    data = random_bytes(6 * MIB)
    count, most = 6, 0

    async def one() -> None:
        nonlocal most
        reader = await tier.fetcher.open(blob_of(data), FakeSource(data, delay_s=0.0005), False)
        for offset in range(0, len(data), 128 * KIB):
            assert await reader.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]
            most = max(most, tier.fetcher.memory_bytes)
        await reader.aclose()

    async with trio.open_nursery() as readers:
        for _ in range(count):
            readers.start_soon(one)
    assert most <= options.memory_limit_bytes + count * WINDOW
    await settled(tier)
    assert tier.fetcher.memory_bytes == 0


async def test_a_reader_always_gets_its_window(make_tier: MakeTier, nursery: trio.Nursery) -> None:
    tier = make_tier(read=replace(SMALL_READS, memory_limit_bytes=0, parallel_windows=1))
    await nursery.start(tier.run)
    data = random_bytes(3 * MIB)
    for size in (SMALL, len(data)):
        source = FakeSource(data[:size])
        reader = await tier.fetcher.open(blob_of(data[:size]), source, False)
        assert await read_all(reader) == data[:size]
        await reader.aclose()
    await settled(tier)
    assert tier.fetcher.memory_bytes == 0


async def test_small_contents_are_kept_while_open_and_memory_lasts(
    make_tier: MakeTier, nursery: trio.Nursery
) -> None:
    tier = make_tier(read=replace(SMALL_READS, memory_limit_bytes=2 * 100 * KIB))
    await nursery.start(tier.run)
    contents = [random_bytes(100 * KIB, seed) for seed in range(3)]
    sources = [FakeSource(data) for data in contents]
    readers = [
        await tier.fetcher.open(blob_of(data, name=f"key{number}"), source, False)
        for number, (data, source) in enumerate(zip(contents, sources, strict=True))
    ]
    for _ in range(3):
        for number in (0, 1):
            assert await read_all(readers[number], 10_000) == contents[number]
    assert [len(source.calls) for source in sources] == [1, 1, 0]
    await readers[0].read(0, 1)
    await readers[2].read(0, 1)  # in the place of the least recently used
    await readers[0].read(0, 1)
    assert [len(source.calls) for source in sources] == [1, 1, 1]
    assert await read_all(readers[1]) == contents[1]
    assert len(sources[1].calls) == 2
    assert tier.fetcher.memory_bytes <= 200 * KIB
    for reader in readers:
        await reader.aclose()
    await settled(tier)
    assert tier.fetcher.memory_bytes == 0


async def test_readers_of_a_small_content_fetch_it_once(running: Tier) -> None:
    data = random_bytes(1000)
    source = FakeSource(data, delay_s=0.01)
    readers = [await running.fetcher.open(blob_of(data), source, False) for _ in range(10)]
    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(reader.read, 0, 1000)
    assert len(source.calls) == 1
    for reader in readers:
        assert await reader.read(10, 10) == data[10:20]
        await reader.aclose()
    await settled(running)
    assert running.fetcher.memory_bytes == 0


def test_budget_prefers_who_waits() -> None:
    budget = MemoryBudget(100)
    budget.take(60)
    assert budget.try_take(40)
    assert not budget.try_take(1)
    budget.take(1)
    assert budget.exceeded
    budget.give_back(101)
    given_up: list[str] = []

    def keeper(name: str) -> None:
        given_up.append(name)
        budget.give_back(40)

    for name in ("old", "new"):
        budget.take(40)
        budget.keep(name, lambda name=name: keeper(name))  # type: ignore[misc]
    assert budget.try_take(30)
    assert given_up == ["old"]
    budget.forget("new")
    budget.take(100)
    assert given_up == ["old"]


# --- damage, errors, cancellation ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 4 * MIB])
async def test_a_flipped_bit_is_never_returned_and_the_next_read_tries_anew(running: Tier, size: int) -> None:
    data = random_bytes(size)
    source = FakeSource(data)
    source.answer = lambda call, answer: flip(answer, len(answer) // 2)
    reader = await running.fetcher.open(blob_of(data), source, False)
    for _ in range(2):
        with pytest.raises(DamagedContent, match="prefix/id1@v1"):
            await reader.read(0, 100)
    await nothing_under_way(running)
    source.answer = lambda call, answer: answer
    assert await read_all(reader) == data
    await reader.aclose()
    await settled(running)
    assert running.fetcher.memory_bytes == 0


async def test_errors_reach_all_readers_of_a_small_content(running: Tier) -> None:
    source = FakeSource(b"abc", delay_s=0.01)
    broken = True

    def answer(_: object, answer: bytes) -> bytes:
        if broken:
            raise TransientS3Error("scripted")
        return answer

    source.answer = answer
    readers = [await running.fetcher.open(blob_of(b"abc"), source, False) for _ in range(3)]

    async def one(reader: ContentReader) -> None:
        with pytest.raises(TransientS3Error, match="scripted"):
            await reader.read(0, 3)

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(one, reader)
    assert len(source.calls) == 1
    broken = False
    for reader in readers:
        assert await reader.read(0, 3) == b"abc"
        await reader.aclose()


async def test_an_error_ahead_is_told_when_it_is_read(running: Tier) -> None:
    data = random_bytes(6 * MIB)
    source = FakeSource(data)
    source.answer = lambda call, answer: flip(answer) if call.end > 3 * MIB else answer
    reader = await running.fetcher.open(blob_of(data), source, False)
    for offset in range(0, 2 * MIB, 128 * KIB):
        assert await reader.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]
    with pytest.raises(DamagedContent):
        await reader.read(3 * MIB, 128 * KIB)
    await reader.aclose()


@pytest.mark.parametrize("size", [1000, 6 * MIB])
async def test_closing_cancels_what_is_under_way(running: Tier, size: int) -> None:
    data = random_bytes(size)
    source = FakeSource(data)
    source.gate = trio.Event()
    reader = await running.fetcher.open(blob_of(data), source, False)
    await cancelled_when_blocked(reader.read, 0, 1000)
    in_flight = source.in_flight
    assert in_flight > 0
    await reader.aclose()
    await settled(running)
    assert source.cancelled == in_flight
    assert running.fetcher.memory_bytes == 0


async def test_a_cancelled_read_leaves_the_window_to_the_next(running: Tier) -> None:
    data = random_bytes(6 * MIB)
    source = FakeSource(data)
    source.gate = trio.Event()
    reader = await running.fetcher.open(blob_of(data), source, False)
    await cancelled_when_blocked(reader.read, 0, 1000)
    source.gate.set()
    assert await read_all(reader) == data
    source.assert_nothing_twice()
    await reader.aclose()


Reads = list[tuple[float, int]]


async def _read_at_random(directory: Path, readers: list[Reads]) -> None:
    data = random_bytes(4 * MIB + 77)
    tier = Tier(TierOptions(directory, min_free_bytes=0), SMALL_READS, Tracer())
    async with trio.open_nursery() as nursery:
        await nursery.start(tier.run)
        reader = await tier.fetcher.open(blob_of(data), FakeSource(data, delay_s=0.0005), False)
        assert isinstance(reader, StreamReader)

        async def one(reads: Reads) -> None:
            for where, length in reads:
                offset = int(where * len(data))
                assert await reader.read(offset, length) == data[offset : offset + length]
                assert reader.window_count <= SMALL_READS.parallel_windows

        async with trio.open_nursery() as reading:
            for reads in readers:
                reading.start_soon(one, reads)
        await reader.aclose()
        await settled(tier)
        nursery.cancel_scope.cancel()
    await tier.aclose()


@settings(deadline=None, max_examples=40)
@given(
    readers=st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 900 * KIB)), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    )
)
def test_reads_of_one_reader_at_random(readers: list[Reads]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_read_at_random, Path(directory), readers)
