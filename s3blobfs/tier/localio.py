"""System calls on the tier's files: without blocking the event loop, and with the tier's errors.

What is in the page cache is copied inline, because a hop to a worker thread costs more (tens of
microseconds) than the copy; what has to wait for the disk goes to a thread. ``preadv2(2)`` with
``RWF_NOWAIT`` tells the two apart for reads. A write of up to ``INLINE_WRITE_BYTES`` is a copy into the page
cache and is done inline as well.

``OSError`` becomes :class:`~s3blobfs.errors.TierFull` (``ENOSPC``, ``EDQUOT``) or
:class:`~s3blobfs.errors.TierUnavailable` (and its kinds for ``EROFS``, ``EMFILE`` and ``ENFILE``) here, and
nowhere else in the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import trio

from s3blobfs.config import MIB
from s3blobfs.errors import TierError, TierFull, TierOutOfFiles, TierReadOnly, TierUnavailable
from s3blobfs.threads import run_in_thread
from s3blobfs.types import Buffer

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_WAIT_BEFORE = 1
"""``SYNC_FILE_RANGE_WAIT_BEFORE``."""
_BEYOND = 1 << 60
_NO_FILE_RANGES = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE})
"""Kernels and filesystems that know no such call."""

INLINE_WRITE_BYTES = 1 * MIB
"""Up to here a write is made on the event loop's thread: about 0.1 ms of memcpy at most."""

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_NOWAIT_REFUSED = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})
"""Would block; or the filesystem (tmpfs, NFS …) knows no ``RWF_NOWAIT``."""

_DISK_THREADS = trio.CapacityLimiter(8)
"""Threads waiting for the disk. Apart from trio's own, which requests to S3 may all occupy."""
_HASH_THREADS = trio.CapacityLimiter(4)
"""Threads that compute digests: long jobs, which must not keep reads from the disk."""


def tier_error(error: OSError, what: str) -> TierError:
    """``error`` as the tier's; raise it ``from error``."""
    reason = error.strerror or str(error)
    if error.errno in NO_SPACE:
        return TierFull(f"{what}: {reason}; free space on the local tier's disk")
    if error.errno == errno.EROFS:
        return TierReadOnly(f"{what}: {reason}; mount the local tier's disk for writing again")
    if error.errno in NO_DESCRIPTORS:
        return TierOutOfFiles(f"{what}: {reason}; raise the limit on open files (ulimit -n)")
    return TierUnavailable(f"{what}: {reason}")


@contextlib.contextmanager
def local_errors(what: str) -> Iterator[None]:
    """Maps ``OSError`` of the block to :class:`TierError`; ``what`` says what was tried, naming the file."""
    try:
        yield
    except OSError as error:
        raise tier_error(error, what) from error


async def in_disk_thread(function: Callable[[], _T]) -> _T:
    """Run what waits for the disk. Not abandoned when cancelled: files stay open until it returns."""
    return await run_in_thread(function, _DISK_THREADS)


async def in_hash_thread(function: Callable[[], _T]) -> _T:
    """Run what keeps a processor busy for milliseconds or more. Not abandoned when cancelled."""
    return await run_in_thread(function, _HASH_THREADS)


class SharedFd:
    """A file descriptor with several users, closed when the last one is done. Thread-safe."""

    __slots__ = ("_lock", "_users", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._users = 1
        self._lock = threading.Lock()

    def acquire(self) -> SharedFd:
        with self._lock:
            assert self._users > 0, "the file was closed already"
            self._users += 1
        return self

    def __enter__(self) -> SharedFd:
        """Of what was acquired: released at the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        with self._lock:
            assert self._users > 0, "released more often than acquired"
            self._users -= 1
            last = self._users == 0
        if last:
            os.close(self.fd)


class Disposal:
    """Frees the blocks of large files away from the event loop: to unlink or to close the last descriptor of
    a file of 1 GiB takes ext4 some 0.1 s. One thread at a time, for as long as there is something to do."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], object]] = deque()
        self._idle = threading.Condition()
        self._running = False

    def add(self, job: Callable[[], object]) -> None:
        """Have ``job`` done soon; its ``OSError`` is logged."""
        with self._idle:
            self._jobs.append(job)
            if self._running:
                return
            self._running = True
        trio.lowlevel.start_thread_soon(self._work, lambda outcome: outcome.unwrap())

    def wait(self) -> None:
        """Until all is done. Blocks."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running)

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._jobs:
                    self._running = False
                    self._idle.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except OSError as error:
                log.warning("a file of the local tier could not be removed: %s", error)


def read_fully(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the file. Blocks. ``OSError``."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_fully(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``. A failure may leave a part of it written. Blocks. ``OSError``."""
    done = os.pwrite(fd, data, offset)
    if done == len(data):
        return
    view = memoryview(data)
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def check_written_back(fd: int) -> None:
    """``OSError`` if bytes written to the file could not be brought to the disk since it was opened, or since
    this said so. Neither writes nor waits.

    The kernel writes dirty pages behind our back, and after a failure it may forget them: what is read then
    is older than what was written. It says so once for each descriptor (``errseq_t``), to fsync(2) and to
    sync_file_range(2), which for a range beyond every byte has nothing else to do."""
    if _libc.sync_file_range(fd, _BEYOND, 1, _WAIT_BEFORE) != 0:
        code = ctypes.get_errno()
        if code not in _NO_FILE_RANGES:
            raise OSError(code, os.strerror(code))


async def read_at(
    fd: int, offset: int, size: int, on_wait: Callable[[], object] | None = None
) -> bytes | bytearray:
    """Up to ``size`` bytes from ``offset``, short only at the end of the file. Raises ``OSError``.
    ``on_wait`` is called when they are not all in memory.

    Ask for no more than the file has: bytes beyond its end cost a thread to find that there are none."""
    if size <= 0:
        return b""
    buffer = bytearray(size)
    is_told = True
    try:
        done = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in _NOWAIT_REFUSED:
            raise
        is_told = error.errno == errno.EAGAIN
        done = 0
    if done < size:
        if is_told and on_wait is not None:
            on_wait()
        rest = memoryview(buffer)[done:]
        done += await in_disk_thread(lambda: read_fully(fd, rest, offset + done))
        rest.release()
        del buffer[done:]
    return buffer


def ask_for(fd: int, size: int) -> None:
    """Have the operating system bring the first bytes of a file into memory, without waiting for the disk.
    ``OSError``."""
    os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)


async def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``: inline when it is small, else in a thread. Raises ``OSError``."""
    if len(data) <= INLINE_WRITE_BYTES:
        write_fully(fd, data, offset)
    else:
        await in_disk_thread(lambda: write_fully(fd, data, offset))
