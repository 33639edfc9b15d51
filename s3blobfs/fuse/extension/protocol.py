"""What is spoken with the kernel here without libfuse's help: the layouts and numbers of <linux/fuse.h>."""

from __future__ import annotations

import enum
from struct import Struct

IN_HEADER = Struct("=IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER = Struct("=IiQ")
"""fuse_out_header: len, error, unique."""
INIT_IN = Struct("=IIII")
"""fuse_init_in before protocol 7.36: major, minor, max_readahead, flags."""
INIT_IN_FLAGS2 = Struct("=I")
"""What 7.36 added behind that, before spare words: flags2."""
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
"""fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write,
time_gran, max_pages, map_alignment, flags2, max_stack_depth, request_timeout."""
OPEN_OUT = Struct("=QIi")
"""fuse_open_out: fh, open_flags, backing_id."""

OPCODE_INIT = 26
MAJOR = 7
MINOR = 40
"""The newest version whose layouts are used here; the kernel takes the older one of the two sides'."""
REQUEST_MAX_BYTES = 8192
"""No request but a write is longer (FUSE_MIN_READ_BUFFER)."""


class InitFlag(enum.IntFlag):
    """FUSE_INIT: what both sides can do, and this one wants. ``flags2`` holds the upper half."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    """O_TRUNC comes with OPEN."""
    EXPORT_SUPPORT = 1 << 4
    """LOOKUP of ``.`` and ``..``."""
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    """The umask is this side's part: a default ACL stands in its place (umask(2))."""
    IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    """Pages go when the modification time changes behind the kernel's back."""
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    """LOOKUP and READDIR of one directory need not come one after the other."""
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    """Requests longer than 128 KiB."""
    CACHE_SYMLINKS = 1 << 23
    """Targets are kept; they never change."""
    HANDLE_KILLPRIV_V2 = 1 << 28
    """Dropping set-id bits is this side's part (docs/fuse-extension.md)."""
    INIT_EXT = 1 << 30
    """There is a ``flags2``."""
    PASSTHROUGH = 1 << 37
    """The kernel reads files of ours that it is shown by itself (Linux 6.9). Not with WRITEBACK_CACHE."""


class OpenFlag(enum.IntFlag):
    """``open_flags`` of the answer to OPEN."""

    DIRECT_IO = 1 << 0
    """Reads and writes come to this side; with PASSTHROUGH, too, where only mappings do not, then."""
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7
    """By the file that ``backing_id`` names. Not with KEEP_CACHE (1 << 1): the open then fails with EIO."""


BACKING_MAP = Struct("=iIQ")
"""fuse_backing_map: fd, flags, padding."""
BACKING_OPEN = 0x4010E501
"""ioctl(2) on the device: ``_IOW(229, 1, struct fuse_backing_map)``; answers the backing id."""
BACKING_CLOSE = 0x4004E502
"""``_IOW(229, 2, uint32_t)``: the backing id."""
BACKING_ID = Struct("=I")
MAX_STACK_DEPTH = 1
"""How many filesystems may lie on each other below this one. With 2 files of an overlay could be shown, too.
But a mapping of these does not hold the file that this process has open, so its lease would tell nothing;
and nothing could be laid on this filesystem."""
