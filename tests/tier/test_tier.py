"""The tier as a whole."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import trio

import s3blobfs.tier
from s3blobfs.config import MIB
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from tests.tier.conftest import MakeTier
from tests.tier.kit import FakeSource, blob_of, random_bytes


async def test_status(tier: Tier, nursery: trio.Nursery) -> None:
    await tier.start()
    await nursery.start(tier.run)
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, b"12345")
    cached = await tier.fetcher.open(blob_of(b"abc"), FakeSource(b"abc"), True)
    await cached.read(0, 1)
    large = random_bytes(4 * MIB)
    filling = await tier.fetcher.open(blob_of(large, name="large"), FakeSource(large), True)
    await filling.read(2 * MIB, 1)
    uncached = await tier.fetcher.open(blob_of(b"xy", name="small"), FakeSource(b"xy"), False)
    await uncached.read(0, 1)
    status = tier.status()
    assert status.directory == tier.layout.directory
    assert (status.staged_files, status.staged_bytes) == (1, 5)
    assert (status.cached_files, status.cached_bytes, status.pinned_files) == (1, 3, 1)
    assert status.filling_files == 1
    assert status.filling_bytes == 256 * 1024
    assert status.memory_bytes == 2
    assert status.used_bytes == 5 + 3 + 256 * 1024
    assert status.disk_free_bytes > 0
    for reader in (cached, filling, uncached):
        await reader.aclose()


async def test_a_tier_can_be_opened_again_when_closed(tier: Tier, make_tier: MakeTier) -> None:
    await tier.aclose()
    await tier.aclose()
    again = make_tier()
    await again.start()


@pytest.mark.parametrize("path", sorted(Path(s3blobfs.tier.__path__[0]).glob("*.py")), ids=lambda p: p.name)
def test_the_tier_knows_neither_fuse_nor_s3_nor_the_index(path: Path) -> None:
    forbidden = ("s3blobfs.s3", "s3blobfs.index", "s3blobfs.blobstore", "boto3", "obstore", "pyfuse3", "apsw")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
        for name in names:
            assert not f"{name}.".startswith(tuple(f"{module}." for module in forbidden)), name
