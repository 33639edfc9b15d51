"""When garbage has been garbage for its grace, whatever the wall clock does meanwhile.

Rows of the index carry the time at which they became garbage by the wall clock, the only one that goes on
across mounts. It may be put back or forth by years. So it is compared with the monotonic clock whenever a row
becomes garbage and whenever rows are judged: after a jump nothing is due before a whole grace has passed
again by the monotonic clock. Then everything that was marked before the jump is old enough, and everything
that was marked since carries the time of a clock that has not jumped. What lies in the future is marked anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

_NS_PER_S = 10**9
TOLERANCE_S = 60.0
"""Between two looks: a clock that is only slewed (NTP) stays below."""


class Grace:
    """One mount's. ``now_ns``: the wall clock; the monotonic one is trio's."""

    def __init__(self, grace_ns: int, now_ns: Callable[[], int]) -> None:
        self._grace_ns = grace_ns
        self._now_ns = now_ns
        self._offset_s: float | None = None
        self.not_before = -math.inf
        """On trio's clock: when something may be due again after a jump."""

    def look(self) -> None:
        """Compare the clocks."""
        offset_s = self._now_ns() / _NS_PER_S - trio.current_time()
        if self._offset_s is not None and abs(offset_s - self._offset_s) > TOLERANCE_S:
            self.not_before = trio.current_time() + self._grace_ns / _NS_PER_S
        self._offset_s = offset_s

    def due_before_ns(self) -> int | None:
        """What became garbage at this time or earlier is due; ``None``: nothing is."""
        self.look()
        if trio.current_time() < self.not_before:
            return None
        return self._now_ns() - self._grace_ns

    def due_at(self, marked_ns: int) -> float:
        """On trio's clock: when what became garbage then is due."""
        left_s = (marked_ns + self._grace_ns - self._now_ns()) / _NS_PER_S
        return max(trio.current_time() + max(0.0, left_s), self.not_before)
