"""Waiting for what can only be asked about."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORTEST_S = 0.001
_LONGEST_S = 0.05
_SHARE = 0.02


def wait_until(holds: Callable[[], bool], timeout_s: float, shortest_s: float = _SHORTEST_S) -> bool:
    """Whether it came to hold. It is asked again after a fiftieth of the time that has passed, and
    ``shortest_s`` at least: often enough for a time that is measured by it, and seldom enough for the
    processor time of whoever is asked."""
    begun = time.perf_counter()
    while not holds():
        passed = time.perf_counter() - begun
        if passed > timeout_s:
            return False
        time.sleep(min(max(passed * _SHARE, shortest_s), _LONGEST_S))
    return True
