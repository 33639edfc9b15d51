"""Changes of large files: what is copied, sent and asked for does not grow with the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3blobfs.config import GIB, KIB, MIB
from s3blobfs.s3.fake import FakeS3
from s3blobfs.tier.digest import ContentHasher
from s3blobfs.trace import Count
from s3blobfs.types import Durability, Keying
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

APPENDED = b"a" * 4 * KIB
BLOCK = bytes(range(256)) * 4096
"""1 MiB."""


ASKED = (Count.S3_COPY, Count.S3_PART, Count.S3_HEAD, Count.S3_PUT, Count.S3_GET, Count.S3_LIST)


async def write_large(rig: Rig, size_mib: int) -> int:
    """Answers the inode."""
    opened, made = await rig.fs.create(ROOT, b"large", 0o644, os.O_WRONLY, USER)
    for number in range(size_mib):
        await rig.fs.write(opened.handle, number * MIB, BLOCK)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    return made.inode_id


async def change(rig: Rig, inode_id: int, offset: int | None, data: bytes = APPENDED) -> None:
    """Write somewhere, or at the end, and close."""
    flags = os.O_WRONLY if offset is not None else os.O_WRONLY | os.O_APPEND
    opened = await rig.fs.open(inode_id, flags)
    end = (await rig.fs.getattr(inode_id)).size_bytes
    await rig.fs.write(opened.handle, end if offset is None else offset, data)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


def object_of(rig: Rig) -> bytes:
    """The newest."""
    bucket = rig.setup.server.bucket("bucket")
    newest = max(
        (version for history in bucket.versions.values() for version in history),
        key=lambda version: version.sequence,
    )
    return newest.data


def large_setup(directory: Path, keying: Keying, *, cached: bool = True, **more: object) -> Setup:
    return Setup(directory, keying=keying, cached=cached, cache_bytes=GIB, **more)  # type: ignore[arg-type]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes given to hashers."""
    taken: list[int] = []
    update = ContentHasher.update

    def counted(hasher: ContentHasher, data: memoryview) -> None:
        taken.append(len(data))
        update(hasher, data)

    monkeypatch.setattr(ContentHasher, "update", counted)
    return taken


@pytest.mark.parametrize("keying", Keying)
async def test_an_append_costs_the_same_whatever_the_size(
    tmp_path: Path, keying: Keying, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    monkeypatch.setattr(os, "copy_file_range", lambda *args: copied.append(1))
    costs = []
    for size_mib in (64, 256):
        setup = large_setup(tmp_path / str(size_mib), keying, server=FakeS3())
        async with open_rig(setup) as rig:
            inode_id = await write_large(rig, size_mib)
            await change(rig, inode_id, None)  # the first of a mount asks whether S3 copies ranges
            hashed.clear()
            rig.tracer.counts.clear()
            received = setup.server.received_bytes
            await change(rig, inode_id, None)
            counts = {count: rig.tracer.counts[count] for count in ASKED}
            costs.append((counts, setup.server.received_bytes - received, sum(hashed)))
            assert object_of(rig) == BLOCK * size_mib + 2 * APPENDED
            setup.server.buckets.clear()
    counts, sent, hashed_bytes = costs[0]
    assert costs[1] == costs[0]
    assert counts == {
        Count.S3_COPY: 4,
        Count.S3_PART: 1,
        Count.S3_HEAD: int(keying is Keying.DIGEST),
        Count.S3_PUT: 0,
        Count.S3_GET: 0,
        Count.S3_LIST: 0,
    }
    assert sent == len(APPENDED)
    assert hashed_bytes == len(APPENDED)
    assert not copied


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("keying", Keying)
async def test_changes_of_all_kinds(tmp_path: Path, keying: Keying, cached: bool) -> None:
    setup = large_setup(tmp_path / "volume", keying, cached=cached)
    async with open_rig(setup) as rig:
        inode_id = await write_large(rig, 64)
        model = bytearray(BLOCK * 64)
        await change(rig, inode_id, 40 * MIB + 3)
        model[40 * MIB + 3 : 40 * MIB + 3 + len(APPENDED)] = APPENDED
        assert object_of(rig) == model
        await change(rig, inode_id, None)
        model += APPENDED
        assert object_of(rig) == model
        await change(rig, inode_id, 70 * MIB)
        model += bytes(70 * MIB - len(model)) + APPENDED
        assert object_of(rig) == model
        opened = await rig.fs.open(inode_id, os.O_RDWR)
        assert await rig.fs.read(opened.handle, 70 * MIB, 10_000) == APPENDED
        await rig.fs.write(opened.handle, 5, b"start")
        model[5:10] = b"start"
        assert await rig.fs.read(opened.handle, 0, 100) == model[:100]
        await rig.fs.flush(opened.handle)
        assert await rig.fs.read(opened.handle, 0, 100) == model[:100]
        await rig.fs.release(opened.handle)
        assert object_of(rig) == model
        assert rig.tracer.counts[Count.S3_COPY] > 0
        await rig.check()
        if cached:
            rig.tracer.counts.clear()
            assert await rig.read_file(b"large") == model
            assert rig.tracer.counts[Count.S3_GET] == 0


async def test_a_file_that_is_read_meanwhile(tmp_path: Path) -> None:
    """Its readers keep what they read; the change is made to a copy then."""
    async with open_rig(large_setup(tmp_path / "volume", Keying.VERSIONED)) as rig:
        inode_id = await write_large(rig, 40)
        (name,) = rig.tier.layout.store(1).names()
        entry = rig.tier.cache.get(1, name, 40 * MIB)
        assert entry is not None
        await change(rig, inode_id, 0, b"new")
        assert await entry.read(0, 3) == BLOCK[:3]
        entry.unpin()
        assert len(rig.tier.layout.store(1).names()) == 2
        assert object_of(rig) == b"new" + (BLOCK * 40)[3:]


async def test_a_handle_that_has_read_does_not_keep_the_file(tmp_path: Path) -> None:
    async with open_rig(large_setup(tmp_path / "volume", Keying.VERSIONED)) as rig:
        inode_id = await write_large(rig, 40)
        opened = await rig.fs.open(inode_id, os.O_RDWR)
        assert await rig.fs.read(opened.handle, 0, 3) == BLOCK[:3]
        await rig.fs.write(opened.handle, 40 * MIB, b"tail")
        assert rig.tier.layout.store(1).names() == []
        assert await rig.fs.read(opened.handle, 40 * MIB - 1, 9) == BLOCK[-1:] + b"tail"
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        assert object_of(rig) == BLOCK * 40 + b"tail"


async def test_another_file_of_the_same_content_keeps_its_cached_file(tmp_path: Path) -> None:
    async with open_rig(large_setup(tmp_path / "volume", Keying.DIGEST)) as rig:
        inode_id = await write_large(rig, 40)
        await rig.fs.copy_file(inode_id, ROOT, b"twin", replace=False, caller=USER)
        await change(rig, inode_id, None)
        rig.tracer.counts.clear()
        assert await rig.read_file(b"twin") == BLOCK * 40
        assert rig.tracer.counts[Count.S3_GET] == 0


async def test_appends_while_an_upload_is_under_way(tmp_path: Path) -> None:
    """Each content is made of the one before it, which S3 has by the time it is sent."""
    setup = large_setup(tmp_path / "volume", Keying.VERSIONED, durability=Durability.DISK)
    async with open_rig(setup) as rig:
        inode_id = await write_large(rig, 64)
        await rig.fs.sync(None, None)
        stall = rig.faults.on("put", nth=1).stalls()
        await change(rig, inode_id, None)
        await stall.arrived.wait()
        await change(rig, inode_id, None)
        received = setup.server.received_bytes
        stall.release()
        await rig.fs.sync(None, None)
        assert object_of(rig) == BLOCK * 64 + 2 * APPENDED
        assert setup.server.received_bytes - received < MIB


async def test_after_a_remount_all_of_it_is_hashed_once(tmp_path: Path, hashed: list[int]) -> None:
    setup = large_setup(tmp_path / "volume", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        inode_id = await write_large(rig, 40)
    async with open_rig(setup) as rig:
        hashed.clear()
        await change(rig, inode_id, None)
        assert sum(hashed) == 40 * MIB + len(APPENDED)
        assert object_of(rig) == BLOCK * 40 + APPENDED
        await change(rig, inode_id, None)
        assert sum(hashed) == 40 * MIB + 2 * len(APPENDED)
