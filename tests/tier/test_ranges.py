"""Sets of byte ranges, against sets of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.tier.ranges import Ranges

LIMIT = 24
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, LIMIT), st.integers(0, LIMIT)), max_size=12)


@given(STEPS)
def test_they_are_what_sets_of_bytes_are(steps: list[tuple[bool, int, int]]) -> None:
    ranges, expected = Ranges(), set[int]()
    for adds, one, other in steps:
        start, end = min(one, other), max(one, other) + 1
        if adds:
            ranges.add(start, end)
            expected |= set(range(start, end))
        else:
            ranges.remove(start, end)
            expected -= set(range(start, end))
        assert ranges.end == max(expected, default=-1) + 1
        for first in range(LIMIT):
            assert ranges.covered(first, first + 1) == (first in expected)
        assert ranges.covered(0, LIMIT + 1) == len(expected)
