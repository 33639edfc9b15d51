"""The operations that pyfuse3 does not bind: from libfuse's call to a task that answers it.

libfuse calls on the trio thread, from within pyfuse3's loop; what it hands over by pointer is good only
until the call returns.
"""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import pyfuse3
import trio

from s3blobfs.fuse.extension.libfuse import COPY_FILE_RANGE, FALLOCATE, IOCTL, LSEEK, LibFuse, Operation

log = logging.getLogger(__name__)

T = TypeVar("T")


class UnboundOperations(Protocol):
    """Handlers, like those of pyfuse3: they answer, or raise ``pyfuse3.FUSEError``."""

    async def ioctl(self, inode: int, command: int, data: bytes, answer_max_bytes: int) -> bytes: ...

    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None: ...

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int: ...

    async def lseek(self, fh: int, offset: int, whence: int) -> int: ...


class UnboundRequests:
    """Starts a task for each call. ``library`` and ``nursery`` are set before the first one."""

    def __init__(self, operations: UnboundOperations) -> None:
        self._operations = operations
        self.library: LibFuse | None = None
        self.nursery: trio.Nursery | None = None

    def table(self) -> Mapping[Operation, Callable[..., None]]:
        """What libfuse calls."""
        return {
            IOCTL: self._ioctl,
            FALLOCATE: self._fallocate,
            COPY_FILE_RANGE: self._copy_file_range,
            LSEEK: self._lseek,
        }

    def _ioctl(
        self,
        request: int,
        inode: int,
        command: int,
        _arg: int,
        _info: Any,
        _flags: int,
        data: int | None,
        data_bytes: int,
        answer_max_bytes: int,
    ) -> None:
        sent = ctypes.string_at(data, data_bytes) if data else b""

        def reply(library: LibFuse, answer: bytes) -> int:
            return library.reply_ioctl(request, 0, answer, len(answer))

        self._start(request, partial(self._operations.ioctl, inode, command, sent, answer_max_bytes), reply)

    def _fallocate(self, request: int, _inode: int, mode: int, offset: int, length: int, info: Any) -> None:
        def reply(library: LibFuse, _: None) -> int:
            return library.reply_err(request, 0)

        self._start(request, partial(self._operations.fallocate, info[0].fh, mode, offset, length), reply)

    def _copy_file_range(
        self,
        request: int,
        _inode_in: int,
        offset_in: int,
        info_in: Any,
        _inode_out: int,
        offset_out: int,
        info_out: Any,
        length: int,
        _flags: int,
    ) -> None:
        def reply(library: LibFuse, copied: int) -> int:
            return library.reply_write(request, copied)

        copy = self._operations.copy_file_range
        self._start(
            request, partial(copy, info_in[0].fh, offset_in, info_out[0].fh, offset_out, length), reply
        )

    def _lseek(self, request: int, _inode: int, offset: int, whence: int, info: Any) -> None:
        def reply(library: LibFuse, found: int) -> int:
            return library.reply_lseek(request, found)

        self._start(request, partial(self._operations.lseek, info[0].fh, offset, whence), reply)

    def _start(
        self, request: int, work: Callable[[], Awaitable[T]], reply: Callable[[LibFuse, T], int]
    ) -> None:
        assert self.nursery is not None, "no session is being served"
        self.nursery.start_soon(self._answer, request, work, reply)

    async def _answer(
        self, request: int, work: Callable[[], Awaitable[T]], reply: Callable[[LibFuse, T], int]
    ) -> None:
        library = self.library
        assert library is not None
        try:
            result = await work()
        except pyfuse3.FUSEError as error:
            failed = library.reply_err(request, error.errno)
        except Exception:
            log.exception("a request of the kernel failed")
            failed = library.reply_err(request, errno.EIO)
        else:
            failed = reply(library, result)
        if failed and -failed not in (errno.ENOENT, errno.ENODEV):  # interrupted, or unmounted
            log.error("an answer to the kernel failed: %s", errno.errorcode.get(-failed, failed))
