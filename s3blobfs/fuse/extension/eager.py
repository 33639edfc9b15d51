"""A leaner way round pyfuse3's loop: what is there already is taken without a turn of trio's scheduler.

pyfuse3 takes a lock, waits until the device is readable, and lets the lock go, for each request: two turns of
the scheduler and two calls of epoll_ctl(2), two thirds of all the processor time of a small request. Here it
polls first, and waits only when nothing is there. So that other tasks get their turn all the same, trio is
let in at least once in each time slice.

pyfuse3 finds trio's functions in ``pyfuse3.trio``, so that ``pyfuse3.asyncio`` can put others there, and the
stand-in is put there in the same way. That is no documented seam: ``setup.cfg`` holds pyfuse3 to releases
like the one it was tested with.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import trio

TIME_SLICE_S = 0.002
"""Requests are taken one after another for so long before other tasks get a turn; one of these waits for two
slices at the most, and for the requests in which they end."""


class Turn:
    """In place of the ``trio.Lock`` round 'wait until there is a request': no turn of the scheduler while it
    is free, and whoever asks first gets it, not whoever has waited longest."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(self, *exc: object) -> None:
        self._taken = False
        self._waiting.unpark()


class EagerWaiting:
    """``wait_readable`` of one loop. ``clock`` (seconds) is for tests."""

    def __init__(
        self, time_slice_s: float = TIME_SLICE_S, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._time_slice_s = time_slice_s
        self._clock = clock
        self._slice_began = clock()
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._fd = -1

    async def wait_readable(self, fd: int) -> None:
        """Return when ``fd`` has something to read: at once, if it has now and the time slice is not over."""
        if self._poll is None or fd != self._fd:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            self._poll, self._fd = poller.poll, fd
        if not self._poll(0):
            await trio.lowlevel.wait_readable(fd)
        elif self._clock() - self._slice_began < self._time_slice_s:
            return
        else:
            await trio.lowlevel.checkpoint()
        self._slice_began = self._clock()


class _StandIn:
    """A module with some names of its own, and all others of another."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def eager_loop() -> Iterator[None]:
    """``pyfuse3.main`` inside takes requests eagerly."""
    waiting = EagerWaiting()
    lowlevel = _StandIn(trio.lowlevel, wait_readable=waiting.wait_readable)
    before = vars(pyfuse3)["trio"]
    vars(pyfuse3)["trio"] = _StandIn(trio, lowlevel=lowlevel, Lock=Turn)
    try:
        yield
    finally:
        vars(pyfuse3)["trio"] = before
