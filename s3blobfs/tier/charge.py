"""What one staged file is charged for of the local tier's room.

A file written without gaps is charged for its growth. A gap, or an extension by truncate, is a hole, which
costs nothing until it is written. From the first hole on every write is charged in full, because it may
fall into one, and after each ``_RECOUNT_BYTES`` the charge is set to what the disk says is allocated. Room
that was reserved for a range (fallocate(2)) is charged once, then, and a write into it costs nothing.
"""

from __future__ import annotations

import os
import sys

from s3blobfs.config import MIB
from s3blobfs.tier.ranges import Ranges
from s3blobfs.tier.space import Space, Use

_RECOUNT_BYTES = 8 * MIB
_EVERYTHING = sys.maxsize


class Charge:
    """Of one file, whose length the caller knows."""

    __slots__ = ("_bytes", "_reserved", "_space", "_uncounted", "sparse")

    def __init__(self, space: Space) -> None:
        self._space = space
        self._bytes = 0
        self._uncounted = 0
        self._reserved = Ranges()
        self.sparse = False
        """There may be holes."""

    async def take(self, size_bytes: int) -> None:
        """:class:`TierFull`."""
        if not self._space.try_reserve(size_bytes, Use.STAGED):
            await self._space.reserve(size_bytes, Use.STAGED)
        self._bytes += size_bytes
        if self.sparse:
            self._uncounted += size_bytes

    async def take_for(self, offset: int, end: int, length: int) -> None:
        """Room for these bytes of a file of ``length`` bytes, as far as it is not the file's.
        :class:`TierFull`."""
        if offset > length:
            self.sparse = True
        start = offset if self.sparse else max(offset, length)
        if start < end:
            await self.take(end - start - self._reserved.covered(start, end))

    def reserved(self, offset: int, end: int) -> None:
        """The disk keeps room for this range, which has been taken for it."""
        self._reserved.add(offset, end)
        self.sparse = True

    def freed(self, offset: int, end: int = _EVERYTHING) -> None:
        """The disk keeps nothing for this range any more."""
        self._reserved.remove(offset, end)

    @property
    def extends_to(self) -> int:
        """Behind the last byte that room is reserved for."""
        return self._reserved.end

    def recount_if_due(self, fd: int, length: int) -> None:
        if self._uncounted >= _RECOUNT_BYTES:
            self.recount(fd, length)

    def recount(self, fd: int, length: int) -> None:
        """Charge what is allocated, but never more than a file of this length needs. ``OSError``."""
        self._uncounted = 0
        self.set(min(os.fstat(fd).st_blocks * 512, max(length, self._reserved.end)))

    def set(self, size_bytes: int) -> None:
        if size_bytes < self._bytes:
            self._space.release(self._bytes - size_bytes, Use.STAGED)
        else:
            self._space.adopt(size_bytes - self._bytes, Use.STAGED)
        self._bytes = size_bytes

    def cut(self, fd: int, length: int) -> None:
        """The file was cut to, or extended to, ``length``. ``OSError``."""
        self.freed(length)
        if length == 0:
            self.sparse = False
            self.set(0)
        elif self.sparse:
            self.recount(fd, length)
        else:
            self.set(min(self._bytes, length))

    def hand_over(self) -> int:
        """The accounted bytes, which somebody else takes over."""
        size_bytes, self._bytes = self._bytes, 0
        return size_bytes
