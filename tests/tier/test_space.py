"""The hard limit, the disk's reserve, and who has to go."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3blobfs.config import MIB, TierOptions
from s3blobfs.errors import TierFull, TierUnavailable
from s3blobfs.tier.space import Space, Use


class Disk:
    """A disk whose free bytes a test sets, and a clock it advances."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.now_s = 0.0
        self.samples = 0

    def sample(self) -> int:
        self.samples += 1
        return self.free_bytes

    def clock(self) -> float:
        return self.now_s


class Entries:
    """An evictor with entries of one size."""

    def __init__(self, space: Space, disk: Disk, count: int, size_bytes: int) -> None:
        self.space, self.disk, self.count, self.size_bytes = space, disk, count, size_bytes
        space.adopt(count * size_bytes, Use.CACHED)
        space.evict_with(self)

    @property
    def evictable_bytes(self) -> int:
        return self.count * self.size_bytes

    async def evict(self, needed_bytes: int) -> int:
        freed = 0
        while freed < needed_bytes and self.count:
            self.count -= 1
            freed += self.size_bytes
            self.space.release(self.size_bytes, Use.CACHED)
            self.disk.free_bytes += self.size_bytes
        return freed


def make(limit: int, *, free: int = 1 << 40, min_free: int = 0) -> tuple[Space, Disk]:
    disk = Disk(free)
    options = TierOptions(Path("/nowhere"), size_limit_bytes=limit, min_free_bytes=min_free)
    return Space(options, free_bytes=disk.sample, clock=disk.clock), disk


async def test_limit_is_hard() -> None:
    space, _ = make(100)
    await space.reserve(100)
    with pytest.raises(TierFull, match="full"):
        await space.reserve(1)
    await space.reserve(0)
    space.release(1)
    await space.reserve(1)
    assert (space.used_bytes, space.staged_bytes, space.cached_bytes) == (100, 100, 0)


async def test_eviction_makes_room_and_no_more_than_needed() -> None:
    space, disk = make(100)
    entries = Entries(space, disk, 5, 20)
    await space.reserve(30)
    assert entries.count == 3
    assert space.used_bytes == 90


async def test_nothing_is_evicted_in_vain() -> None:
    space, disk = make(100)
    entries = Entries(space, disk, 2, 20)
    await space.reserve(60)
    with pytest.raises(TierFull):
        await space.reserve(41)
    assert entries.count == 2


async def test_min_free_is_kept_and_eviction_helps_there_too() -> None:
    space, disk = make(1 << 40, free=130, min_free=100)
    entries = Entries(space, disk, 1, 50)
    await space.reserve(30)
    disk.free_bytes -= 30
    await space.reserve(20)
    assert entries.count == 0
    disk.free_bytes -= 20
    with pytest.raises(TierFull, match="100 bytes free"):
        await space.reserve(31)


async def test_free_bytes_are_sampled_not_asked_each_time() -> None:
    space, disk = make(1 << 40)
    for _ in range(1000):
        await space.reserve(4096)
    assert disk.samples == 1
    disk.now_s = 1.0
    await space.reserve(1)
    assert disk.samples == 2
    await space.reserve(65 * MIB)
    assert disk.samples == 3


async def test_a_disk_others_fill_is_noticed_within_a_second() -> None:
    space, disk = make(1 << 40)
    await space.reserve(1)
    disk.free_bytes = 0
    disk.now_s = 1.0
    with pytest.raises(TierFull):
        await space.reserve(1)


async def test_a_reserve_already_below_min_free_refuses_even_one_byte() -> None:
    space, _ = make(1 << 40, free=10, min_free=100)
    await space.reserve(0)
    with pytest.raises(TierFull):
        await space.reserve(1)


async def test_moves_keep_the_sum() -> None:
    space, _ = make(100)
    await space.reserve(40)
    space.move(40, Use.STAGED, Use.CACHED)
    assert (space.used_bytes, space.staged_bytes, space.cached_bytes) == (40, 0, 40)


async def test_a_silent_disk_is_unavailable(tmp_path: Path) -> None:
    space = Space(TierOptions(tmp_path / "missing"))
    with pytest.raises(TierUnavailable):
        await space.reserve(1)


async def test_trim_after_the_limit_was_lowered() -> None:
    space, disk = make(100)
    entries = Entries(space, disk, 8, 20)
    await space.trim()
    assert entries.count == 5
