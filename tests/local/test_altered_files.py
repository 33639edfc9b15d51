"""Files of the local tier are altered, cut short or removed behind our back: nobody ever reads the wrong
bytes, and none are stored.

An alteration that leaves no trace in size and times is the disk's own (bit rot): scrub's work for the cache
(``tests/maintenance/test_scrub.py``), and found at the next upload or mount for what is staged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3blobfs.config import KIB, MIB, ReadOptions
from s3blobfs.errors import DamagedContent, TierUnavailable
from s3blobfs.tier.cache import CacheEntry
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from s3blobfs.types import Durability, Keying
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig
from tests.tier.conftest import MakeTier
from tests.tier.kit import random_bytes

READ = ReadOptions(small_file_bytes=256 * KIB, window_bytes=512 * KIB)
DATA = random_bytes(1 * MIB)

DROPPED = "cannot be used and is dropped|was altered; dropped"


def flip(path: Path) -> None:
    """One byte in the middle; length and mtime are what they were."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def shorten(path: Path) -> None:
    status = path.stat()
    os.truncate(path, status.st_size // 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def wait_for_a_tick(directory: Path) -> None:
    """The kernel's clock of files goes on in steps of some milliseconds: what is altered within the step in
    which a mount ended looks as if the mount had done it."""
    probe = directory / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()
    probe.unlink()


def remove(path: Path) -> None:
    path.unlink()


def exchange(path: Path) -> None:
    """By another file of the same length and times."""
    status = path.stat()
    other = path.with_name(".other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


ALTERATIONS = pytest.mark.parametrize("alter", [flip, shorten, remove, exchange])
KEYINGS = pytest.mark.parametrize("keying", [Keying.DIGEST, Keying.VERSIONED])


def cached_files(setup: Setup) -> list[Path]:
    return [path for path in (setup.directory / "tier" / "cache").rglob("*") if path.is_file()]


def staged_files(setup: Setup) -> list[Path]:
    return list((setup.directory / "tier" / "staging").iterdir())


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "volume", read=READ)


# --- the cache ------------------------------------------------------------------------------------------


@pytest.mark.expected_log(DROPPED)
@ALTERATIONS
async def test_while_mounted(setup: Setup, alter: Callable[[Path], None]) -> None:
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", DATA)
        (path,) = cached_files(setup)
        alter(path)
        assert await rig.read_file(b"f") == DATA
        assert await rig.read_file(b"f") == DATA


@pytest.mark.expected_log(DROPPED)
@pytest.mark.parametrize("alter", [flip, shorten])
async def test_while_it_is_read(setup: Setup, alter: Callable[[Path], None]) -> None:
    async with open_rig(setup) as rig:
        file = await rig.write_file(b"f", DATA)
        opened = await rig.fs.open(file.inode_id, os.O_RDONLY)
        assert await rig.fs.read(opened.handle, 0, 4096) == DATA[:4096]
        (path,) = cached_files(setup)
        alter(path)
        got = [await rig.fs.read(opened.handle, at, 64 * KIB) for at in range(0, len(DATA), 64 * KIB)]
        assert b"".join(got) == DATA
        await rig.fs.release(opened.handle)


@pytest.mark.expected_log(DROPPED)
@ALTERATIONS
async def test_between_mounts(setup: Setup, alter: Callable[[Path], None]) -> None:
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", DATA)
    (path,) = cached_files(setup)
    wait_for_a_tick(setup.directory)
    alter(path)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"f") == DATA


@pytest.mark.expected_log(DROPPED)
@pytest.mark.parametrize("alter", [flip, shorten, exchange])
async def test_while_it_is_written_in_part(setup: Setup, alter: Callable[[Path], None]) -> None:
    """The copy that is staged must not be of altered bytes, which would be stored for good."""
    async with open_rig(setup) as rig:
        file = await rig.write_file(b"f", DATA)
        (path,) = cached_files(setup)
        alter(path)
        opened = await rig.fs.open(file.inode_id, os.O_WRONLY)
        await rig.fs.write(opened.handle, 0, b"new")
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        assert await rig.read_file(b"f") == b"new" + DATA[3:]


async def test_what_we_do_ourselves_is_no_alteration(make_tier: MakeTier) -> None:
    """A further name, its removal, and the time of use move the ctime of a file that others are reading."""
    now_ns = 1_700_000_000 * 10**9
    tier = make_tier()
    tier.cache._now_ns = lambda: now_ns
    await tier.start()
    first = await _cached(tier, "id1@v1")
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v1")
    assert await first.read(0, 3) == b"abc"
    now_ns += 3600 * 10**9
    second = tier.cache.get(2, "id2@v1", 3)
    assert second is not None
    for entry in (first, second):
        assert await entry.read(0, 3) == b"abc"
    assert tier.cache.remove(1, "id1@v1")
    for entry in (first, second):
        assert await entry.read(0, 3) == b"abc"
    first.unpin()
    assert await second.read(0, 3) == b"abc"
    second.unpin()
    await tier.aclose()
    tier = make_tier()
    await tier.start()
    assert tier.cache.get(2, "id2@v1", 3) is not None


@pytest.mark.expected_log(DROPPED)
async def test_an_alteration_is_not_covered_by_what_we_do(make_tier: MakeTier) -> None:
    tier = make_tier()
    await tier.start()
    entry = await _cached(tier, "id1@v1")
    flip(entry.path)
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v1")
    with pytest.raises(TierUnavailable, match="altered"):
        await entry.read(0, 3)
    entry.unpin()
    assert tier.cache.get(1, "id1@v1", 3) is None
    assert tier.cache.get(2, "id2@v1", 3) is None


async def _cached(tier: Tier, name: str) -> CacheEntry:
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, b"abc")
    await staged.seal(rename=True)
    entry = await tier.cache.promote(staged, 1, name)
    assert entry is not None
    return entry


@pytest.mark.expected_log("cannot be kept in the cache: .*altered")
async def test_between_the_upload_and_the_cache(make_tier: MakeTier) -> None:
    tier = make_tier()
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, b"abc")
    await staged.seal(rename=True)
    flip(staged.path)
    assert await tier.cache.promote(staged, 1, "id1@v1") is None
    assert tier.cache.entry_count == 0 and staged.gone


# --- staged files ---------------------------------------------------------------------------------------


@pytest.mark.expected_log("uploading f to .* failed .* does not hold the bytes")
@pytest.mark.expected_log("reading b'f'")
@pytest.mark.parametrize("alter", [flip, shorten, exchange])
@KEYINGS
async def test_a_staged_file_is_not_stored_altered(
    tmp_path: Path, keying: Keying, alter: Callable[[Path], None]
) -> None:
    """It was acknowledged by durability ``disk``: the loss is told, by errors and by the log, and no other
    bytes take its place."""
    setup = Setup(tmp_path / "volume", keying, durability=Durability.DISK, read=READ)
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put").stalls()
        await rig.write_file(b"f", DATA)
        await stall.arrived.wait()
        (path,) = staged_files(setup)
        alter(path)
        with pytest.raises(TierUnavailable, match=r"altered|shortened"):
            await rig.read_file(b"f")
        stall.release()
        with trio.fail_after(10):
            while rig.fs.uploader.pending().last_error is None:  # noqa: ASYNC110 - a property, not an event
                await trio.sleep(0.001)
        assert await objects(rig) == []
        await rig.fs.unlink(ROOT, b"f")


async def objects(rig: Rig) -> list[bytes]:
    client = rig.setup.server.client(BUCKET)
    return [(await client.get(key)).data for key in rig.object_keys()]


async def test_a_file_that_is_being_written_is_cut_short(setup: Setup) -> None:
    async with open_rig(setup, check=False) as rig:
        opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, DATA)
        (path,) = staged_files(setup)
        os.truncate(path, 1000)
        with pytest.raises(TierUnavailable):
            await rig.fs.read(opened.handle, 4096, 4096)
        with pytest.raises((TierUnavailable, DamagedContent)):
            await rig.fs.flush(opened.handle)
        await rig.fs.unlink(ROOT, b"f")
        await rig.fs.release(opened.handle)
