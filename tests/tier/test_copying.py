"""Copies keep holes, lengths and bytes, by whatever way the disk allows."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3blobfs.config import MIB
from s3blobfs.tier import copying
from tests.tier.kit import random_bytes


class Copy:
    def __init__(self, directory: Path, data: bytes) -> None:
        (directory / "source").write_bytes(data)
        self.source = os.open(directory / "source", os.O_RDWR)
        self.target = os.open(directory / "target", os.O_RDWR | os.O_CREAT)
        self.reserved = 0

    async def reserve(self, size_bytes: int) -> None:
        self.reserved += size_bytes

    async def run(self, size_bytes: int) -> bool:
        return await copying.copy_range(self.source, self.target, size_bytes, self.reserve)

    def result(self) -> bytes:
        return os.pread(self.target, os.fstat(self.target).st_size, 0)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    copy = Copy(tmp_path, random_bytes(3 * MIB + 11))
    yield copy
    os.close(copy.source)
    os.close(copy.target)


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MIB, 3 * MIB + 11])
async def test_the_first_bytes(copy: Copy, size: int) -> None:
    assert not await copy.run(size)
    assert copy.result() == random_bytes(3 * MIB + 11)[:size]
    assert copy.reserved == size


async def test_holes_stay_holes_and_are_not_reserved(copy: Copy) -> None:
    os.ftruncate(copy.source, 100 * MIB)
    os.pwrite(copy.source, b"end", 100 * MIB - 3)
    assert await copy.run(100 * MIB)
    assert os.fstat(copy.target).st_size == 100 * MIB
    assert os.fstat(copy.target).st_blocks * 512 < 5 * MIB
    assert copy.reserved < 5 * MIB
    assert os.pread(copy.target, 3, 100 * MIB - 3) == b"end"
    assert os.pread(copy.target, 3 * MIB + 11, 0) == random_bytes(3 * MIB + 11)


async def test_nothing_but_a_hole(copy: Copy) -> None:
    os.ftruncate(copy.source, 0)
    os.ftruncate(copy.source, 10 * MIB)
    assert await copy.run(10 * MIB)
    assert copy.reserved == 0
    assert copy.result() == bytes(10 * MIB)


@pytest.mark.parametrize("code", [errno.EIO, errno.EBADF])
async def test_errors_of_finding_holes_pass(copy: Copy, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: int) -> int:
        raise OSError(code, "scripted")

    monkeypatch.setattr(os, "lseek", fail)
    with pytest.raises(OSError, match="scripted"):
        await copy.run(10)


async def test_a_source_that_shrinks_meanwhile(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(OSError, match="became shorter"):
        await copy.run(10)


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_without_copy_file_range(copy: Copy, monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    def refuse(*_: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    await copy.run(3 * MIB + 11)
    assert copy.result() == random_bytes(3 * MIB + 11)


async def test_a_disk_error_is_no_reason_to_try_another_way(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> int:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="scripted"):
        await copy.run(10)


async def test_a_source_that_is_too_short(copy: Copy) -> None:
    with pytest.raises(OSError, match="fewer than"):
        await copy.run(4 * MIB)


async def test_a_disk_that_knows_no_holes(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EINVAL, "scripted")

    monkeypatch.setattr(os, "lseek", refuse)
    assert not await copy.run(2 * MIB)
    assert copy.result() == random_bytes(3 * MIB + 11)[: 2 * MIB]
