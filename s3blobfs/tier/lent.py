"""Files that the kernel reads by itself for those who have them open: what is known of them all the same.

Who else has such a file, by a descriptor or by a mapping that has outlived it, is told by a lease: a write
lease is granted only to the one who has the only open file (fcntl(2), F_SETLEASE).

Stores through a shared mapping come unseen. They move the file's mtime, but only the first one to a page
since it was last written to the disk. So a file is marked with a time that no change sets; and before it is
read in order to be stored, it is marked anew *and then* brought to the disk: a store that comes before that
is among what is read, one that comes later takes the mark away.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal

from s3blobfs.tier.layout import TEMPORARY_PREFIX, TierLayout

_MARK_NS = 10 * 10**9
"""Ten seconds after the beginning of 1970: in the past, and exact on every disk."""


def nobody_else_has(fd: int) -> bool:
    """Whether this is the only open file of its inode. ``OSError`` where that cannot be told."""
    # Who opens the file in between makes the kernel send a signal, which must not end this process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def mark(fd: int) -> None:
    """From now on :func:`is_marked` tells whether the file was changed. ``OSError``."""
    os.utime(fd, ns=(os.fstat(fd).st_atime_ns, _MARK_NS))


def is_marked(fd: int) -> bool:
    """``OSError``."""
    return os.fstat(fd).st_mtime_ns == _MARK_NS


def check_disk(layout: TierLayout) -> int:
    """Try all this on a file of the tier's disk, and answer its descriptor; it has no name any more.
    ``OSError`` where it does not work, and why."""
    name = f"{TEMPORARY_PREFIX}lent"
    layout.root.unlink(name)
    fd = layout.root.create(name)
    try:
        try:
            other = layout.root.open(name)
        finally:
            layout.root.unlink(name)
        try:
            if nobody_else_has(fd):
                raise OSError(errno.EOPNOTSUPP, "the cache's disk does not tell who has a file open")
        finally:
            os.close(other)
        if not nobody_else_has(fd):
            raise OSError(errno.EOPNOTSUPP, "the cache's disk has no leases")
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as mapping:
            mapping[0] = 1
            mark(fd)
            os.fdatasync(fd)
            if not is_marked(fd):
                raise OSError(errno.EOPNOTSUPP, "the cache's disk changes times by itself")
            mapping[0] = 2
            if is_marked(fd):
                raise OSError(errno.EOPNOTSUPP, "the cache's disk does not tell of stores through mappings")
    except BaseException:
        os.close(fd)
        raise
    return fd
