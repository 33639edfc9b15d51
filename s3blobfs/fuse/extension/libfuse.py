"""libfuse's binary interface, as far as it is used here: stable since 3.0, and only ever added to.

Types and functions are those of <fuse_lowlevel.h>. It is called with the interpreter's lock held, as
pyfuse3 does: none of these functions waits for anything.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any, Final, NamedTuple

import pyfuse3


class FileInfo(ctypes.Structure):
    """The beginning of struct fuse_file_info."""

    _fields_ = [("flags", c_int), ("bits", c_uint32), ("padding", c_uint64), ("fh", c_uint64)]


class OpenBit(enum.IntFlag):
    """Bit fields of struct fuse_file_info that tell the kernel how to treat what was opened."""

    KEEP_CACHE = 1 << 2
    CACHE_READDIR = 1 << 6
    """The kernel keeps the listing of a directory (libfuse 3.5)."""
    NOFLUSH = 1 << 7
    """No FLUSH when a descriptor is closed (libfuse 3.11)."""


FileInfoPointer: Final = POINTER(FileInfo)

Prototype = Callable[..., Any]
"""Made by ctypes.CFUNCTYPE: from a Python function, something that C can call."""

REPLY_OPEN: Final = ctypes.PYFUNCTYPE(c_int, c_void_p, FileInfoPointer)
"""``fuse_reply_open(req, fi)``."""
SESSION_NEW: Final = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p)
"""``fuse_session_new(args, operations, size of these, userdata)``, and with one more argument
``fuse_session_new_versioned(args, operations, size, version, userdata)``."""


class Operation(NamedTuple):
    """An entry of struct fuse_lowlevel_ops."""

    place: int
    prototype: Prototype


IOCTL: Final = Operation(
    34,
    ctypes.PYFUNCTYPE(
        None, c_void_p, c_uint64, c_uint, c_void_p, FileInfoPointer, c_uint, c_void_p, c_size_t, c_size_t
    ),
)
"""req, ino, cmd, arg, fi, flags, in_buf, in_bufsz, out_bufsz."""
FALLOCATE: Final = Operation(
    40, ctypes.PYFUNCTYPE(None, c_void_p, c_uint64, c_int, c_int64, c_int64, FileInfoPointer)
)
"""req, ino, mode, offset, length, fi."""
COPY_FILE_RANGE: Final = Operation(
    42,
    ctypes.PYFUNCTYPE(
        None,
        c_void_p,
        c_uint64,
        c_int64,
        FileInfoPointer,
        c_uint64,
        c_int64,
        FileInfoPointer,
        c_size_t,
        c_int,
    ),
)
"""req, ino_in, off_in, fi_in, ino_out, off_out, fi_out, len, flags."""
LSEEK: Final = Operation(43, ctypes.PYFUNCTYPE(None, c_void_p, c_uint64, c_int64, c_int, FileInfoPointer))
"""req, ino, off, whence, fi."""


class LibFuse:
    """The library that pyfuse3 is linked with. ``OSError`` and ``AttributeError`` where it cannot be had."""

    def __init__(self) -> None:
        self.pyfuse3 = ctypes.PyDLL(pyfuse3.__file__)
        """Functions of the libraries that it depends on are found through it."""
        self.reply_err = self._function("fuse_reply_err", c_void_p, c_int)
        self.reply_write = self._function("fuse_reply_write", c_void_p, c_size_t)
        self.reply_lseek = self._function("fuse_reply_lseek", c_void_p, c_int64)
        self.reply_ioctl = self._function("fuse_reply_ioctl", c_void_p, c_int, c_char_p, c_size_t)
        self.reply_buf = self._function("fuse_reply_buf", c_void_p, c_char_p, c_size_t)

    def _function(self, name: str, *arguments: Any) -> Callable[..., int]:
        function = getattr(self.pyfuse3, name)
        function.argtypes = arguments
        function.restype = c_int
        return function  # type: ignore[no-any-return]
