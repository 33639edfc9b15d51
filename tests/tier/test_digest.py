"""Digests in one pass, and the follower that computes them while a file is written."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from pathlib import Path

import pytest

from s3blobfs.config import MIB
from s3blobfs.tier.digest import (
    BACKLOG_BYTES,
    ContentHasher,
    DigestFollower,
    content_digests,
    file_digests,
)
from s3blobfs.tier.localio import SharedFd, in_disk_thread
from tests.tier.kit import BLOCK, random_bytes

EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7]


@pytest.mark.parametrize("size", EDGES)
def test_digests_are_those_of_hashlib_and_zlib(size: int) -> None:
    data = random_bytes(size)
    digests = content_digests(data)
    assert digests.size_bytes == size
    assert digests.md5 == hashlib.md5(data).digest()
    assert digests.sha256 == hashlib.sha256(data).digest()
    blocks = [data[at : at + BLOCK] for at in range(0, size, BLOCK)]
    assert digests.checksums == b"".join(zlib.crc32(block).to_bytes(4, "big") for block in blocks)


@pytest.mark.parametrize("step", [1000, BLOCK - 1, BLOCK, BLOCK + 1])
def test_how_it_was_cut_does_not_matter(step: int) -> None:
    data = random_bytes(2 * BLOCK + 5)
    hasher = ContentHasher()
    for at in range(0, len(data), step):
        hasher.update(memoryview(data)[at : at + step])
    assert hasher.digests() == content_digests(data)


@pytest.mark.parametrize("size", EDGES)
async def test_of_a_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(size))
    with path.open("rb") as file:
        assert await file_digests(file.fileno(), size) == content_digests(random_bytes(size))


async def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12")
    with path.open("rb") as file, pytest.raises(OSError, match="changed by another program"):
        await file_digests(file.fileno(), 3)


class Followed:
    """A file with its follower, written to as a staged file does it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.file = SharedFd(self.fd)
        self.follower = DigestFollower()
        self.model = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        self.follower.about_to_change(offset)
        os.pwrite(self.fd, data, offset)
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data
        self.follower.wrote(offset, offset + len(data), self.file)

    async def caught_up(self) -> int:
        """The position when the thread that runs, if any, has ended."""
        while self.follower._running:
            await in_disk_thread(self._wait_for_lock)
        return self.follower._hasher.position

    def _wait_for_lock(self) -> None:
        with self.follower._lock:
            pass

    async def finish(self) -> bool:
        found = await self.follower.finish(self.fd, len(self.model))
        self.file.release()
        return found.digests() == content_digests(self.model)


async def test_sequential_writes_are_followed(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "file")
    piece = random_bytes(MIB)
    for at in range(10):
        followed.write(at * MIB, piece)
    # How far it came depends on the threads; that it started does not.
    followed.write(10 * MIB, piece)
    assert await followed.caught_up() >= BACKLOG_BYTES
    assert await followed.finish()


async def test_random_writes_are_left_to_the_end(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "file")
    piece = random_bytes(MIB)
    for at in (9, 3, 7, 1, 5):
        followed.write(at * MIB, piece)
    assert await followed.caught_up() == 0
    assert await followed.finish()


@pytest.mark.parametrize("wait", [False, True], ids=["while it runs", "after it ran"])
async def test_a_change_behind_the_hashed_position_is_seen(tmp_path: Path, wait: bool) -> None:
    followed = Followed(tmp_path / "file")
    for round_ in range(6):  # more often than it restarts
        for at in range(6):
            followed.write(at * MIB, random_bytes(MIB, seed=100 * round_ + at))
        if wait:
            await followed.caught_up()
        followed.write(10, b"header rewritten %d" % round_)
    assert await followed.finish()


async def test_a_read_error_of_the_follower_shows_at_the_end(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "file")
    for at in range(5):
        followed.write(at * MIB, random_bytes(MIB))
    await followed.caught_up()
    os.ftruncate(followed.fd, MIB)
    with pytest.raises(OSError, match="changed by another program"):
        await followed.follower.finish(followed.fd, 6 * MIB)
    followed.file.release()


async def test_the_follower_itself_stops_at_a_read_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = Followed(tmp_path / "file")

    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, "scripted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        for at in range(5):
            followed.write(at * MIB, random_bytes(MIB))
        assert await followed.caught_up() == 0
    assert await followed.finish()
