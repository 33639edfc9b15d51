"""Blocks of the tier's files: reserving them, giving them back, and finding where they are.

Python binds neither fallocate(2) with its modes nor a fallback for it. All of these block, and raise
``OSError``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
"""<linux/falloc.h>."""

_ZEROS: Final = bytes(1024 * 1024)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def reserve(fd: int, offset: int, length: int) -> None:
    """Allocate what is not allocated of a range; the length of the file stays. ``EOPNOTSUPP`` where the disk
    cannot."""
    _fallocate(fd, _KEEP_SIZE, offset, length)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of the file a hole, or zeros where the disk has no holes; its length stays."""
    try:
        _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        end = min(offset + length, os.fstat(fd).st_size)
        while offset < end:
            offset += os.pwrite(fd, _ZEROS[: end - offset], offset)


def seek(fd: int, offset: int, whence: int, size_bytes: int) -> int | None:
    """lseek(2) with SEEK_DATA or SEEK_HOLE in a file of ``size_bytes``, of which the disk may hold fewer;
    ``None`` where no data follow."""
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return offset if whence == os.SEEK_HOLE else None  # behind what is on the disk is a hole
    return min(found, size_bytes) if whence == os.SEEK_HOLE or found < size_bytes else None
