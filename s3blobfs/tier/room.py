"""Writing to a disk that is fuller than the accounts say.

The accounts had room, the disk has not: others fill it, or its blocks are larger than what was counted.
Cached contents give way to what exists nowhere else.
"""

from __future__ import annotations

import errno
from functools import partial

from s3blobfs.errors import FilesystemError
from s3blobfs.tier import blocks
from s3blobfs.tier.localio import NO_SPACE, in_disk_thread, write_at
from s3blobfs.tier.space import Space
from s3blobfs.types import Buffer


async def write(space: Space, fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``. Raises ``OSError``."""
    try:
        await write_at(fd, data, offset)
    except OSError as error:
        if error.errno not in NO_SPACE or not await space.make_room_on_disk(len(data)):
            raise
        await write_at(fd, data, offset)


async def reserve(space: Space, fd: int, offset: int, length: int) -> None:
    """Allocate a range. Raises ``OSError``; ``EOPNOTSUPP``, for the filesystem's caller, where the disk
    cannot."""
    allocate = partial(blocks.reserve, fd, offset, length)
    try:
        await in_disk_thread(allocate)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise FilesystemError(errno.EOPNOTSUPP) from error
        if error.errno not in NO_SPACE or not await space.make_room_on_disk(length):
            raise
        await in_disk_thread(allocate)
