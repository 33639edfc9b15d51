"""The local tier's hard limit: who may take how many bytes of it, and what has to go to make room.

Three uses are accounted: files being written (*staged*), contents on their way from S3 (*filling*) and whole
contents kept for reading (*cached*). Only cached contents that nobody has open can be evicted, in the order
of their last use.

What is counted is the bytes a file was made longer by, not the blocks it occupies: ``st_blocks`` costs a
system call per write. Holes are the exception, see :class:`s3blobfs.tier.staging.StagedFile`: a sparse
extension costs nothing until it is written to.

Two limits hold at once: ``size_limit_bytes`` over all uses, and ``min_free_bytes`` left free on the disk. The
disk's free bytes are sampled, at most once per ``_SAMPLE_S`` or ``_SAMPLE_BYTES``, since others use it too.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from typing import Protocol

import trio

from s3blobfs.config import MIB, TierOptions
from s3blobfs.errors import TierFull, TierUnavailable

_SAMPLE_S = 1.0
_SAMPLE_BYTES = 64 * MIB
_EVICTION_SLACK_BYTES = 16 * MIB
"""Evicted beyond the need (but at most 1/64 of the limit), so that not every write has to evict."""


class Use(enum.Enum):
    """What bytes of the tier are used for."""

    STAGED = "staged"
    FILLING = "filling"
    CACHED = "cached"


class Evictor(Protocol):
    """Gives back cached bytes: the cache."""

    @property
    def evictable_bytes(self) -> int:
        """At most this many bytes can be evicted now."""
        ...

    async def evict(self, needed_bytes: int) -> int:
        """Drop the least recently used contents until ``needed_bytes`` are released (by the callee) or
        none is left that could be dropped. Answers the bytes released."""
        ...


class Space:
    """The accounts. Used from the trio thread alone.

    ``free_bytes`` and ``clock`` (seconds) are for tests; by default ``statvfs`` of the tier's directory, as
    an unprivileged user sees it, and the monotonic clock."""

    def __init__(
        self,
        options: TierOptions,
        *,
        free_bytes: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._free_bytes = free_bytes or self._statvfs
        self._clock = clock
        self._used = dict.fromkeys(Use, 0)
        self._total = 0
        self._headroom = 0
        self._sample_left = 0
        self._sampled_at = -_SAMPLE_S
        self._evictor: Evictor | None = None
        self._lock = trio.Lock()

    def evict_with(self, evictor: Evictor) -> None:
        self._evictor = evictor

    # -- status ----------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        return self._total

    @property
    def staged_bytes(self) -> int:
        return self._used[Use.STAGED]

    @property
    def filling_bytes(self) -> int:
        return self._used[Use.FILLING]

    @property
    def cached_bytes(self) -> int:
        return self._used[Use.CACHED]

    @property
    def limit_bytes(self) -> int:
        return self._options.size_limit_bytes

    @property
    def stageable_bytes(self) -> int:
        """About how much more can be staged, with what is cached evicted; the disk as it was a moment ago.
        :class:`TierUnavailable` when the disk does not say."""
        if self._clock() - self._sampled_at >= _SAMPLE_S:
            self._sample()
        return max(0, min(self._options.size_limit_bytes - self._total, self._headroom) + self.cached_bytes)

    def free_bytes(self) -> int:
        """Free on the disk, now. :class:`TierUnavailable` when the disk does not say."""
        return self._free_bytes()

    @property
    def read_only(self) -> bool:
        """Whether the disk is mounted read-only now. :class:`TierUnavailable` as above."""
        return bool(self._status().f_flag & os.ST_RDONLY)

    # -- accounts --------------------------------------------------------------------------------------

    def try_reserve(self, size_bytes: int, use: Use) -> bool:
        """Take ``size_bytes`` if they are there without evicting anything."""
        if size_bytes == 0:
            return True
        if self._total + size_bytes > self._options.size_limit_bytes:
            return False
        if size_bytes > self._sample_left or self._clock() - self._sampled_at >= _SAMPLE_S:
            self._sample()
            if size_bytes > self._headroom:
                return False
        self._sample_left -= size_bytes
        self._headroom -= size_bytes
        self.adopt(size_bytes, use)
        return True

    async def reserve(self, size_bytes: int, use: Use = Use.STAGED) -> None:
        """Take ``size_bytes``, evicting cached contents where they are in the way.

        :class:`TierFull`, with nothing evicted, when what cannot be evicted leaves too little."""
        if self.try_reserve(size_bytes, use):
            return
        async with self._lock:
            while not self.try_reserve(size_bytes, use):
                await self._make_room(size_bytes)

    async def make_room_on_disk(self, size_bytes: int) -> bool:
        """The disk refused a write that was within the limits: evict at least ``size_bytes``, if anything
        can be. True if the write is worth another attempt."""
        async with self._lock:
            self._sampled_at = -_SAMPLE_S
            return await self._evict(size_bytes + self._slack()) > 0

    def release(self, size_bytes: int, use: Use = Use.STAGED) -> None:
        """Give back what was reserved."""
        assert 0 <= size_bytes <= self._used[use], f"released more {use.value} bytes than are accounted"
        self._used[use] -= size_bytes
        self._total -= size_bytes
        self._headroom += size_bytes

    def adopt(self, size_bytes: int, use: Use) -> None:
        """Account for bytes that are on the disk already, whatever the limits say."""
        self._used[use] += size_bytes
        self._total += size_bytes

    def move(self, size_bytes: int, source: Use, target: Use) -> None:
        """The same bytes, used for something else."""
        assert 0 <= size_bytes <= self._used[source], f"moved more {source.value} bytes than are accounted"
        self._used[source] -= size_bytes
        self._used[target] += size_bytes

    async def trim(self) -> None:
        """Come back under the limit, as far as eviction goes: it may be lower than at the last mount."""
        async with self._lock:
            excess = self._total - self._options.size_limit_bytes
            if excess > 0:
                await self._evict(excess)

    # -- room ------------------------------------------------------------------------------------------

    async def _make_room(self, size_bytes: int) -> None:
        self._sample()
        over_limit = self._total + size_bytes - self._options.size_limit_bytes
        over_disk = size_bytes - self._headroom
        shortage = max(over_limit, over_disk)
        evictable = self._evictor.evictable_bytes if self._evictor is not None else 0
        if shortage > evictable or await self._evict(min(shortage + self._slack(), evictable)) == 0:
            raise self._full(on_disk=over_disk > over_limit)
        self._sampled_at = -_SAMPLE_S

    async def _evict(self, size_bytes: int) -> int:
        return await self._evictor.evict(size_bytes) if self._evictor is not None else 0

    def _slack(self) -> int:
        return min(_EVICTION_SLACK_BYTES, self._options.size_limit_bytes // 64)

    def _full(self, *, on_disk: bool) -> TierFull:
        if on_disk:
            return TierFull(
                f"the disk of {self._options.directory} would have fewer than "
                f"{self._options.min_free_bytes} bytes free; free some, or lower the local tier's reserve"
            )
        return TierFull(
            f"the local tier is full: of {self._options.size_limit_bytes} bytes {self.staged_bytes} wait for "
            f"upload, and {self.filling_bytes + self.cached_bytes} are being read; wait, or raise its size"
        )

    def _sample(self) -> None:
        self._sampled_at = self._clock()
        self._headroom = self._free_bytes() - self._options.min_free_bytes
        self._sample_left = min(self._headroom, _SAMPLE_BYTES)

    def _statvfs(self) -> int:
        status = self._status()
        return status.f_bavail * status.f_frsize

    def _status(self) -> os.statvfs_result:
        try:
            return os.statvfs(self._options.directory)
        except OSError as error:
            raise TierUnavailable(
                f"free space of {self._options.directory} is unknown: {error.strerror}"
            ) from error
