"""The calls that the machine makes, once for a directory (plain or mounted) and once without any mount."""

from __future__ import annotations

import enum
import errno
import mmap
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.support.fallocate import fallocate
from tests.support.renameat2 import renameat2

PAGE = 4096


@dataclass(frozen=True)
class Outcome:
    """What a call answered: a value, or an errno by its name."""

    value: Any = None
    error: str | None = None


def outcome_of(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(call())
    except OSError as error:
        return Outcome(error=errno.errorcode[error.errno or 0])


@dataclass(frozen=True)
class Status:
    """The part of stat(2) in which two filesystems must agree."""

    kind: int
    permissions: int
    nlink: int
    size_bytes: int | None
    """Of files and symbolic links; directories differ."""
    rdev: int

    @classmethod
    def of(cls, status: os.stat_result) -> Status:
        sized = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        return cls(
            kind=stat.S_IFMT(status.st_mode),
            permissions=stat.S_IMODE(status.st_mode),
            nlink=status.st_nlink,
            size_bytes=status.st_size if sized else None,
            rdev=status.st_rdev,
        )


class Where(enum.Enum):
    """The next mount of the same volume."""

    HERE = "here"
    EMPTY_CACHE = "here, with an empty cache"
    ELSEWHERE = "on another machine, which has nothing but the bucket"


class Driver(Protocol):
    """Paths are relative to the driver's root; open files are known by the number the machine gave them.
    Failures are ``OSError``."""

    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def mkfifo(self, path: bytes, mode: int) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def readlink(self, path: bytes) -> bytes: ...
    def link(self, source: bytes, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rename(self, source: bytes, target: bytes, flags: int) -> None: ...
    def stat(self, path: bytes) -> Status: ...
    def listdir(self, path: bytes) -> list[bytes]: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def utime(self, path: bytes, mtime_ns: int) -> int: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def listxattr(self, path: bytes) -> list[bytes]: ...
    def open(self, number: int, path: bytes, flags: int, mode: int) -> None: ...
    def close(self, number: int) -> None: ...
    def pread(self, number: int, offset: int, size: int) -> bytes: ...
    def pwrite(self, number: int, offset: int, data: bytes) -> int: ...
    def append(self, number: int, data: bytes) -> int: ...
    def ftruncate(self, number: int, size: int) -> None: ...
    def fsync(self, number: int) -> None: ...
    def fstat(self, number: int) -> Status: ...
    def mapped_write(self, number: int, offset: int, data: bytes) -> None: ...
    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None: ...
    def copy_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int: ...
    def append_at_once(self, pieces: Sequence[tuple[int, bytes]]) -> None: ...
    def remount(self, where: Where) -> None: ...


class DirectoryDriver:
    """System calls below a directory: the model itself, or a mount."""

    def __init__(self, root: Path, remount: Callable[[Where], None] = lambda where: None) -> None:
        self._root = os.fsencode(root)
        self._remount = remount
        self._files: dict[int, int] = {}

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def mkfifo(self, path: bytes, mode: int) -> None:
        os.mkfifo(self._at(path), mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def link(self, source: bytes, path: bytes) -> None:
        os.link(self._at(source), self._at(path), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        renameat2(self._at(source), self._at(target), flags)

    def stat(self, path: bytes) -> Status:
        return Status.of(os.lstat(self._at(path)))

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def utime(self, path: bytes, mtime_ns: int) -> int:
        os.utime(self._at(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        return os.lstat(self._at(path)).st_mtime_ns

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def listxattr(self, path: bytes) -> list[bytes]:
        return sorted(os.fsencode(name) for name in os.listxattr(self._at(path), follow_symlinks=False))

    def open(self, number: int, path: bytes, flags: int, mode: int) -> None:
        self._files[number] = os.open(self._at(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)

    def close(self, number: int) -> None:
        os.close(self._files.pop(number))

    def pread(self, number: int, offset: int, size: int) -> bytes:
        return os.pread(self._files[number], size, offset)

    def pwrite(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._files[number], data, offset)

    def append(self, number: int, data: bytes) -> int:
        return os.write(self._files[number], data)

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self._files[number], size)

    def fsync(self, number: int) -> None:
        os.fsync(self._files[number])

    def fstat(self, number: int) -> Status:
        return Status.of(os.fstat(self._files[number]))

    def mapped_write(self, number: int, offset: int, data: bytes) -> None:
        with mmap.mmap(self._files[number], offset + len(data)) as mapping:
            mapping[offset:] = data

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        fallocate(self._files[number], mode, offset, length)

    def copy_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int:
        return os.copy_file_range(self._files[source], self._files[target], length, offset, target_offset)

    def append_at_once(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        with ThreadPoolExecutor(len(pieces)) as pool:
            together = threading.Barrier(len(pieces))

            def append(number: int, data: bytes) -> None:
                together.wait()
                assert self.append(number, data) == len(data)

            for done in [pool.submit(append, *piece) for piece in pieces]:
                done.result()

    def remount(self, where: Where) -> None:
        self._remount(where)
