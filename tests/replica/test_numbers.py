"""Sets of numbers as runs."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.replica.numbers import Numbers


@given(st.lists(st.integers(1, 60), unique=True), st.integers(1, 60), st.integers(0, 60))
def test_they_are_what_a_set_would_be(added: list[int], first: int, last: int) -> None:
    numbers = Numbers()
    for number in added:
        numbers.add(number)
    assert len(numbers) == len(added)
    assert numbers.first == min(added, default=None)
    assert list(numbers.missing(first, last)) == sorted(set(range(first, last + 1)) - set(added))


def test_many_take_little_memory() -> None:
    tracemalloc.start()
    try:
        numbers = Numbers()
        for number in range(1, 300_000):
            numbers.add(number)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(numbers.missing(1, 300_001)) == [300_000, 300_001]
    assert peak < 10_000
