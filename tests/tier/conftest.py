"""Fixtures of the tier's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from s3blobfs.config import MIB, ReadOptions, TierOptions
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from tests.tier.kit import SMALL_READS

MakeTier = Callable[..., Tier]


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


@pytest.fixture
def steps(tracer: Tracer) -> list[str]:
    """What is drawn, without the preamble; notes follow their step after `` # ``."""
    lines: list[str] = []

    def sink(line: str) -> None:
        if line.lstrip().startswith("hnote"):
            lines[-1] += " # " + line.split(": ", 1)[1]
        else:
            lines.append(line)

    tracer.start_steps(sink, Local.CACHE)
    lines.clear()
    return lines


@pytest.fixture
def make_tier(tmp_path: Path, tracer: Tracer) -> Iterator[MakeTier]:
    """``make_tier(size_limit_bytes=…)`` opens the tier in the test's one directory; a tier that was made
    before is closed, as if its process had ended there and then."""
    made: list[Tier] = []

    def make(
        *,
        directory: Path = tmp_path / "tier",
        read: ReadOptions = SMALL_READS,
        size_limit_bytes: int = 64 * MIB,
        min_free_bytes: int = 0,
    ) -> Tier:
        if made:
            made.pop().layout.close()
        options = TierOptions(
            directory=directory, size_limit_bytes=size_limit_bytes, min_free_bytes=min_free_bytes
        )
        tier = Tier(options, read, tracer)
        made.append(tier)
        return tier

    yield make
    for tier in made:
        tier.layout.close()


@pytest.fixture
def tier(make_tier: MakeTier) -> Tier:
    return make_tier()


@pytest.fixture
async def running(tier: Tier, nursery: trio.Nursery) -> Tier:
    await tier.start()
    await nursery.start(tier.run)
    return tier
