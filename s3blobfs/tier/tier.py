"""The local tier of one mount, put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.config import ReadOptions, TierOptions
from s3blobfs.errors import TierError
from s3blobfs.tier.cache import Cache
from s3blobfs.tier.fetch import Fetcher
from s3blobfs.tier.layout import TierLayout
from s3blobfs.tier.space import Space
from s3blobfs.tier.staging import Staging
from s3blobfs.trace import Tracer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TierStatus:
    """What the tier holds now."""

    directory: Path
    size_limit_bytes: int
    used_bytes: int
    """Staged, filling and cached together."""
    staged_bytes: int
    filling_bytes: int
    cached_bytes: int
    disk_free_bytes: int
    staged_files: int
    cached_files: int
    pinned_files: int
    """Cached files that are open."""
    filling_files: int
    memory_bytes: int
    """In windows of readers."""
    read_only: bool
    """The disk takes no changes: it is mounted so."""
    last_error: str | None
    """What the disk refused last, in this mount; ``None``: nothing."""
    last_error_ns: int | None


class Tier:
    """Makes the directories (:class:`~s3blobfs.errors.UsageError` when it cannot) and locks them.

    Order of use: :meth:`start`, :meth:`run` in the mount's nursery, :meth:`aclose` when that has ended."""

    def __init__(self, options: TierOptions, read: ReadOptions, tracer: Tracer) -> None:
        self._closed = False
        self.read_options = read
        self.layout = TierLayout(options.directory)
        self.space = Space(options)
        self.staging = Staging(self.layout, self.space, tracer)
        self.cache = Cache(self.layout, self.space, tracer)
        self.fetcher = Fetcher(self.cache, self.space, read, tracer)

    async def start(self) -> None:
        """Find what earlier mounts left in the cache. :class:`~s3blobfs.errors.TierUnavailable`.

        Staged files are found by the journal's rows, see :meth:`Staging.open` and :meth:`Staging.sweep`."""
        await self.cache.start()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background tasks, until cancelled."""
        await self.fetcher.run(task_status=task_status)

    async def aclose(self) -> None:
        """Bring the cache to the disk and let another mount have the directories. Files stay. May be called
        twice."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self.layout.disposal.wait)  # it, too, moves ctimes
            try:
                await self.cache.sync()
            except TierError as error:
                log.warning("%s; the newest cached files may be dropped at the next mount", error)
            try:
                await self.cache.end()
            except TierError as error:
                log.info("what is altered in the cache from now on may not be noticed: %s", error)
            await trio.to_thread.run_sync(self.layout.close)

    def status(self) -> TierStatus:
        """:class:`~s3blobfs.errors.TierUnavailable` when the disk does not answer."""
        space = self.space
        return TierStatus(
            directory=self.layout.directory,
            size_limit_bytes=space.limit_bytes,
            used_bytes=space.used_bytes,
            staged_bytes=space.staged_bytes,
            filling_bytes=space.filling_bytes,
            cached_bytes=space.cached_bytes,
            disk_free_bytes=space.free_bytes(),
            staged_files=self.staging.file_count,
            cached_files=self.cache.entry_count,
            pinned_files=self.cache.pinned_count,
            filling_files=self.fetcher.fill_count,
            memory_bytes=self.fetcher.memory_bytes,
            read_only=space.read_only,
            last_error=self.layout.last_error,
            last_error_ns=self.layout.last_error_ns,
        )
