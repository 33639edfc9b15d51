"""Small contents that go to S3 together: one after the other in one thread, so that they share its turn
through the event loop, one look into the index before, and one transaction and one sync of the disk after.

*How many* is told by how far S3 is, which the shortest time that one took of late tells. Near, few threads
keep up with all that a mount can do, and more would only take the processor from each other; what becomes
ready meanwhile goes with the next batch. Far away, each has a thread for itself, as many as there are.

*None waits long for another.* A batch that has taken long is parted: what is in S3 is committed, what
was not begun is given back, to be begun by others, and the one that is under way goes on alone. One that S3
or the index refuses fails alone, and what is not simple (the same content on its way by another upload, a
lost answer) is left to an upload by itself.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from s3blobfs.blobstore.protocol import BlobStore, Left, SmallPut
from s3blobfs.config import KIB
from s3blobfs.errors import BlobIsDeleting, S3BlobFSError, VolumeIndexError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.types import StoredContent
from s3blobfs.writeback.jobs import Job
from s3blobfs.writeback.schedule import Schedule
from s3blobfs.writeback.transfer import Commit, Committed, Transfer

SHARING_MAX_BYTES = 128 * KIB
"""Larger contents go by themselves."""
TOGETHER_MAX = 32
MOST_PER_S = 1000
"""About as many small files as a mount gets through on one processor."""
_FORGETS_AFTER = 1024
"""Batches until a shortest time counts for little: many, since with a busy processor the others tell of
nothing but that, and how far S3 is seldom changes."""
_FAR_S = 0.1
"""What one is taken to need while nothing is known: each goes alone then."""


@dataclass(frozen=True, slots=True)
class Patience:
    linger_s: float
    """How long a content waits for others to go with, when none is ready."""
    company: int
    """So many wait no longer."""
    slots_least: int
    """Batches at once, however near S3 is."""
    aim_s: float
    """What a batch should take."""
    late_s: float
    """What it may take."""


PROMPT = Patience(linger_s=0.0, company=0, slots_least=2, aim_s=0.01, late_s=0.02)
"""Somebody waits for each."""
PATIENT = Patience(linger_s=0.02, company=16, slots_least=1, aim_s=0.03, late_s=0.1)
"""Nobody waits, so what costs least is best: who writes needs the processor as well."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What becomes of jobs, as the uploader does it."""

    begin: Callable[[], None]
    """Something may begin."""
    settle: Callable[[Job, Committed], Awaitable[None]]
    release: Callable[[Job], Awaitable[None]]
    failed: Callable[[Job, S3BlobFSError], Awaitable[None]]


class Batch:
    """Small contents of one store. For the trio thread, but for :meth:`_next`."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.is_sending = True
        """It counts among those that are under way."""
        self.late_at = math.inf
        self.is_begun = False
        """There was a thread for it."""
        self.shortest_s = math.inf
        """That one of it took."""
        self._waiting: deque[tuple[Job, SmallPut]] = deque()
        self._answered: deque[tuple[Job, SmallPut]] = deque()
        self._wanted = self._next()

    def wanted(self, ready: list[tuple[Job, SmallPut]]) -> Iterator[SmallPut]:
        """What the store is to store, one after the other."""
        self._waiting.extend(ready)
        return self._wanted

    def _next(self) -> Generator[SmallPut, None, None]:
        """Runs in the thread, with a client that has one."""
        self.is_begun = True
        while True:
            try:
                job, put = self._waiting.popleft()
            except IndexError:
                return
            began = time.perf_counter()
            try:
                yield put
            finally:
                self._answered.append((job, put))
            self.shortest_s = min(self.shortest_s, time.perf_counter() - began)

    def take_answered(self) -> list[tuple[Job, SmallPut]]:
        """Those with an outcome, since the last call."""
        return [self._answered.popleft() for _ in range(len(self._answered))]

    def withdraw(self) -> list[Job]:
        """Take back what was not begun. A thread may take it at any moment: only one of the two gets it."""
        withdrawn = []
        while self._waiting:
            try:
                withdrawn.append(self._waiting.popleft()[0])
            except IndexError:
                break
        return withdrawn

    def fail_rest(self, error: S3BlobFSError) -> None:
        """What has no outcome will have none but this. Only when no thread is at it any more."""
        self._wanted.close()  # what was begun and not repeated is answered by that
        self._answered.extend(self._waiting)
        self._waiting.clear()
        for _, put in self._answered:
            if put.outcome is None:
                put.outcome = error


class Together:
    """Of one mount; its methods are for the trio thread."""

    def __init__(
        self,
        transfer: Transfer,
        stores: Mapping[int, BlobStore],
        schedule: Schedule,
        ends: Ends,
        patience: Patience,
    ) -> None:
        self._transfer = transfer
        self._stores = stores
        self._schedule = schedule
        self._ends = ends
        self._patience = patience
        self._lingers_until = -math.inf
        self._awaiting = 0
        self._batches: deque[Batch] = deque()
        """In the order of their beginning; some may be over."""
        self._begun = trio.Event()
        self._sending = 0
        self._one_s = _FAR_S
        """The shortest time of late that one content took."""

    # -- how many --------------------------------------------------------------------------------------

    def linger(self) -> bool:
        """A content is about to become ready; whether it waits for others, until :attr:`lingers_until`."""
        if not self._patience.linger_s or self._schedule.ready_to_share:
            return False
        self._lingers_until = trio.current_time() + self._patience.linger_s
        return True

    def hurry(self) -> None:
        """Somebody waits: nothing lingers any more."""
        self._lingers_until = -math.inf

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Meanwhile somebody waits for everything."""
        self.hurry()
        self._awaiting += 1
        try:
            yield
        finally:
            self._awaiting -= 1

    @property
    def lingers_until(self) -> float:
        """On trio's clock, when somebody has to begin what is ready; infinite if nobody has to. Whatever is
        ready now: a batch that leaves some of it behind may be over before that time."""
        return self._lingers_until if trio.current_time() < self._lingers_until else math.inf

    @property
    def _is_lingering(self) -> bool:
        ready = self._schedule.ready_to_share
        return 0 < ready < self._patience.company and trio.current_time() < self._lingers_until

    @property
    def free_slots(self) -> int:
        """So many batches may begin now."""
        if self._is_lingering:
            return 0
        patience = PROMPT if self._awaiting else self._patience
        wanted = max(patience.slots_least, int(self._one_s * MOST_PER_S))
        return min(self._schedule.limits.uploads, wanted) - self._sending

    @property
    def sharing(self) -> int:
        """How many contents are to go in each of the batches that begin now."""
        in_time = max(1, int(self._patience.aim_s / self._one_s))
        for_each = math.ceil(self._schedule.ready_to_share / max(1, self.free_slots))
        return min(for_each, in_time, TOGETHER_MAX)

    # -- one batch -------------------------------------------------------------------------------------

    def begin(self, jobs: list[Job]) -> Batch:
        """A batch of RUNNING jobs of one store, to be uploaded."""
        self._sending += 1
        return Batch(jobs)

    async def upload(self, batch: Batch) -> None:
        """Bring a batch to S3 and into the index, as far as it is not parted meanwhile."""
        try:
            ready, left = await self._transfer.prepare(batch.jobs)
        except S3BlobFSError as error:
            self._end(batch)
            for job in batch.jobs:
                await self._ends.failed(job, error)
            return
        if ready:
            await self._send(batch, ready)
        self._end(batch)
        for job in left:
            self._set_apart(job)
        await self._go_on(batch.take_answered())

    async def _send(self, batch: Batch, ready: list[tuple[Job, SmallPut]]) -> None:
        store = self._stores[batch.jobs[0].upload.store_id]
        wanted = batch.wanted(ready)
        self._watch(batch)
        try:
            await store.put_each(wanted)
        except S3BlobFSError as error:
            batch.fail_rest(error)
        one_s = batch.shortest_s
        if one_s < math.inf:
            self._one_s = min(one_s, self._one_s + (one_s - self._one_s) / _FORGETS_AFTER)

    def _end(self, batch: Batch) -> None:
        """It does not count any more."""
        if batch.is_sending:
            batch.is_sending = False
            self._sending -= 1

    def _set_apart(self, job: Job) -> None:
        """It is begun anew, by itself."""
        self._schedule.set_apart(job.upload.id)
        self._schedule.give_back(job.upload.id)

    async def _go_on(self, answered: list[tuple[Job, SmallPut]]) -> None:
        """S3 has these, or does not take them."""
        stored: list[tuple[Job, StoredContent]] = []
        failed: list[tuple[Job, S3BlobFSError]] = []
        for job, put in answered:
            outcome = put.outcome
            assert outcome is not None, "it was begun"
            if isinstance(outcome, StoredContent):
                reached(Failpoint.PUT_ANSWERED)
                stored.append((job, outcome))
                continue
            self._transfer.let_go(job, in_doubt=outcome is not Left.BUSY)
            if isinstance(outcome, Left):
                self._set_apart(job)
            else:
                failed.append((job, outcome))
        self._ends.begin()
        for job, error in failed:
            await self._ends.failed(job, error)
        if stored:
            await self._commit(stored)

    async def _commit(self, stored: list[tuple[Job, StoredContent]]) -> None:
        committed: list[tuple[Job, Commit | VolumeIndexError]] = []
        try:
            committed += await self._transfer.commit(stored)
        except VolumeIndexError as error:
            committed += [(job, error) for job, _ in stored]
        for job, result in committed:
            self._transfer.let_go(job, in_doubt=not isinstance(result, BlobIsDeleting))
        for job, result in committed:
            if isinstance(result, BlobIsDeleting):
                self._set_apart(job)  # by itself it waits until the object is gone
            elif isinstance(result, S3BlobFSError):
                await self._ends.failed(job, result)
            elif result is None:
                await self._ends.release(job)
            else:
                await self._ends.settle(job, result)
        self._ends.begin()

    # -- late ones -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Part batches that are late, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._batches and not self._batches[0].is_sending:
                    self._batches.popleft()
                if not self._batches:
                    self._begun = trio.Event()
                    await self._begun.wait()
                    continue
                batch = self._batches[0]
                await trio.sleep_until(batch.late_at)
                if not batch.is_begun:
                    self._batches.popleft()
                    self._watch(batch)  # all threads are busy, and would be so for others
                elif batch.is_sending:
                    nursery.start_soon(self._go_on, self._part(batch))

    def stop(self) -> None:
        """Begin nothing more of what is under way."""
        for batch in self._batches:
            batch.withdraw()

    def _watch(self, batch: Batch) -> None:
        batch.late_at = trio.current_time() + self._patience.late_s
        self._batches.append(batch)
        self._begun.set()

    def _part(self, batch: Batch) -> list[tuple[Job, SmallPut]]:
        """Nothing of it waits any longer for what is under way. Answers what is done."""
        self._end(batch)
        for job in batch.withdraw():
            self._transfer.let_go(job, in_doubt=False)
            self._schedule.give_back(job.upload.id)
        return batch.take_answered()
