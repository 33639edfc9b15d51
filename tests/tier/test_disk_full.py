"""A disk that is really full: a small tmpfs, where the tests may mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from s3blobfs.config import GIB, KIB, MIB
from s3blobfs.errors import TierFull
from s3blobfs.tier.digest import content_digests
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from tests.tier.conftest import MakeTier
from tests.tier.kit import FakeSource, blob_of, random_bytes

DISK_BYTES = 2 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounting.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounting.stderr.strip()}")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)


@pytest.fixture
def tier(small_disk: Path, make_tier: MakeTier) -> Tier:
    """Its limit is far above what the disk has; only the disk says no."""
    return make_tier(directory=small_disk / "tier", size_limit_bytes=GIB)


async def test_a_write_beyond_the_disk_leaves_the_file_whole(tier: Tier) -> None:
    staged = await tier.staging.create(Local.CACHE)
    data = random_bytes(MIB)
    await staged.write(0, data)
    with pytest.raises(TierFull):
        await staged.write(MIB, bytes(2 * MIB))
    assert staged.size_bytes == MIB
    assert await staged.read(0, 2 * MIB) == data
    assert await staged.seal(rename=True) == content_digests(data)
    await staged.discard()
    assert tier.space.used_bytes == 0


async def test_holes_meet_the_full_disk_when_written(tier: Tier) -> None:
    """The accounts see no difference between blocks and bytes here, the disk does."""
    staged = await tier.staging.create(Local.CACHE)
    await staged.truncate(100 * MIB)
    written = 0
    with pytest.raises(TierFull):
        for at in range(0, 100 * MIB, 64 * KIB):
            await staged.write(at, b"x")
            written += 1
    assert 0 < written <= DISK_BYTES // 4096
    assert staged.size_bytes == 100 * MIB
    await staged.discard()
    assert tier.space.used_bytes == 0


async def test_cached_contents_give_way(tier: Tier) -> None:
    for number in range(3):
        staged = await tier.staging.create(Local.CACHE)
        await staged.write(0, random_bytes(512 * KIB, number))
        await staged.seal(rename=True)
        entry = await tier.cache.promote(staged, 1, f"id{number}")
        assert entry is not None
        entry.unpin()
    staged = await tier.staging.create(Local.CACHE)
    data = random_bytes(MIB + 256 * KIB)
    await staged.write(0, data)
    assert await staged.read(0, len(data)) == data
    assert tier.cache.entry_count < 3


async def test_reading_goes_on_without_a_cache(tier: Tier, nursery: trio.Nursery) -> None:
    await nursery.start(tier.run)
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, random_bytes(MIB + 512 * KIB))
    data = random_bytes(4 * MIB)
    reader = await tier.fetcher.open(blob_of(data), FakeSource(data), True)
    for offset in range(0, len(data), 128 * KIB):
        assert await reader.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]
    await reader.aclose()
    assert tier.layout.store(1).names() == []
    assert tier.space.filling_bytes == 0


async def test_a_reserve_of_the_disk_is_kept(small_disk: Path, make_tier: MakeTier) -> None:
    tier = make_tier(directory=small_disk / "tier", size_limit_bytes=GIB, min_free_bytes=MIB)
    staged = await tier.staging.create(Local.CACHE)
    with pytest.raises(TierFull, match="bytes free"):
        for at in range(0, DISK_BYTES, 64 * KIB):
            await staged.write(at, bytes(64 * KIB))
    status = os.statvfs(small_disk)
    assert status.f_bavail * status.f_frsize >= MIB
    assert staged.size_bytes >= DISK_BYTES - MIB - 128 * KIB
