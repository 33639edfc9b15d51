"""A test clock that stands still while worker threads are at work."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio
from outcome import Outcome
from trio.testing import MockClock

T = TypeVar("T")


def stand_still_for_threads(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread does takes real time, in which no task can run. trio's clock takes that for a wait and
    jumps to the next deadline: on a busy machine a sync of the disk would then outlast any patience."""
    start = trio.lowlevel.start_thread_soon
    threshold = clock.autojump_threshold
    working = 0

    def ended() -> None:
        nonlocal working
        working -= 1
        if working == 0:
            clock.autojump_threshold = threshold

    def start_counted(
        function: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str | None = None
    ) -> None:
        nonlocal working
        token = trio.lowlevel.current_trio_token()

        def deliver_and_leave(result: Outcome[T]) -> None:
            deliver(result)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(ended)

        start(function, deliver_and_leave, name)
        working += 1
        clock.autojump_threshold = math.inf

    monkeypatch.setattr("trio.lowlevel.start_thread_soon", start_counted)
    monkeypatch.setattr("trio._threads.start_thread_soon", start_counted)  # of trio.to_thread
