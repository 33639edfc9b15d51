"""Fixtures of the tests of local trouble."""

from __future__ import annotations

import pytest

from tests.replica.conftest import autojump_clock
from tests.tier.conftest import make_tier, tracer
from tests.writeback import bench
from tests.writeback.conftest import clock, digest, server

__all__ = ["autojump_clock", "clock", "digest", "make_tier", "server", "tracer"]


class WallClock:
    """The clock of the bench's index, apart from the one that moves on steadily."""

    def __init__(self) -> None:
        self._off_ns = 0
        self._steady = bench.now_ns

    def now_ns(self) -> int:
        return self._steady() + self._off_ns

    def jump(self, by_s: int) -> None:
        self._off_ns += by_s * 10**9


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """To be named before the volume."""
    made = WallClock()
    monkeypatch.setattr(bench, "now_ns", made.now_ns)
    return made
