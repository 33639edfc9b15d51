"""Answering FUSE_INIT.

libfuse does not ask for all that the kernel offers, and pyfuse3 lets nobody ask. So the kernel is answered
here; libfuse gets the same request a moment later from a socket that has taken the device's place:

1. ``pyfuse3.init`` mounts. The kernel has queued FUSE_INIT on the device, whose descriptor is found by
   looking at what is open before and after.
2. :meth:`Handshake.answer`: the request is read and answered, and the descriptor's number given to a socket
   that holds the same request. The device goes on under another number.
3. libfuse reads from the socket, and calls ``Operations.init`` before it replies: :meth:`Handshake.hand_over`
   gives the number back to the device.
4. libfuse's own reply reaches the kernel as a second one to the same request. The kernel says ENOENT, which
   libfuse takes for an interrupted request, as it happens every day, and ignores.

No privilege is needed beyond that to mount. Seen with libfuse 3.14 and 3.18.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from pathlib import Path
from typing import Final

from s3blobfs.fuse.extension import protocol
from s3blobfs.fuse.extension.protocol import InitFlag

DEVICE: Final = Path("/dev/fuse")
OPEN_FILES: Final = Path("/proc/self/fd")

MAX_WRITE_BYTES: Final = 1024 * 1024
"""The most that libfuse's buffers take in a request."""
MAX_BACKGROUND: Final = 64
"""Requests "in the background" under way at once, which all reads through the page cache are, and each may be
a GET. The kernel's own limit of 12 holds up readers of files that are not cached (docs/performance.md)."""
CONGESTION: Final = MAX_BACKGROUND * 3 // 4

ALWAYS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.IOCTL_DIR
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.MAX_PAGES
    | InitFlag.INIT_EXT
)
"""What libfuse and pyfuse3 ask for by themselves."""
ADDED: Final = InitFlag.PARALLEL_DIROPS | InitFlag.CACHE_SYMLINKS | InitFlag.HANDLE_KILLPRIV_V2
"""What they do not."""


class HandshakeFailed(OSError):
    """What the kernel sends first is not what it should be."""


class DeviceNotFound(Exception):
    """It is not known which descriptor is the session's."""


def reply_to(request: bytes, wanted: InitFlag) -> bytes:
    """The answer to FUSE_INIT that asks for what of ``wanted`` the kernel offers. :class:`HandshakeFailed`
    for any other request."""
    header = protocol.IN_HEADER
    _, opcode, unique, *_ = header.unpack_from(request)
    if opcode != protocol.OPCODE_INIT:
        raise HandshakeFailed(errno.EPROTO, f"the first request is {opcode}, not FUSE_INIT")
    major, minor, max_readahead, offered = protocol.INIT_IN.unpack_from(request, header.size)
    if major != protocol.MAJOR:
        raise HandshakeFailed(errno.EPROTO, f"the kernel speaks version {major} of the protocol")
    if offered & InitFlag.INIT_EXT:
        (upper,) = protocol.INIT_IN_FLAGS2.unpack_from(request, header.size + protocol.INIT_IN.size)
        offered |= upper << 32
    flags = int(wanted) & offered
    body = protocol.INIT_OUT.pack(
        protocol.MAJOR,
        min(minor, protocol.MINOR),
        max_readahead,
        flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        CONGESTION,
        MAX_WRITE_BYTES,
        1,  # ns: the grain of times
        MAX_WRITE_BYTES // mmap.PAGESIZE,
        0,
        flags >> 32,
        protocol.MAX_STACK_DEPTH if flags & InitFlag.PASSTHROUGH else 0,
        0,
    )
    return protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), 0, unique) + body


def open_devices() -> set[int]:
    """This process's descriptors of the FUSE device. ``OSError`` without /proc."""
    found = set()
    for link in OPEN_FILES.iterdir():
        try:
            if link.readlink() == DEVICE:
                found.add(int(link.name))
        except FileNotFoundError:
            pass  # the descriptor that listed them
    return found


class Handshake:
    """One connection's. Made before ``pyfuse3.init``; ``OSError`` when it could not find the device later."""

    def __init__(self) -> None:
        self._before = open_devices()
        self._number = -1
        self._device: int | None = None

    def answer(self, wanted: InitFlag) -> None:
        """After ``pyfuse3.init``. :class:`DeviceNotFound`, with nothing read; any other ``OSError`` leaves a
        connection that is of no use."""
        new = open_devices() - self._before
        if len(new) != 1:
            raise DeviceNotFound(f"{len(new)} descriptors of {DEVICE} were opened, not one")
        (self._number,) = new
        request = os.read(self._number, protocol.REQUEST_MAX_BYTES)
        os.write(self._number, reply_to(request, wanted))
        self._device = os.dup(self._number)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.send(request)
            os.dup2(theirs.fileno(), self._number, inheritable=False)

    @property
    def device(self) -> int:
        """The descriptor to be used for ioctl(2), once the kernel is answered."""
        return self._number if self._device is None else self._device

    def hand_over(self) -> None:
        """Give libfuse the device; from ``Operations.init``."""
        if self._device is not None:
            os.dup2(self._device, self._number, inheritable=False)
            self.close()

    def close(self) -> None:
        """Keep nothing open beside libfuse's descriptor. May be called again."""
        if self._device is not None:
            os.close(self._device)
            self._device = None
