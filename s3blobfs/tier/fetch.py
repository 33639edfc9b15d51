"""Reading stored contents: from the cache, into the cache, or past it.

What is to be cached is read from its entry; from the one fill that all its readers share; or, where the local
tier has no room for it, as if it were not to be cached. What is not to be cached is never on the disk.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import trio

from s3blobfs.config import ReadOptions
from s3blobfs.errors import DamagedContent, TierError, TierFull
from s3blobfs.tier.ahead import Ahead
from s3blobfs.tier.cache import Cache, CacheEntry
from s3blobfs.tier.filling import FillReader, SharedFill
from s3blobfs.tier.memory import MemoryBudget
from s3blobfs.tier.space import Space
from s3blobfs.tier.streaming import SmallContent, StreamReader
from s3blobfs.tier.windows import ContentReader, RangeSource
from s3blobfs.trace import Count, Tracer
from s3blobfs.types import BlobContent, Buffer

__all__ = ["ContentReader", "Fetcher", "RangeSource"]

log = logging.getLogger(__name__)

_Key = tuple[int, str]

QUIET_S = 60.0
"""Between two warnings that contents are read past the cache."""


class Fetcher:
    """The readers of one mount and their background tasks, which live in :meth:`run`."""

    def __init__(self, cache: Cache, space: Space, options: ReadOptions, tracer: Tracer) -> None:
        self._cache = cache
        self._space = space
        self._options = options
        self._tracer = tracer
        self._budget = MemoryBudget(options.memory_limit_bytes)
        self._fills: dict[_Key, SharedFill] = {}
        self._small: dict[_Key, SmallContent] = {}
        self._nursery: trio.Nursery | None = None
        self.ahead = Ahead(cache, space, tracer, options.siblings_bytes, self._spawn)
        self._quiet_until = -math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; readers that wait then get an error."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self.ahead.stop()

    async def open(self, blob: BlobContent, source: RangeSource, cached: bool) -> ContentReader:
        """A reader of ``blob``, whose bytes ``source`` fetches. Nothing is fetched before the first read."""
        if not cached:
            return self.uncached(blob, source)
        try:
            entry = self._cache.get(blob.store_id, blob.location.cache_name, blob.size_bytes)
        except TierError as error:
            self.note_trouble(blob, error)
            return self.uncached(blob, source)
        self._tracer.count(Count.CACHE_MISS if entry is None else Count.CACHE_HIT)
        return _CachedReader(self, blob, source, entry)

    def has(self, blob: BlobContent) -> bool:
        """Whether the content is in the cache, or on its way for a reader."""
        key = (blob.store_id, blob.location.cache_name)
        return key in self._fills or self._cache.contains(*key)

    def read_ahead(self, blobs: Iterable[BlobContent]) -> None:
        """Have cached contents brought from the disk into memory, behind the caller's back."""
        keys = [(blob.store_id, blob.location.cache_name) for blob in blobs]
        self._spawn(partial(self._cache.read_ahead, keys))

    @property
    def memory_bytes(self) -> int:
        """Taken by windows now."""
        return self._budget.used_bytes

    @property
    def fill_count(self) -> int:
        """Contents on their way into the cache."""
        return len(self._fills)

    # -- for readers -----------------------------------------------------------------------------------

    def uncached(self, blob: BlobContent, source: RangeSource) -> ContentReader:
        """A reader that leaves nothing on the disk."""
        if blob.size_bytes > self._options.small_file_bytes:
            return StreamReader(blob, source, self._options, self._budget, self._spawn)
        key = (blob.store_id, blob.location.cache_name)
        content = self._small.get(key)
        if content is None:
            content = self._small[key] = SmallContent(blob, self._budget, self._spawn)
        return _SmallReader(content, source, partial(self._small.pop, key))

    def cached(self, blob: BlobContent, source: RangeSource) -> CacheEntry | FillReader:
        """The entry, if there is one by now; else a place at the fill. :class:`TierError` if there cannot
        be one."""
        key = (blob.store_id, blob.location.cache_name)
        shared = self._fills.get(key)
        if shared is None:
            entry = self._cache.get(*key, blob.size_bytes)
            if entry is not None:
                return entry
            if blob.size_bytes > self._space.limit_bytes:
                raise TierFull(f"{blob.location.object_key} is larger than the local tier")
            fill = self._cache.begin_fill(*key, blob.size_bytes)
            ended = partial(self._fills.pop, key)
            shared = SharedFill(blob, fill, self._options, self._budget, self._spawn, ended)
            self._fills[key] = shared
        return FillReader(shared, source, self._budget)

    def discard(self, entry: CacheEntry, error: TierError) -> None:
        """An entry that cannot be read, or was altered, is of no use to anybody."""
        self._cache.discard(entry, error)

    def note_trouble(self, blob: BlobContent, error: TierError) -> None:
        """A content is read past the cache. While a disk is broken all are: it is said once a minute."""
        level = logging.INFO if isinstance(error, TierFull) else logging.WARNING
        if trio.current_time() < self._quiet_until and level == logging.WARNING:
            level = logging.DEBUG
        elif level == logging.WARNING:
            self._quiet_until = trio.current_time() + QUIET_S
        log.log(level, "%s is read past the cache: %s", blob.location.object_key, error)

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is None:
            raise RuntimeError("the fetcher is not running")
        self._nursery.start_soon(task)


class _SmallReader:
    """A reader of a content that is fetched whole and not cached."""

    def __init__(self, content: SmallContent, source: RangeSource, unused: Callable[[], object]) -> None:
        self._content = content
        self._source = source
        self._unused = unused
        content.readers += 1

    async def read(self, offset: int, size: int) -> Buffer:
        return await self._content.read(self._source, offset, size)

    async def aclose(self) -> None:
        self._content.readers -= 1
        if self._content.readers == 0:
            self._unused()
            self._content.close()


class _CachedReader:
    """A reader of what is to be cached: wherever its bytes are at the time."""

    def __init__(
        self, fetcher: Fetcher, blob: BlobContent, source: RangeSource, entry: CacheEntry | None
    ) -> None:
        self._fetcher = fetcher
        self._blob = blob
        self._source = source
        self._entry = entry
        self._filling: FillReader | None = None
        self._past_cache: ContentReader | None = None

    async def read(self, offset: int, size: int) -> Buffer:
        size = min(size, self._blob.size_bytes - offset)
        if size <= 0:
            return b""
        if self._past_cache is None:
            try:
                return await self._read_cached(offset, size)
            except TierError as error:
                past_cache = self._leave_cache(error)
        else:
            past_cache = self._past_cache
        return await past_cache.read(offset, size)

    async def aclose(self) -> None:
        if self._entry is not None:
            self._entry.unpin()
        if self._filling is not None:
            self._filling.close()
        if self._past_cache is not None:
            await self._past_cache.aclose()

    async def _read_cached(self, offset: int, size: int) -> Buffer:
        if self._entry is None and self._filling is None:
            coming = self._fetcher.ahead.demand(self._blob.store_id, self._blob.location.cache_name)
            if coming is not None:
                await coming.ended()
        if self._entry is None and self._filling is None:
            place = self._fetcher.cached(self._blob, self._source)
            if isinstance(place, CacheEntry):
                self._entry = place
            else:
                self._filling = place
        if self._entry is not None:
            return await self._entry.read(offset, size)
        filling = self._filling
        assert filling is not None
        try:
            return await filling.read(offset, size)
        except DamagedContent:
            if filling.damaged and self._filling is filling:
                self._filling = None  # the next read begins a new fill
                filling.close()
            raise

    def _leave_cache(self, error: TierError) -> ContentReader:
        """The local tier cannot serve this content: that is no reason not to read it."""
        if self._entry is not None:
            self._fetcher.discard(self._entry, error)
        else:
            self._fetcher.note_trouble(self._blob, error)
        if self._past_cache is None:
            self._past_cache = self._fetcher.uncached(self._blob, self._source)
        return self._past_cache
