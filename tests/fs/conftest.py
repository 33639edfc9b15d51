"""A filesystem over the in-memory S3 in each combination; its index is checked after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

from s3blobfs.types import Keying
from tests.support.clock import stand_still_for_threads
from tests.support.rig import Rig, Setup, open_rig


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Jumps when nothing is left to do, threads included."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    stand_still_for_threads(clock, monkeypatch)
    return clock


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A cached digest store; tests that want another one parametrize or replace it."""
    return Setup(tmp_path / "volume")


@pytest.fixture
async def rig(setup: Setup) -> AsyncIterator[Rig]:
    async with open_rig(setup) as opened:
        yield opened


@pytest.fixture(
    params=[(keying, cached) for keying in Keying for cached in (True, False)],
    ids=lambda param: f"{param[0].value}-{'cached' if param[1] else 'uncached'}",
)
def any_setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    """Each of the four combinations of keying and caching."""
    keying, cached = request.param
    return Setup(tmp_path / "volume", keying=keying, cached=cached)


@pytest.fixture
async def any_rig(any_setup: Setup) -> AsyncIterator[Rig]:
    async with open_rig(any_setup) as opened:
        yield opened
