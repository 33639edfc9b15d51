"""A hop to a worker thread and back, at two thirds of the cost of ``trio.to_thread.run_sync``.

That one names the thread after each job (two calls into pthread, each of which gives the interpreter lock
away and waits for it again), copies the context for it, lets it call back into trio, and takes a turn of the
scheduler for the limiter. Nothing here needs any of that, and small files make two or three hops each. The
threads are trio's own (``trio.lowlevel.start_thread_soon``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")


async def run_in_thread(
    function: Callable[[], T], limiter: trio.CapacityLimiter, *, abandon_on_cancel: bool = False
) -> T:
    """Answer ``function()``, or raise what it raises. A trio checkpoint.

    Cancelled, it waits all the same until the thread is done; with ``abandon_on_cancel`` it leaves the
    thread, whose answer is dropped. The limiter counts a thread as long as it works."""
    await trio.lowlevel.checkpoint_if_cancelled()
    holder = object()
    try:
        limiter.acquire_on_behalf_of_nowait(holder)
    except trio.WouldBlock:
        await limiter.acquire_on_behalf_of(holder)
    waiting = [trio.lowlevel.current_task()]
    token = trio.lowlevel.current_trio_token()

    def report(result: Outcome[T]) -> None:
        limiter.release_on_behalf_of(holder)
        if waiting:
            trio.lowlevel.reschedule(waiting.pop(), result)

    def deliver(result: Outcome[T]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # abandoned, and all else has ended since
            token.run_sync_soon(report, result)

    def abort(raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
        if not abandon_on_cancel:
            return trio.lowlevel.Abort.FAILED
        waiting.clear()
        return trio.lowlevel.Abort.SUCCEEDED

    try:
        trio.lowlevel.start_thread_soon(function, deliver)
    except BaseException:
        limiter.release_on_behalf_of(holder)
        raise
    answer: T = await trio.lowlevel.wait_task_rescheduled(abort)
    return answer
