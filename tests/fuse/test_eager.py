"""The eager loop: what is there is taken at once, and other tasks get their turn all the same."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from s3blobfs.fuse.extension.eager import TIME_SLICE_S, EagerWaiting, Turn, eager_loop


class Clock:
    """Each look at it takes some time."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_what_is_there_is_taken_without_a_turn_of_the_scheduler(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    waiting = EagerWaiting(clock=Clock(0.0))
    with trio.testing.assert_no_checkpoints():
        for _ in range(1000):
            await waiting.wait_readable(pipe[0])


async def test_other_tasks_get_a_turn_in_each_time_slice(
    pipe: tuple[int, int], nursery: trio.Nursery
) -> None:
    """However many requests are waiting: the longest time between two turns of another task is bounded."""
    os.write(pipe[1], b"x")
    clock = Clock(TIME_SLICE_S / 50)
    waiting = EagerWaiting(clock=clock)
    turns = [clock.now_s]

    async def in_the_background() -> None:
        while True:
            turns.append(clock.now_s)
            await trio.lowlevel.checkpoint()

    nursery.start_soon(in_the_background)
    for _ in range(10_000):
        await waiting.wait_readable(pipe[0])
    nursery.cancel_scope.cancel()
    assert len(turns) > 100
    waits = [later - earlier for earlier, later in itertools.pairwise(turns)]
    # trio shuffles what it runs in one round, so that two slices may come between two turns.
    assert max(waits) <= TIME_SLICE_S * 2.1


async def test_it_waits_for_what_is_not_there(pipe: tuple[int, int], nursery: trio.Nursery) -> None:
    waiting = EagerWaiting()
    readable = trio.Event()

    async def wait() -> None:
        await waiting.wait_readable(pipe[0])
        readable.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not readable.is_set()
    os.write(pipe[1], b"x")
    await readable.wait()


async def test_closing_wakes_who_waits(pipe: tuple[int, int], nursery: trio.Nursery) -> None:
    """As ``pyfuse3.terminate`` does."""
    waiting = EagerWaiting()
    woken = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await waiting.wait_readable(pipe[0])
        woken.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.notify_closing(pipe[0])
    await woken.wait()


async def test_a_turn_is_one_tasks_at_a_time(nursery: trio.Nursery) -> None:
    turn = Turn()
    inside = 0
    seen = []

    async def take() -> None:
        nonlocal inside
        for _ in range(20):
            async with turn:
                inside += 1
                await trio.lowlevel.checkpoint()
                seen.append(inside)
                inside -= 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as takers:
        for _ in range(5):
            takers.start_soon(take)
    assert seen == [1] * 100


async def test_a_free_turn_costs_no_turn_of_the_scheduler() -> None:
    turn = Turn()
    with trio.testing.assert_no_checkpoints():
        async with turn:
            pass


async def test_a_cancelled_waiter_does_not_keep_the_turn(nursery: trio.Nursery) -> None:
    turn = Turn()
    async with turn:
        with trio.move_on_after(0):
            async with turn:
                raise AssertionError("two have the turn")
    with trio.testing.assert_no_checkpoints():
        async with turn:
            pass


def test_pyfuse3_has_its_own_loop_afterwards() -> None:
    with eager_loop():
        assert vars(pyfuse3)["trio"] is not trio
        assert vars(pyfuse3)["trio"].open_nursery is trio.open_nursery
    assert vars(pyfuse3)["trio"] is trio
