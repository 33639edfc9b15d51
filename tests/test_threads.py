"""The hop to a worker thread: answers, errors, the limiter, cancellation."""

from __future__ import annotations

import threading

import pytest
import trio

from s3blobfs.threads import run_in_thread


async def test_answers_come_from_another_thread() -> None:
    limiter = trio.CapacityLimiter(1)
    assert await run_in_thread(threading.get_ident, limiter) != threading.get_ident()
    assert limiter.borrowed_tokens == 0


async def test_errors_are_raised_and_the_limiter_is_free() -> None:
    limiter = trio.CapacityLimiter(1)

    def fail() -> None:
        raise OSError("scripted")

    with pytest.raises(OSError, match="scripted"):
        await run_in_thread(fail, limiter)
    assert limiter.borrowed_tokens == 0


async def test_no_more_at_once_than_the_limiter_has() -> None:
    limiter = trio.CapacityLimiter(2)
    go, most, running, lock = threading.Event(), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        go.wait()
        with lock:
            running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(run_in_thread, work, limiter)
        while running < 2 or limiter.statistics().tasks_waiting < 4:
            await trio.lowlevel.checkpoint()
        go.set()
    assert most == 2


async def test_cancelled_it_waits_for_the_thread() -> None:
    limiter = trio.CapacityLimiter(1)
    began, go, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        go.wait()
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_thread, work, limiter)
        await trio.to_thread.run_sync(began.wait)
        nursery.cancel_scope.cancel()
        go.set()
    assert ended


async def test_abandoned_it_leaves_the_thread_and_keeps_its_place() -> None:
    limiter = trio.CapacityLimiter(1)
    began, go = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait()

    async with trio.open_nursery() as nursery:

        async def abandon() -> None:
            await run_in_thread(work, limiter, abandon_on_cancel=True)

        nursery.start_soon(abandon)
        await trio.to_thread.run_sync(began.wait)
        nursery.cancel_scope.cancel()
    assert limiter.borrowed_tokens == 1
    go.set()
    await limiter.acquire()  # free again once the thread is done


async def test_nothing_begins_when_it_is_cancelled_already() -> None:
    limiter = trio.CapacityLimiter(1)
    ran: list[bool] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(lambda: ran.append(True), limiter)
    assert ran == []
