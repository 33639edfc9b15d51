"""How the queue of uploads presses on those who write, when nobody waits for S3 (durability ``disk``).

    fill      0 ──────────── ½ ──────────────────────── 1
    writers   as they like   slower and slower          wait for room; refused when S3 fails and nothing moves

*Fill* is the fuller of files and bytes, each against its limit. For bytes that is the queue's own, or what
the local tier and its disk can still take, whichever is less: writers feel it before the disk is full.

*Age* slows writers too, from the limit of the oldest upload's age on, the most at twice that. It refuses
nobody: that would not make the oldest younger, and files and bytes are bounds enough.

Refused is who would have to wait for room when nothing has left the queue for ``PATIENCE_S`` and uploads
fail, or for ``LONG_PATIENCE_S`` though they do not. While S3 takes uploads, writers wait.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import trio

from s3blobfs.config import MIB, QueueOptions
from s3blobfs.errors import TierFull

PATIENCE_S = 30.0
LONG_PATIENCE_S = 600.0
EASY_FILL = 0.5
"""Up to here nobody is slowed."""
SLOWEST_BYTES_PER_S = 1 * MIB
SLOWEST_PAUSE_S = 0.05
"""One writer at the worst, in bytes and per write."""


class Writers(enum.Enum):
    """What those who write meet now."""

    FREE = "free"
    SLOWED = "slowed"
    HELD = "held"
    """They wait for room, or are refused."""


@dataclass(frozen=True, slots=True)
class Load:
    """What waits for its upload."""

    files: int
    bytes: int
    age_s: float
    """Of the one that waits longest."""
    error: str | None
    """Why uploads fail, if they do."""


@dataclass(frozen=True, slots=True)
class Pressure:
    fill: float
    """Of the queue; from 1 on nothing more is let in."""
    lateness: float
    """The oldest upload's age, against its limit."""

    @property
    def severity(self) -> float:
        """From 0, free, to 1, as slow as can be."""
        by_fill = (self.fill - EASY_FILL) / (1 - EASY_FILL)
        return min(1.0, max(0.0, by_fill, self.lateness - 1))

    @property
    def is_full(self) -> bool:
        return self.fill >= 1

    @property
    def writers(self) -> Writers:
        if self.is_full:
            return Writers.HELD
        return Writers.SLOWED if self.severity else Writers.FREE

    def pause_s(self, size_bytes: int) -> float:
        """Before a write of this size."""
        return self.severity**2 * (SLOWEST_PAUSE_S + size_bytes / SLOWEST_BYTES_PER_S)


@dataclass(frozen=True, slots=True)
class QueueStatus:
    writers: str
    """A value of :class:`Writers`; of interest with durability ``disk``."""
    limit_files: int
    limit_bytes: int
    limit_age_s: float


NO_PRESSURE = Pressure(0.0, 0.0)


def pressure(limits: QueueOptions, load: Load, room_bytes: int) -> Pressure:
    """``room_bytes``: what the local tier can still take."""
    limit_bytes = min(limits.size_bytes, load.bytes + room_bytes)
    by_bytes = load.bytes / limit_bytes if load.bytes else 0.0
    return Pressure(max(load.files / limits.files, by_bytes), load.age_s / limits.age_s)


class Admission:
    """Lets writers in. For the trio thread."""

    def __init__(self, limits: QueueOptions, load: Callable[[], Load], room_bytes: Callable[[], int]) -> None:
        self.limits = limits
        self._load = load
        self._room_bytes = room_bytes
        self._turn = trio.StrictFIFOLock()
        self._changed = trio.Event()
        self._moved_at = 0.0
        """On trio's clock: when the queue last got shorter, or was empty."""

    def pressure(self) -> Pressure:
        """Raises :class:`~s3blobfs.errors.TierUnavailable` when the disk does not tell its room."""
        load = self._load()
        return pressure(self.limits, load, self._room_bytes()) if load.files else NO_PRESSURE

    def status(self) -> QueueStatus:
        """Raises what :meth:`pressure` does."""
        limits = self.limits
        return QueueStatus(self.pressure().writers.value, limits.files, limits.size_bytes, limits.age_s)

    def moved(self) -> None:
        """The queue got shorter, or is about to have its first upload."""
        self._moved_at = trio.current_time()
        self.failed()

    def failed(self) -> None:
        """An upload failed: who waits may have waited long enough."""
        self._changed.set()
        self._changed = trio.Event()

    async def admit(self, size_bytes: int) -> None:
        """Return when so much may be written: at once, or slowed by what waits already. First come, first
        served. The bound is soft by what is admitted and not yet queued.

        Raises :class:`~s3blobfs.errors.TierFull` to refuse, and what :meth:`pressure` does. No checkpoint
        when there is no pressure."""
        now = self.pressure()
        if now.severity == 0:
            return
        await trio.sleep(now.pause_s(size_bytes))
        if not self.pressure().is_full:
            return
        async with self._turn:
            while self.pressure().is_full:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        load = self._load()
        refuse_at = self._moved_at + (PATIENCE_S if load.error is not None else LONG_PATIENCE_S)
        if trio.current_time() >= refuse_at:
            raise TierFull(
                f"{load.files} files, {load.bytes} bytes wait for their upload, as many as may; "
                f"{load.error or 'none has ended for long'}"
            )
        with trio.CancelScope(deadline=refuse_at):
            await self._changed.wait()
