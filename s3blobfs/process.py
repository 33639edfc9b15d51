"""What the process of a mount takes of the machine, and keeps from it: descriptors, memory, and time.

*Descriptors.* The kernel always gives the lowest free number, so a number near the limit says that nearly all
are taken, without anybody counting them. Local files are refused from there on: what is left is for
connections to S3, the index, and the control socket, so that uploads go on and an operator can look.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import resource

logger = logging.getLogger(__name__)

DESCRIPTORS_WANTED = 1_048_576
"""More than this is not asked for, whatever the hard limit is (Linux' default ``fs.nr_open``)."""
DESCRIPTORS_RESERVED = 256
"""Kept from local files: two libraries' connections to S3 (64 each at most), sixteen uploads, the index. At
most half of what there is."""

GARBAGE_THRESHOLDS = (10_000, 20, 20)
"""Of gc.set_threshold(). Requests leave few cycles behind, mostly of exceptions; looking for them each 700
new objects, which is Python's default, takes a twentieth of the processor time of a small write."""

HEAP_BYTES = 8 * 1024**2
"""What :func:`touch_heap` takes: half of what SQLite may keep of the index (``index/connect.py``)."""
_PIECE_BYTES = 64 * 1024

HEAPS = 2
"""Of glibc, for all threads."""
_M_ARENA_MAX = -8
"""mallopt(3)."""

_PR_SET_DUMPABLE = 4
"""prctl(2)."""


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the hard limit allows; answers how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        logger.info("at most %d files can be open at a time: %s", soft, error)
        return soft
    return wanted


def open_files_limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS_WANTED if soft == resource.RLIM_INFINITY else soft


def of_local_file(fd: int) -> int:
    """``fd``, which was just opened; or it is closed and ``OSError`` (``EMFILE``) raised, because what is
    left is reserved."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # anew: prlimit(1) changes it at any time
    if limit != resource.RLIM_INFINITY and fd >= limit - min(DESCRIPTORS_RESERVED, limit // 2):
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fd


def keep_memory_private() -> None:
    """No core dump of this process, and no look into it by other processes of the same user: credentials are
    in its memory and in its environment."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        logger.warning("other processes of this user can read this one's memory: %s", os.strerror(code))


def look_for_garbage_seldom() -> None:
    """Call when everything is imported: what there is now stays as long as the process, and is not looked at
    again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def share_heaps() -> None:
    """Let the threads to come have few heaps between them. Call before there are any.

    glibc gives nearly each thread one of its own, and each keeps the memory of the windows that went through
    its thread: the longer a large file was read, the more. Other C libraries have no such limit to set."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        logger.debug("this C library has no mallopt()")
        return
    if mallopt(_M_ARENA_MAX, HEAPS) != 1:
        logger.info("the number of heaps is not limited")


def touch_heap() -> None:
    """Have some memory ready for what requests ask of ``malloc``.

    The first use of each page of memory is a fault, which takes microseconds in a virtual machine: as long as
    reading the page of the index that SQLite puts there, and a cold lookup in a large index needs several."""
    # Freed, a piece of this size tells glibc to keep so much at the end of the heap, twice over (mallopt(3),
    # M_MMAP_THRESHOLD); it is not touched.
    large = bytes(HEAP_BYTES)
    del large
    # These are filled, one behind the other.
    pieces = [bytearray(_PIECE_BYTES) for _ in range(HEAP_BYTES // _PIECE_BYTES)]
    del pieces
