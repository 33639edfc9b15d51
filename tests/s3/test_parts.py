"""Which parts an object is made of, when S3 has some of its bytes already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import GIB, KIB, MIB, OBJECT_MAX_BYTES
from s3blobfs.s3.limits import COPY_MAX_BYTES, PART_MIN_BYTES, PARTS_MAX
from s3blobfs.s3.parts import Part, reusing_parts, sent_parts
from s3blobfs.s3.protocol import ObjectId, Reuse

SENT = 16 * MIB


def reuse(*ranges: tuple[int, int]) -> Reuse:
    return Reuse("bucket", ObjectId("k", "v"), "etag", ranges)


@pytest.mark.parametrize("size_mib", [64, 128, 256, 1024, 2048])
def test_what_is_appended_to_has_as_many_parts_whatever_its_size(size_mib: int) -> None:
    size_bytes = size_mib * MIB
    parts = reusing_parts(size_bytes + 4 * KIB, SENT, reuse((0, size_bytes)))
    assert parts is not None
    assert [part.copied for part in parts] == [True] * 4 + [False]
    assert parts[-1] == Part(size_bytes, 4 * KIB)


def test_what_s3_copies_is_no_part_that_takes_minutes() -> None:
    parts = reusing_parts(10 * GIB + 1, SENT, reuse((0, 10 * GIB)))
    assert parts is not None
    assert max(part.length for part in parts) == 512 * MIB


def test_a_change_in_the_middle_takes_a_whole_part_along() -> None:
    changed = 100 * MIB
    parts = reusing_parts(200 * MIB, SENT, reuse((0, changed), (changed + 1, 200 * MIB)))
    assert parts is not None
    assert [part for part in parts if not part.copied] == [Part(changed, PART_MIN_BYTES)]


def test_a_change_at_the_start() -> None:
    parts = reusing_parts(64 * MIB, SENT, reuse((1, 64 * MIB)))
    assert parts is not None
    assert parts[0] == Part(0, PART_MIN_BYTES)
    assert all(part.copied for part in parts[1:])


@pytest.mark.parametrize(
    "ranges", [(), ((0, 15 * MIB),), ((30 * MIB, 45 * MIB),), ((90 * MIB, 100 * MIB),), ((200 * MIB, GIB),)]
)
def test_little_is_not_worth_a_request(ranges: tuple[tuple[int, int], ...]) -> None:
    assert reusing_parts(100 * MIB, SENT, reuse(*ranges)) is None


@st.composite
def bodies(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    size_bytes = draw(st.integers(1, draw(st.sampled_from([100 * MIB, 10 * GIB, OBJECT_MAX_BYTES]))))
    edges = sorted(draw(st.sets(st.integers(0, size_bytes + MIB), max_size=40)))
    return size_bytes, list(zip(edges[::2], edges[1::2], strict=False))


@given(bodies(), st.sampled_from([5 * MIB, SENT, 64 * MIB]))
def test_s3_takes_the_parts(body: tuple[int, list[tuple[int, int]]], part_bytes: int) -> None:
    size_bytes, ranges = body
    parts = reusing_parts(size_bytes, part_bytes, reuse(*ranges))
    if parts is None:
        parts = sent_parts(size_bytes, part_bytes)
    position = 0
    for part in parts:
        assert part.offset == position
        assert part.length > 0
        position = part.end
        if part.copied:
            assert part.length <= COPY_MAX_BYTES
            assert any(start <= part.offset and part.end <= end for start, end in ranges)
    assert position == size_bytes
    assert all(part.length >= PART_MIN_BYTES for part in parts[:-1])
    assert len(parts) <= PARTS_MAX


def test_as_many_ranges_as_there_may_be() -> None:
    """Every second stretch of the largest object is the same."""
    step = OBJECT_MAX_BYTES // 6000
    ranges = [(start, start + step) for start in range(0, OBJECT_MAX_BYTES, 2 * step)]
    parts = reusing_parts(OBJECT_MAX_BYTES, SENT, reuse(*ranges))
    assert parts is None or len(parts) <= PARTS_MAX
