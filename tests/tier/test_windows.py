"""What is fetched for which reads: the plan alone, without I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import KIB, MIB, ReadOptions
from s3blobfs.errors import DamagedContent, TransientS3Error
from s3blobfs.tier.windows import Range, ReadAhead, Window, blocks_in, fetch_checked, pieces
from tests.tier.kit import BLOCK, FakeSource, blob_of, flip, random_bytes

OPTIONS = ReadOptions(window_bytes=4 * MIB, parallel_windows=8)


def plan(ahead: ReadAhead, offset: int, size: int) -> list[Range]:
    ahead.note(offset, size)
    return list(ahead.cut([Range(ahead.demand.start, ahead.until)]))


def test_a_jump_gets_its_blocks_and_nothing_else() -> None:
    ahead = ReadAhead(1 << 40, OPTIONS)
    assert plan(ahead, 10 * MIB + 5, 4096) == [Range(10 * MIB, 10 * MIB + BLOCK)]
    assert plan(ahead, 99 * MIB - 1, 2) == [Range(99 * MIB - BLOCK, 99 * MIB + BLOCK)]


def test_reading_on_grows_to_all_windows() -> None:
    ahead = ReadAhead(1 << 40, OPTIONS)
    fetched = 0
    sizes = []
    for offset in range(0, 200 * MIB, 128 * KIB):
        ahead.note(offset, 128 * KIB)
        for window in ahead.cut([Range(fetched, ahead.until)] if fetched < ahead.until else []):
            assert window.start == fetched
            fetched = window.end
            sizes.append(window.end - window.start)
        assert fetched >= offset + 128 * KIB
    assert sizes[0] == MIB
    assert set(sizes[20:]) == {4 * MIB}
    assert 28 * MIB <= fetched - 200 * MIB <= 32 * MIB


def test_the_kernels_order_is_reading_on() -> None:
    ahead = ReadAhead(1 << 30, OPTIONS)
    for first in range(0, 16 * MIB, 512 * KIB):
        for offset in (first + 128 * KIB, first, first + 384 * KIB, first + 256 * KIB):
            ahead.note(offset, 128 * KIB)
    assert ahead.until >= 24 * MIB


@given(
    size=st.integers(1, 40 * MIB),
    reads=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4 * MIB)), min_size=1, max_size=20),
)
def test_plans_are_aligned_inside_and_cover_what_is_asked_for(
    size: int, reads: list[tuple[float, int]]
) -> None:
    ahead = ReadAhead(size, OPTIONS)
    for where, length in reads:
        offset = min(int(where * size), size - 1)
        length = min(length, size - offset)
        windows = plan(ahead, offset, length)
        position = ahead.demand.start
        for window in windows:
            assert window.start == position
            assert window.start % BLOCK == 0
            assert window.end % BLOCK == 0 or window.end == size
            assert window.end - window.start <= OPTIONS.window_bytes
            position = window.end
        assert ahead.demand.start <= offset
        assert offset + length <= position <= size
        demanded = ahead.window_at(offset, offset + length)
        assert demanded.start <= offset < demanded.end <= size
        assert demanded.start % BLOCK == 0


def test_pieces_of_a_long_read() -> None:
    assert list(pieces(5, 10, 4)) == [(5, 4), (9, 4), (13, 2)]
    assert list(pieces(5, 0, 4)) == []


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (BLOCK, 1), (BLOCK + 1, 2)])
def test_blocks_in(size: int, count: int) -> None:
    assert blocks_in(size) == count


# --- checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 6])
async def test_one_bit_in_a_window_is_noticed(at: int) -> None:
    data = random_bytes(4 * BLOCK + 7)
    source = FakeSource(flip(data, at))
    with pytest.raises(DamagedContent, match=f"prefix/id1@v1: the checksum of block {at // BLOCK}"):
        await fetch_checked(source, blob_of(data), Range(0, 4 * BLOCK))
    assert await fetch_checked(source, blob_of(data), Range(4 * BLOCK, len(data))) == data[4 * BLOCK :]


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("checksums", [True, False])
async def test_a_whole_content_is_checked_by_its_digest(size: int, checksums: bool) -> None:
    data = random_bytes(size)
    blob = blob_of(data, checksums=checksums)
    assert await fetch_checked(FakeSource(data), blob, Range(0, size)) == data
    with pytest.raises(DamagedContent, match="prefix/id1@v1: the content's digest"):
        await fetch_checked(FakeSource(flip(data, size - 1)), blob, Range(0, size))


async def test_both_digests_count() -> None:
    """An MD5 collision made on purpose is not the content."""
    data = random_bytes(100)
    blob = blob_of(data)
    forged = replace(blob, digests=replace(blob.digests, sha256=bytes(32)))
    with pytest.raises(DamagedContent):
        await fetch_checked(FakeSource(data), forged, Range(0, 100))


@pytest.mark.parametrize("checksums", [True, False])
async def test_length_always_counts(checksums: bool) -> None:
    data = random_bytes(4 * BLOCK)
    source = FakeSource(data)
    source.answer = lambda call, answer: answer[:-1]
    with pytest.raises(DamagedContent, match="bytes came where"):
        await fetch_checked(source, blob_of(data, checksums=checksums), Range(0, BLOCK))


async def test_checksums_that_are_too_few_match_nothing() -> None:
    data = random_bytes(4 * BLOCK)
    blob = blob_of(data)
    short = replace(blob, digests=replace(blob.digests, checksums=blob.digests.checksums[:-4]))
    with pytest.raises(DamagedContent):
        await fetch_checked(FakeSource(data), short, Range(2 * BLOCK, 4 * BLOCK))


# --- windows under way --------------------------------------------------------------------------------


async def test_an_error_reaches_all_who_wait() -> None:
    window = Window(Range(0, 1))
    seen: list[Exception] = []

    async def wait() -> None:
        try:
            await window.wait()
        except TransientS3Error as error:
            seen.append(error)

    async def work() -> bytes:
        await trio.testing.wait_all_tasks_blocked()
        raise TransientS3Error("scripted")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await window.run(work, lambda _: None)
    assert [str(error) for error in seen] == ["scripted"] * 3


async def test_a_cancelled_window_is_an_error_for_who_waits() -> None:
    window = Window(Range(0, 1))
    window.cancel()

    async def work() -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    ended: list[Window] = []
    await window.run(work, ended.append)
    assert ended == [window]
    with pytest.raises(TransientS3Error):
        await window.wait()
