"""One at a time for each key, among tasks and worker threads.

A task waits for its key. A thread does not wait: it has other work, and leaves what is held to somebody else.
Taking and giving back are single operations on a dictionary, so they need no lock of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio


class Hold:
    """Of one key, until :meth:`KeyLocks.release`."""

    __slots__ = ("ended", "key", "token")

    def __init__(self, key: str) -> None:
        self.key = key
        self.ended: trio.Event | None = None
        """Somebody waits for its end."""
        self.token: trio.lowlevel.TrioToken | None = None


class KeyLocks:
    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}

    def try_hold(self, key: str) -> Hold | None:
        """In any thread. ``None``: somebody has it."""
        mine = Hold(key)
        return mine if self._holds.setdefault(key, mine) is mine else None

    def release(self, hold: Hold) -> None:
        """In any thread."""
        del self._holds[hold.key]
        # Who waits says so first and looks whether it is still held afterwards.
        if hold.ended is not None:
            assert hold.token is not None
            with contextlib.suppress(trio.RunFinishedError):  # nobody waits any more
                hold.token.run_sync_soon(hold.ended.set)

    @contextlib.asynccontextmanager
    async def held(self, key: str) -> AsyncIterator[None]:
        """Hold it inside; a checkpoint only where it waits."""
        mine = Hold(key)
        while (other := self._holds.setdefault(key, mine)) is not mine:
            if other.ended is None:
                other.token = trio.lowlevel.current_trio_token()
                other.ended = trio.Event()
            if self._holds.get(key) is other:
                await other.ended.wait()
        try:
            yield
        finally:
            self.release(mine)
