"""Python's search for cycles: seldom, and not among what is there for good."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from s3blobfs.process import GARBAGE_THRESHOLDS, look_for_garbage_seldom


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_there_is_left_alone_and_cycles_are_found_all_the_same() -> None:
    look_for_garbage_seldom()
    assert gc.get_threshold() == GARBAGE_THRESHOLDS
    assert gc.get_freeze_count() > 0

    class Ring:
        gone = 0

        def __init__(self) -> None:
            self.self = self

        def __del__(self) -> None:
            Ring.gone += 1

    for _ in range(2 * GARBAGE_THRESHOLDS[0]):
        Ring()
    assert Ring.gone > 0
