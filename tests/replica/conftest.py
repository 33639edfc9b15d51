"""Fixtures of the tests of the index's copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio.testing

from tests.replica.kit import Site
from tests.support.clock import stand_still_for_threads


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Jumps when nothing is left to do. Nothing here depends on what the disk has."""
    monkeypatch.setattr("os.fdatasync", lambda fd: None)
    clock = trio.testing.MockClock(autojump_threshold=0)
    stand_still_for_threads(clock, monkeypatch)
    return clock


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    def make(**options: object) -> Site:
        return Site(tmp_path, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def site(make_site: Callable[..., Site]) -> Site:
    made = make_site()
    await made.make()
    return made
