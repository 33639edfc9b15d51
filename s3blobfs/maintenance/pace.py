"""How fast a tool may go: requests and bytes for each second, and how many things at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from s3blobfs.errors import S3BlobFSError

Item = TypeVar("Item")


class Pace:
    """So many units a second on trio's clock, evenly; ``None`` is no limit."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._next = float("-inf")

    async def take(self, units: float = 1) -> None:
        """Wait for one's turn. What is taken holds up those who come after."""
        if self._per_s is None:
            await trio.lowlevel.checkpoint()
            return
        turn = max(self._next, trio.current_time())
        self._next = turn + units / self._per_s
        await trio.sleep_until(turn)


async def for_each(
    items: Iterable[Item], function: Callable[[Item], Awaitable[None]], concurrency: int
) -> None:
    """``function`` of each item, at most ``concurrency`` at a time. The first error of ours cancels the rest
    and is raised by itself, not in a group."""
    waiting = iter(items)
    failures: list[S3BlobFSError] = []

    async def work(scope: trio.CancelScope) -> None:
        for item in waiting:
            try:
                await function(item)
            except S3BlobFSError as error:
                failures.append(error)
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(work, nursery.cancel_scope)
    if failures:
        raise failures[0]
