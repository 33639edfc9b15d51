"""Small contents that are fetched into the cache before anybody asks for them.

Which, is decided in :mod:`s3blobfs.fs.siblings`. They are fetched by a few threads, each of which works
through what is waiting, so that a content costs no turn of its own through the event loop. What has arrived
and is the right content becomes an entry of the cache, the first to be evicted until it is read.

Nothing here is in anybody's way: the threads are none that demanded requests use, room in the tier is taken
only where nothing has to be evicted for it, and a content that is asked for before its turn is left to who
asks. What fails is dropped: who needs it will be told. It is bounded in bytes, and by its caller in files.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Protocol

import trio

from s3blobfs.errors import S3BlobFSError, TierError
from s3blobfs.tier.cache import Cache
from s3blobfs.tier.digest import is_content
from s3blobfs.tier.space import Space, Use
from s3blobfs.trace import Arrow, Count, Local, Party, Tracer
from s3blobfs.types import BlobContent

log = logging.getLogger(__name__)

REQUESTS_MAX = 16
"""Under way at once."""
_DRAINED_IN_S = 0.01
"""As many threads work as it takes to get through what waits in about this time: one or two where S3 is near
and the processor the limit, all of them where each request takes long."""
_INSTALLED_AT_ONCE = 8
"""Put into the cache (some 0.1 ms each) before other tasks get their turn."""

_Key = tuple[int, str]


class Coming:
    """One content on its way."""

    __slots__ = ("_ended", "blob", "data", "has_its_room", "is_here", "key", "wanted")

    def __init__(self, blob: BlobContent) -> None:
        self.blob = blob
        self.key = (blob.store_id, blob.location.cache_name)
        self.data: bytes | None = None
        self.is_here = False
        """There was an answer, if not that content."""
        self.has_its_room = False
        """What was reserved for it is the cache's."""
        self.wanted: bool | None = None
        """Whether its reader has come, or has gone elsewhere; ``None``: neither."""
        self._ended = trio.Event()

    @property
    def is_over(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        self._ended.set()

    async def ended(self) -> None:
        """Until it is in the cache, or will not come."""
        await self._ended.wait()


class EachSource(Protocol):
    """Contents of one store in S3 (:meth:`s3blobfs.blobstore.protocol.BlobStore.fetch_each`)."""

    async def fetch_each(
        self, wanted: Iterable[tuple[BlobContent, Callable[[bytes | S3BlobFSError], None]]]
    ) -> None: ...


class Ahead:
    """Of one mount. ``spawn`` starts a background task; but for what the threads do, all is done on the trio
    thread."""

    def __init__(
        self,
        cache: Cache,
        space: Space,
        tracer: Tracer,
        limit_bytes: int,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._cache = cache
        self._space = space
        self._tracer = tracer
        self._limit_bytes = limit_bytes
        self._spawn = spawn
        self._coming: dict[_Key, Coming] = {}
        self._bytes = 0
        self._unread: set[_Key] = set()
        """Came, and nobody knows yet what for."""
        self._waiting: dict[int, deque[Coming]] = {}  # by store
        self._threads: Counter[int] = Counter()  # by store
        self._request_s = _DRAINED_IN_S  # what S3 takes for one
        self._arrived: deque[Coming] = deque()
        cache.when_removed(self.forget)

    @property
    def bytes_under_way(self) -> int:
        return self._bytes

    def fetch(self, blobs: Iterable[BlobContent], source: EachSource) -> int:
        """Begin to fetch contents of one store, as many of them, from the first, as there is room for.
        Answers how many were taken on, those that are here or on their way among them."""
        taken = 0
        waiting: deque[Coming] | None = None
        for blob in blobs:
            coming = Coming(blob)
            if coming.key not in self._coming and not self._cache.contains(*coming.key):
                if self._bytes + blob.size_bytes > self._limit_bytes:
                    break
                if not self._space.try_reserve(blob.size_bytes, Use.FILLING):
                    break
                waiting = self._waiting.setdefault(blob.store_id, deque())
                self._bytes += blob.size_bytes
                self._coming[coming.key] = coming
                waiting.append(coming)
            taken += 1
        if waiting:
            self._start_threads(waiting, source)
        return taken

    def demand(self, store_id: int, cache_name: str) -> Coming | None:
        """Somebody wants this content now. What is under way, to be waited for; ``None`` when it is not, and
        then it is not fetched here."""
        coming = self._coming.get((store_id, cache_name))
        return None if coming is None or self._withdraw(coming) else coming

    def forget(self, key: _Key) -> None:
        """The content is of no use any more: it does not come into the cache."""
        coming = self._coming.get(key)
        if coming is not None and not self._withdraw(coming):
            self._end(coming)

    def use(self, blob: BlobContent) -> bool:
        """Its reader is here: whether it was right to fetch this one."""
        key = (blob.store_id, blob.location.cache_name)
        if key in self._unread:
            self._unread.remove(key)
            is_here = self._cache.contains(*key)
            self._tracer.count(Count.AHEAD_USED if is_here else Count.AHEAD_UNUSED)
            return is_here
        coming = self._coming.get(key)
        if coming is None or coming in self._waiting[blob.store_id]:
            return False
        coming.wanted = True
        return True

    def give_up(self, blobs: Iterable[BlobContent]) -> int:
        """Nobody will want these, as it seems: what was not asked for yet is not. Answers how many were
        fetched in vain."""
        in_vain = 0
        for blob in blobs:
            key = (blob.store_id, blob.location.cache_name)
            coming = self._coming.get(key)
            if coming is not None:
                if not self._withdraw(coming):
                    coming.wanted = False
                    in_vain += 1
            elif key in self._unread:
                self._unread.remove(key)
                self._tracer.count(Count.AHEAD_UNUSED)
                in_vain += 1
        return in_vain

    def stop(self) -> None:
        """Ask for nothing more, and let go who waits."""
        for waiting in self._waiting.values():
            waiting.clear()
        for coming in list(self._coming.values()):
            self._end(coming)

    def _withdraw(self, coming: Coming) -> bool:
        """Whether that was in time: a thread may take it at any moment, and only one of the two gets it."""
        try:
            self._waiting[coming.blob.store_id].remove(coming)
        except ValueError:
            return False
        self._end(coming)
        return True

    def _end(self, coming: Coming) -> None:
        if not coming.is_over:
            del self._coming[coming.key]
            self._bytes -= coming.blob.size_bytes
            if not coming.has_its_room:
                self._space.release(coming.blob.size_bytes, Use.FILLING)
            coming.end()

    # -- threads ---------------------------------------------------------------------------------------

    def _start_threads(self, waiting: deque[Coming], source: EachSource) -> None:
        store_id = waiting[0].blob.store_id
        wanted = min(REQUESTS_MAX, 1 + int(len(waiting) * self._request_s / _DRAINED_IN_S))
        token = trio.lowlevel.current_trio_token()

        async def work() -> None:
            wanted = self._next(waiting, token)
            try:
                await source.fetch_each(wanted)
            except Exception:
                log.exception("fetching ahead failed")
                wanted.close()
                for coming in list(waiting):
                    self._withdraw(coming)
            finally:
                self._threads[store_id] -= 1
            if waiting and not self._threads[store_id]:
                self._start_threads(waiting, source)  # it came when the thread had just found nothing

        for _ in range(wanted - self._threads[store_id]):
            self._threads[store_id] += 1
            self._spawn(work)

    def _next(
        self, waiting: deque[Coming], token: trio.lowlevel.TrioToken
    ) -> Generator[tuple[BlobContent, Callable[[bytes | S3BlobFSError], None]], None, None]:
        """Runs in the threads: what is to be fetched, and who takes it. Closed, it lets go who waits for the
        one that was not taken."""
        while True:
            try:
                coming = waiting.popleft()
            except IndexError:
                return
            began = time.perf_counter()

            def take(answer: bytes | S3BlobFSError, coming: Coming = coming) -> None:
                if isinstance(answer, S3BlobFSError):
                    log.debug("%s is not fetched ahead: %s", coming.blob.location.object_key, answer)
                elif is_content(answer, coming.blob.digests):
                    coming.data = answer
                self._arrive(coming, waiting, token)

            try:
                yield coming.blob, take
            finally:
                if not coming.is_here:
                    self._arrive(coming, waiting, token)
            took = time.perf_counter() - began
            # The shortest of late: with a busy processor the others tell of nothing but that.
            self._request_s = min(took, self._request_s + (took - self._request_s) / 64)

    # -- arrival ---------------------------------------------------------------------------------------

    def _arrive(self, coming: Coming, waiting: deque[Coming], token: trio.lowlevel.TrioToken) -> None:
        """Runs in the threads, too."""
        coming.is_here = True
        self._arrived.append(coming)
        try:
            token.run_sync_soon(self._install_arrived, idempotent=True)
        except trio.RunFinishedError:
            waiting.clear()

    def _install_arrived(self) -> None:
        """Called by trio itself, which an exception would end."""
        for _ in range(_INSTALLED_AT_ONCE):
            if not self._arrived:
                return
            coming = self._arrived.popleft()
            data, coming.data = coming.data, None
            try:
                if data is not None and not coming.is_over:
                    self._install(coming, data)
            except Exception:
                log.exception("%s is not kept in the cache", coming.blob.location.object_key)
            finally:
                self._end(coming)
        trio.lowlevel.current_trio_token().run_sync_soon(self._install_arrived, idempotent=True)

    def _install(self, coming: Coming, data: bytes) -> None:
        blob, location = coming.blob, coming.blob.location
        self._tracer.step(
            Local.CACHE, Arrow.FROM, Party.S3, f"read {blob.size_bytes} bytes", location.object_key
        )
        if self._cache.contains(*coming.key):
            return  # it came by a direct copy
        coming.has_its_room = True
        try:
            self._cache.add(*coming.key, data)
        except TierError as error:
            log.info("%s is not kept in the cache: %s", location.object_key, error)
            return
        self._tracer.count(Count.AHEAD_FETCHED)
        if coming.wanted is None:
            self._unread.add(coming.key)
        else:
            self._tracer.count(Count.AHEAD_USED if coming.wanted else Count.AHEAD_UNUSED)
