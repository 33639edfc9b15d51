"""One sync to disk for everyone who waits for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class SharedSync:
    """Makes marks durable: a mark is a number that grows with each change, and a sync covers all up to the
    one that was current when the sync began.

    Of several callers the first leads: it prepares and syncs for all who are there. Whoever comes while that
    runs may have come too late for it, so it waits and then leads, or follows, the next. A leader that is
    cancelled before its sync began or that fails leaves the lead to one of those that wait.
    """

    def __init__(
        self, prepare: Callable[[], int], sync: Callable[[], Awaitable[None]], *, durable: int
    ) -> None:
        """``prepare`` hands everything so far to the operating system and returns the mark reached; ``sync``
        brings to the disk what was handed over before it was called. ``durable`` is the mark reached yet."""
        self._prepare = prepare
        self._sync = sync
        self._running: trio.Event | None = None
        self.durable = durable

    async def up_to(self, mark: int) -> None:
        """Return when the mark is durable; at once if it is. Raises what ``prepare`` and ``sync`` raise."""
        while self.durable < mark:
            if self._running is not None:
                await self._running.wait()
                continue
            reached = self._prepare()
            ended = self._running = trio.Event()
            try:
                await self._sync()
                self.durable = max(self.durable, reached)
            finally:
                self._running = None
                ended.set()
