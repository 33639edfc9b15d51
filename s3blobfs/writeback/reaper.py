"""The reaper: deletes the objects of blobs that nothing refers to. *Mark row, delete object, forget row.*

    GARBAGE ── grace is over ──► DELETING ──► cache entry removed ──► object deleted ──► row forgotten
                                    ▲                                       │ failed
                                    └───────────────────────────────────────┘ again, later and later

The mark is on disk before the first request: after a crash no row that counts names a missing object. What
is marked stays so, and a deletion may be repeated, so a crash in between costs nothing but the repetition.

Deletions wait for company: many files are usually unlinked together, and one request takes 1,000 of them.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import ObjectStoreError, TierError, VolumeIndexError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.index import blobs
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.database import Database
from s3blobfs.tier.tier import Tier
from s3blobfs.types import Keying
from s3blobfs.writeback.claims import ContentClaims
from s3blobfs.writeback.grace import Grace
from s3blobfs.writeback.schedule import Backoff

logger = logging.getLogger(__name__)

BATCH = 1000
"""Blobs per round and at least one request: as many as DeleteObjects takes."""
CLAIM_RETRY_S = 1.0
"""Before looking again at a blob whose content somebody is storing."""
_NS_PER_S = 10**9


@dataclass(frozen=True, slots=True)
class ReaperLimits:
    quiet_s: float = 1.0
    """Without a further :meth:`Reaper.wake` for so long, the round begins."""
    patience_s: float = 5.0
    """It begins after this time at the latest."""
    retry: Backoff = field(default_factory=lambda: Backoff(first_s=5.0, longest_s=600.0))


@dataclass(slots=True)
class _Failure:
    """A deletion that has to be repeated."""

    count: int = 0
    not_before: float = -math.inf
    """On trio's clock."""


_DUE = _Failure()


class Reaper:
    """Deletes for one mounted volume. All methods are for the trio thread."""

    def __init__(
        self,
        db: Database,
        tier: Tier,
        stores: Mapping[int, BlobStore],
        *,
        garbage_grace_s: float,
        limits: ReaperLimits | None = None,
        shipped: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        now_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``shipped`` returns when the copy of the index in the bucket, if there is one, has what was written
        until now; ``now_ns``: the clock of the index; ``jitter`` answers 0 to 1."""
        self._db = db
        self._tier = tier
        self._stores = stores
        self._grace = Grace(round(garbage_grace_s * _NS_PER_S), now_ns)
        self._limits = limits or ReaperLimits()
        self._shipped = shipped
        self._now_ns = now_ns
        self._jitter = jitter
        self.claims = ContentClaims()
        """To be held by whoever stores a content in a ``digest`` store."""
        self._round_lock = trio.Lock()
        self._woken = 0
        self._wake = trio.Event()
        self._hurry = trio.Event()
        self._failures: dict[int, _Failure] = {}
        self._complaints: set[tuple[int, str]] = set()
        """Store and kind of the errors that were logged."""

    # -- for others ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A blob lost its last reference."""
        self._grace.look()
        self._woken += 1
        self._wake.set()

    def hurry(self) -> None:
        """Somebody waits for a deletion: do not wait for company, nor for the time of a repetition."""
        for failure in self._failures.values():
            failure.not_before = -math.inf
        self._hurry.set()
        self.wake()

    async def drain(self) -> int:
        """Delete now what is marked now, or has been garbage for its grace, each once. Answers how many
        blobs are left because they could not be deleted or are being stored again."""
        async with self._round_lock:
            await self._mark_due()
            left, last_id = 0, 0
            while rows := await self._deleting(last_id):
                last_id = rows[-1].id
                left += len(rows) - await self._delete(rows)
            return left

    # -- running ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Delete until cancelled, beginning with what an earlier mount left."""
        task_status.started()
        try:
            await self._run()
        except VolumeIndexError as error:
            # The volume can still be read, so this must not be its end. The next mount goes on here.
            logger.warning("no more objects are deleted in this mount: %s", error)

    async def _run(self) -> None:
        while True:
            self._woken, self._wake, self._hurry = 0, trio.Event(), trio.Event()
            async with self._round_lock:
                await self._mark_due()
                await self._round()
            next_time = await self._next_time()
            with trio.CancelScope(deadline=next_time):
                await self._wake.wait()
                await self._wait_for_company()

    async def _wait_for_company(self) -> None:
        with trio.move_on_after(self._limits.patience_s):
            while self._woken < BATCH and not self._hurry.is_set():
                seen, self._wake = self._woken, trio.Event()
                with trio.move_on_after(self._limits.quiet_s):
                    await self._wake.wait()
                if self._woken == seen:
                    return

    async def _round(self) -> None:
        """Delete what is marked, but for what failed and has to wait."""
        last_id = 0
        batch: list[BlobRow] = []
        while rows := await self._deleting(last_id):
            last_id = rows[-1].id
            now = trio.current_time()
            batch += [row for row in rows if self._failures.get(row.id, _DUE).not_before <= now]
            while len(batch) >= BATCH:
                await self._delete(batch[:BATCH])
                del batch[:BATCH]
        if batch:
            await self._delete(batch)

    async def _next_time(self) -> float:
        """On trio's clock: when something is to be done unasked."""
        times = [failure.not_before for failure in self._failures.values()]
        oldest_ns = await self._db.read(blobs.next_due_ns)
        if oldest_ns is not None:
            times.append(self._grace.due_at(oldest_ns))
        return min(times, default=math.inf)

    # -- a round's parts -------------------------------------------------------------------------------

    async def _mark_due(self) -> None:
        before_ns = self._grace.due_before_ns()
        if await self._db.read(lambda tx: blobs.has_future_garbage(tx, self._now_ns())):
            await self._db.write(lambda tx: blobs.mark_future_garbage(tx, self._now_ns()))
        if before_ns is None:
            return
        while True:
            oldest_ns = await self._db.read(blobs.next_due_ns)
            if oldest_ns is None or oldest_ns > before_ns:
                return
            await self._db.write(lambda tx: blobs.mark_due(tx, before_ns, BATCH))

    async def _deleting(self, after_id: int) -> list[BlobRow]:
        return await self._db.read(lambda tx: blobs.deleting(tx, BATCH, after_id))

    async def _delete(self, rows: list[BlobRow]) -> int:
        """Delete the objects of marked rows, and forget those rows; answers how many."""
        await self._db.commit()  # the marks, before anything is gone
        try:
            await self._shipped()  # nor must an index that is recovered name what is gone
        except ObjectStoreError as error:
            for row in rows:
                self._failed(row, error)
            return 0
        reached(Failpoint.MARKED)
        # No checkpoint from here until the claims are kept out.
        free: list[BlobRow] = []
        claimed: list[BlobRow] = []
        for row in rows:
            shared = self._stores[row.store_id].config.keying is Keying.DIGEST
            taken = shared and self.claims.is_claimed(row.store_id, row.digests.sha256)
            (claimed if taken else free).append(row)
        for row in claimed:
            self._failures.setdefault(row.id, _Failure()).not_before = trio.current_time() + CLAIM_RETRY_S
        with self.claims.reaping([(row.store_id, row.digests.sha256) for row in free]):
            deleted = []
            for store_id, group in _by_store(free).items():
                deleted += await self._delete_in(self._stores[store_id], group)
            if deleted:
                reached(Failpoint.DELETED)
                await self._db.write(lambda tx: blobs.forget(tx, deleted))
                reached(Failpoint.FORGOTTEN)
        return len(deleted)

    async def _delete_in(self, store: BlobStore, rows: list[BlobRow]) -> list[int]:
        """Delete cache entries, then objects, of one store; answers the ids of the blobs that are gone."""
        if store.config.cached:
            for row in rows:
                self._remove_cached(row)
        errors = {error.location: error.error for error in await store.delete([row.location for row in rows])}
        for row in rows:
            if row.location in errors:
                self._failed(row, errors[row.location])
            else:
                self._failures.pop(row.id, None)
        if not errors:
            self._complaints = {about for about in self._complaints if about[0] != store.config.id}
        return [row.id for row in rows if row.location not in errors]

    def _remove_cached(self, row: BlobRow) -> None:
        try:
            self._tier.cache.remove(row.store_id, row.location.cache_name)
        except TierError as error:
            # It is only a copy; eviction will meet the same disk error and report it.
            logger.info("the cached copy of %s stays: %s", row.location.object_key, error)

    def _failed(self, row: BlobRow, error: ObjectStoreError) -> None:
        failure = self._failures.setdefault(row.id, _Failure())
        failure.count += 1
        delay_s = self._limits.retry.delay_s(failure.count, self._jitter())
        failure.not_before = trio.current_time() + delay_s
        about = (row.store_id, error.code or type(error).__name__)
        if about not in self._complaints:  # once for a thousand blobs that fail alike
            self._complaints.add(about)
            logger.warning(
                "deleting from %s failed and is tried again: %s", self._stores[row.store_id].config.uri, error
            )


def _by_store(rows: list[BlobRow]) -> dict[int, list[BlobRow]]:
    groups: dict[int, list[BlobRow]] = {}
    for row in rows:
        groups.setdefault(row.store_id, []).append(row)
    return groups
