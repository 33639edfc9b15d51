"""Inline where it cannot block, in a thread where it can; errors of the disk as the tier's."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3blobfs.errors import TierFull, TierUnavailable
from s3blobfs.tier.localio import (
    INLINE_WRITE_BYTES,
    Disposal,
    SharedFd,
    local_errors,
    read_at,
    write_at,
)
from tests.tier.kit import random_bytes


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(random_bytes(100_000))
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, TierFull),
        (errno.EDQUOT, TierFull),
        (errno.EIO, TierUnavailable),
        (errno.EROFS, TierUnavailable),
    ],
)
def test_errors_are_mapped(code: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"writing /x: ") as caught, local_errors("writing /x"):
        raise OSError(code, os.strerror(code))
    assert isinstance(caught.value.__cause__, OSError)


async def test_what_is_in_the_page_cache_is_read_inline(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        threads.append(threading.get_ident())
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert await read_at(fd, 5, 1000) == random_bytes(100_000)[5:1005]
    assert len(threads) == 1


@pytest.mark.parametrize("refusal", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, None])
async def test_what_would_block_is_read_in_a_thread(
    fd: int, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """``None``: the page cache has the first bytes only."""
    here = threading.get_ident()
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            if refusal is None:
                return real(fd, [memoryview(buffers[0])[:100]], offset)
            raise OSError(refusal, os.strerror(refusal))
        assert threading.get_ident() != here
        return real(fd, [buffers[0][:3000]], offset)  # and disks may answer in parts

    monkeypatch.setattr(os, "preadv", preadv)
    assert await read_at(fd, 7, 10_000) == random_bytes(100_000)[7:10_007]
    assert await read_at(fd, 99_990, 100) == random_bytes(100_000)[99_990:]


async def test_read_errors_pass(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(OSError, match="scripted"):
        await read_at(fd, 0, 10)


async def test_nothing_is_read_for_nothing(fd: int) -> None:
    assert await read_at(fd, 0, 0) == b""
    assert await read_at(fd, 0, -1) == b""


@pytest.mark.parametrize("size", [1, INLINE_WRITE_BYTES, INLINE_WRITE_BYTES + 1])
async def test_writes_are_whole_even_if_the_disk_takes_parts(
    fd: int, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real = os.pwrite
    threads = set()

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        threads.add(threading.get_ident() == here)
        return real(fd, data[: 1 + len(data) // 2], offset)

    here = threading.get_ident()
    monkeypatch.setattr(os, "pwrite", pwrite)
    await write_at(fd, memoryview(random_bytes(size, 2)), 3)
    assert os.pread(fd, size, 3) == random_bytes(size, 2)
    assert threads == {size <= INLINE_WRITE_BYTES}


def test_a_shared_descriptor_closes_with_its_last_user(tmp_path: Path) -> None:
    file = SharedFd(os.open(tmp_path, os.O_RDONLY))
    other = file.acquire()
    file.release()
    os.fstat(other.fd)
    other.release()
    with pytest.raises(OSError):
        os.fstat(other.fd)


@pytest.mark.expected_log("could not be removed: .*scripted")
async def test_disposal_does_all_and_logs_what_fails() -> None:
    disposal = Disposal()
    done: list[int] = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise OSError(errno.EIO, "scripted")

    disposal.add(fail)
    for number in range(100):
        disposal.add(lambda number=number: done.append(number))  # type: ignore[misc]
    gate.set()
    disposal.wait()
    assert done == list(range(100))
