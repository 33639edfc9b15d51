"""Fixtures: an index with an empty volume in it, checked when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3blobfs.index.database import Database
from s3blobfs.trace import Tracer
from tests.index import volume


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


@pytest.fixture
async def unchecked(tmp_path: Path, tracer: Tracer) -> AsyncIterator[Database]:
    """For tests that damage it."""
    database = volume.make(tmp_path / "index.db", tracer)
    await database.write(volume.fill)
    yield database
    await database.aclose()


@pytest.fixture
async def db(unchecked: Database) -> AsyncIterator[Database]:
    yield unchecked
    assert await unchecked.check() == []
