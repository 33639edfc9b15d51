from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from s3blobfs.s3.fake import FakeS3
from s3blobfs.types import Keying
from tests.support.clock import stand_still_for_threads
from tests.writeback.bench import Volume, mounted


@pytest.fixture
def server() -> FakeS3:
    return FakeS3()


@pytest.fixture
def clock(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time passes when nothing else is to be done."""
    stand_still_for_threads(autojump_clock, monkeypatch)
    return autojump_clock


@pytest.fixture
async def digest(tmp_path: Path, server: FakeS3, clock: MockClock) -> AsyncIterator[Volume]:
    """A volume with an uncached digest store. Must be whole at the end of the test."""
    async with mounted(tmp_path, server) as volume:
        yield volume
        assert await volume.problems() == []


@pytest.fixture
async def versioned(tmp_path: Path, server: FakeS3, clock: MockClock) -> AsyncIterator[Volume]:
    """A volume with a cached versioned store. Must be whole at the end of the test."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as volume:
        yield volume
        assert await volume.problems() == []
