"""Short forms of what the tests of the filesystem do again and again."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from s3blobfs.errors import S3BlobFSError
from s3blobfs.fs.attributes import AttributeChanges, Attributes
from s3blobfs.fuse.errno_table import errno_of
from tests.support.rig import BUCKET, ROOT, USER, Rig


class Clock:
    """The time that a filesystem believes in: it stands still until a test moves it."""

    def __init__(self, now_ns: int = 1_700_000_000_123_456_789) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def tick(self, by_ns: int = 1_000_001) -> int:
        """Go on, and answer the time it is then."""
        self.now_ns += by_ns
        return self.now_ns


@contextmanager
def refused(expected: int) -> Iterator[None]:
    """What is called inside fails with this errno, as a program would see it."""
    with pytest.raises(S3BlobFSError) as caught:
        yield
    found = errno_of(caught.value)
    assert found == expected, f"{errno.errorcode[found]} in place of {errno.errorcode[expected]}"


async def names(rig: Rig, directory: int = ROOT) -> list[bytes]:
    """What a listing shows, less the dots, in its order."""
    handle = await rig.fs.opendir(directory)
    found: list[bytes] = []
    after = 0
    while page := await rig.fs.readdir(handle, after):
        found += [entry.name for entry in page]
        after = page[-1].cookie
    await rig.fs.releasedir(handle)
    assert found[:2] == [b".", b".."]
    return found[2:]


async def make_file(rig: Rig, name: bytes, parent: int = ROOT) -> Attributes:
    """An empty file, closed."""
    opened, made = await rig.fs.create(parent, name, 0o644, os.O_WRONLY, USER)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    return made


async def find(rig: Rig, name: bytes, parent: int = ROOT) -> Attributes:
    found = await rig.fs.lookup(parent, name)
    assert found is not None, name
    return found


@asynccontextmanager
async def opened_file(rig: Rig, inode_id: int, flags: int = os.O_RDWR) -> AsyncIterator[int]:
    """A handle, closed as a program's is: flush, then release."""
    opened = await rig.fs.open(inode_id, flags)
    try:
        yield opened.handle
    finally:
        try:
            await rig.fs.flush(opened.handle)
        finally:
            await rig.fs.release(opened.handle)


async def resize(rig: Rig, inode_id: int, size_bytes: int) -> Attributes:
    return await rig.fs.setattr(inode_id, AttributeChanges(size_bytes=size_bytes))


async def xattr(rig: Rig, inode_id: int, name: str) -> str:
    """One of the filesystem's own."""
    return (await rig.fs.getxattr(inode_id, f"user.s3blobfs.{name}".encode())).decode()


def calm(rig: Rig) -> None:
    """From now on S3 does not fail."""
    rig.faults._script.clear()


def versions(rig: Rig, key: str) -> list[bytes]:
    """The bytes of each version of a key, oldest first; a delete marker fails."""
    history = rig.setup.server.bucket(BUCKET).versions.get(key, [])
    assert not any(version.is_delete_marker for version in history)
    return [version.data for version in history]


def pattern(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that differ at every offset a test cares about."""
    unit = bytes((index * 7 + index // 251 * seed + seed) % 256 for index in range(65_537))
    return (unit * (size_bytes // len(unit) + 1))[:size_bytes]
