"""Showing the kernel the files that it is to read by itself (FUSE passthrough)."""

from __future__ import annotations

import errno
import fcntl
import logging
import os

from s3blobfs.fuse.extension import protocol
from s3blobfs.fuse.extension.handshake import Handshake

log = logging.getLogger(__name__)

_REASONS = {
    errno.EPERM: "it takes the privilege CAP_SYS_ADMIN, and that outside of user namespaces",
    errno.ELOOP: "the file lies on a filesystem that lies on another one",
    errno.ENOTTY: "the kernel has no passthrough",
    errno.EOPNOTSUPP: "the kernel has no passthrough",
}


class KernelFiles:
    """Of one connection (:class:`s3blobfs.fs.loan.BackingFiles`). A number is given up by the kernel, too,
    when the connection ends."""

    def __init__(self, connection: Handshake) -> None:
        """``connection`` is answered."""
        self._connection: Handshake | None = connection

    def probe(self) -> None:
        """``OSError`` where the kernel wants no file at all, with the reason."""
        fd = os.memfd_create("s3blobfs-probe")
        try:
            self.forget(self.register(fd))
        finally:
            os.close(fd)

    def register(self, fd: int) -> int:
        """``OSError`` where the kernel does not want it, with the reason."""
        if self._connection is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        request = bytearray(protocol.BACKING_MAP.pack(fd, 0, 0))
        try:
            number: int = fcntl.ioctl(self._connection.device, protocol.BACKING_OPEN, request, True)
        except OSError as error:
            code = error.errno or errno.EIO
            raise OSError(code, _REASONS.get(code, os.strerror(code))) from error
        return number

    def forget(self, number: int) -> None:
        if self._connection is None:
            return
        request = bytearray(protocol.BACKING_ID.pack(number))
        try:
            fcntl.ioctl(self._connection.device, protocol.BACKING_CLOSE, request)
        except OSError as error:  # it has unmounted, and so forgotten
            log.info("the kernel does not know file %d: %s", number, error.strerror)

    def close(self) -> None:
        """The connection is no more."""
        self._connection = None


def answer_to_open(handle: int, number: int, *, only_mappings: bool, reads_only: bool) -> bytes:
    """For a handle that is to use a file by its number; see :class:`s3blobfs.fs.lending.Access`."""
    flags = protocol.OpenFlag.PASSTHROUGH
    if only_mappings:
        flags |= protocol.OpenFlag.DIRECT_IO
    if reads_only:
        flags |= protocol.OpenFlag.NOFLUSH
    return protocol.OPEN_OUT.pack(handle, flags, number)
