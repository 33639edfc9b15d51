"""One at a time for each key, among tasks and threads."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import wait_all_tasks_blocked

from s3blobfs.blobstore.keylocks import Hold, KeyLocks


async def test_tasks_wait_for_one_another_and_for_no_other_key() -> None:
    locks, order = KeyLocks(), []

    async def work(key: str, number: int) -> None:
        async with locks.held(key):
            order.append(number)
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, "key", number)
        nursery.start_soon(work, "other", 9)
    alone = [number for number in order if number != 9]
    assert alone[::2] == alone[1::2]
    assert sorted(alone[::2]) == [0, 1, 2, 3]


async def test_a_task_waits_for_a_thread_and_a_thread_for_nobody() -> None:
    locks = KeyLocks()

    async def in_thread(call: Callable[[], Hold | None]) -> Hold | None:
        return await trio.to_thread.run_sync(call)

    hold = await in_thread(lambda: locks.try_hold("key"))
    assert hold is not None
    assert await in_thread(lambda: locks.try_hold("key")) is None
    other = await in_thread(lambda: locks.try_hold("other"))
    assert other is not None
    got = trio.Event()

    async def wait() -> None:
        async with locks.held("key"):
            got.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not got.is_set()
        await trio.to_thread.run_sync(locks.release, hold)
    assert got.is_set()
    assert locks.try_hold("key") is not None


async def test_who_is_cancelled_while_it_waits_holds_nothing() -> None:
    locks = KeyLocks()
    hold = locks.try_hold("key")
    assert hold is not None
    with trio.move_on_after(0):
        async with locks.held("key"):
            raise AssertionError("it is held")
    locks.release(hold)
    assert locks.try_hold("key") is not None
