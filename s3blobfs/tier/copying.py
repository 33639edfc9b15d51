"""Copying a local file into another, in worker threads: shared extents and holes where the disk has them.

``copy_file_range(2)`` clones extents on filesystems that can (btrfs, XFS) and copies inside the kernel
elsewhere; ``SEEK_DATA`` finds the holes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial

from s3blobfs.config import MIB
from s3blobfs.tier.localio import in_disk_thread, write_fully

_SLICE_BYTES = 64 * MIB
"""Copied in one go; in between, room is reserved and cancellation is noticed."""
_BUFFER_BYTES = 1 * MIB
_NOT_THIS_WAY = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
"""``copy_file_range`` between these two files is refused; reading and writing may still do."""


async def copy_range(
    source: int, target: int, size_bytes: int, reserve: Callable[[int], Awaitable[None]]
) -> bool:
    """Copy the first ``size_bytes`` of ``source`` into the empty file ``target``, which gets that length.

    ``reserve(n)`` is awaited before ``n`` bytes are written; holes are not. Answers whether there were any.
    Raises ``OSError``, also when ``source`` is shorter, and what ``reserve`` raises."""
    os.ftruncate(target, size_bytes)
    position, sparse = 0, False
    while position < size_bytes:
        start, end = await in_disk_thread(partial(_next_data, source, position, size_bytes))
        sparse = sparse or start > position
        position = start
        while position < end:
            length = min(_SLICE_BYTES, end - position)
            await reserve(length)
            await in_disk_thread(partial(_copy_slice, source, target, position, length))
            position += length
    return sparse


def _next_data(fd: int, position: int, size_bytes: int) -> tuple[int, int]:
    """Where the data at or after ``position`` begin and end; ``size_bytes`` twice when only holes follow."""
    if os.fstat(fd).st_size < size_bytes:
        raise OSError(f"the file to be copied has fewer than {size_bytes} bytes")
    try:
        start = os.lseek(fd, position, os.SEEK_DATA)
        end = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size_bytes, size_bytes
        if error.errno == errno.EINVAL:
            return position, size_bytes  # the filesystem does not know holes
        raise
    return min(start, size_bytes), min(end, size_bytes)


def _copy_slice(source: int, target: int, offset: int, length: int) -> None:
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(source, target, length - done, offset + done, offset + done)
        except OSError as error:
            if error.errno not in _NOT_THIS_WAY:
                raise
            count = _copy_through_memory(source, target, offset + done, min(_BUFFER_BYTES, length - done))
        if count == 0:
            raise OSError("the file to be copied became shorter meanwhile")
        done += count


def _copy_through_memory(source: int, target: int, offset: int, length: int) -> int:
    data = os.pread(source, length, offset)
    if data:
        write_fully(target, data, offset)
    return len(data)
