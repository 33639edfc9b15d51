"""The uploader: brings staged files to S3, behind the filesystem or while somebody waits.

An upload's states, and what survives a crash in each:

    QUEUED ───────► UPLOADING ─────────────► STORED ──────────► gone
      ▲  │ supersede    │  │                 commit             staged file promoted or removed
      │  ▼              │  └─ row is gone ─► RELEASED ────────► gone
      │ gone            ▼                    commit             (the reaper removes the object)
      └─────────────  FAILED ── supersede ─► GIVING WAY ──────► gone
                                             commit             (the same, if a PUT had taken place)

* QUEUED, UPLOADING, FAILED: the journal row and the staged file are on disk; recovery submits them again.
* STORED: one transaction has removed the row and put the blob in the inode's place for it. It is durable
  before the staged file goes, since until then that is the only copy that anything durable names.
* RELEASED: the file was unlinked or emptied meanwhile (its row is gone): the object gets a row and loses it
  again in one transaction, so that the reaper finds it.
* GIVING WAY: nobody wants the content any more, but a PUT of it may have taken place. Its row goes when S3
  has been asked; a newer content of the file waits until then, for recovery takes the newest row for the
  file's content.

*Order.* Contents of one file reach S3 and the index in the order in which they were sealed, one at a time;
one that is no longer the newest is dropped unless it is under way. Object first, row second
(:mod:`s3blobfs.writeback.transfer`).

*Repeating.* A failed upload is repeated until it succeeds, whatever the error: sooner when it may pass by
itself, later when somebody has to mend something. Once a PUT was begun and its answer is not known, S3 is
asked first whether it took place, by the write id in the object's metadata.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Literal

import trio

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import S3BlobFSError, TierError, TierUnavailable, TransientS3Error, VolumeIndexError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.index import dentries, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.writeback.admission import Admission, Load
from s3blobfs.writeback.early import EarlyUploads
from s3blobfs.writeback.jobs import Job, Limits, PendingUploads, UploadListener
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.schedule import JobState, Schedule
from s3blobfs.writeback.tickets import Barrier, UploadTicket
from s3blobfs.writeback.together import PATIENT, PROMPT, SHARING_MAX_BYTES, Ends, Together
from s3blobfs.writeback.transfer import Committed, Transfer

__all__ = ["Limits", "PendingUploads", "UploadListener", "UploadTicket", "Uploader"]

logger = logging.getLogger(__name__)


class Uploader:
    """Uploads of one mounted volume. All methods are for the trio thread."""

    def __init__(
        self,
        db: Database,
        tier: Tier,
        stores: Mapping[int, BlobStore],
        reaper: Reaper,
        listener: UploadListener,
        *,
        limits: Limits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``jitter`` answers 0 to 1; ``now_ns`` is the time written into the index."""
        self._db = db
        self._tier = tier
        self._stores = stores
        self._listener = listener
        self._limits = limits or Limits()
        self.early = EarlyUploads(db, stores, self._limits.early)
        """To be told of what is written, and asked for the write id of what is sealed."""
        self._transfer = Transfer(db, stores, reaper, self.early, now_ns)
        self._jitter = jitter
        self._schedule = Schedule(self._limits.schedule)
        ends = Ends(self._begin, self._settle, self._release, self._failed)
        patience = PATIENT if self._limits.patient else PROMPT
        self._together = Together(self._transfer, stores, self._schedule, ends, patience)
        self._jobs: dict[int, Job] = {}
        self._bytes = 0
        self._parked: dict[int, list[UploadTicket]] = {}
        """By inode: of contents that were superseded by one that is not submitted yet."""
        self._parked_ages: dict[int, int] = {}
        """And their places in the queue."""
        self._errors: dict[int, str] = {}
        """By upload, the latest last."""
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        """Of uploads; ``None`` while none may begin."""
        self._now_ns = now_ns
        self.admission = Admission(self._limits.queue, self._load, lambda: tier.space.stageable_bytes)
        """To be asked before a write that nobody will wait for."""
        self._stopped: S3BlobFSError | None = None

    # -- for the filesystem ----------------------------------------------------------------------------

    def _load(self) -> Load:
        # In the order in which they were submitted; to go through all of them at each write would be dear.
        oldest = next((job.since for job in self._jobs.values() if not job.forgotten), None)
        age_s = 0.0 if oldest is None else trio.current_time() - oldest
        return Load(len(self._jobs), self._bytes, age_s, next(reversed(self._errors.values()), None))

    def submit(
        self, upload: UploadRow, staged: StagedFile, object_id: str | None, *, recovered: bool = False
    ) -> UploadTicket:
        """Queue the upload of a sealed file whose journal row is written. ``object_id``: the file's.
        ``recovered``: from an earlier mount, which may have begun it."""
        if upload.digests is None:
            raise ValueError(f"upload {upload.id} is not sealed")
        ticket = UploadTicket(upload.id, upload.inode_id, upload.size_bytes)
        for earlier in self._schedule.jobs_of(upload.inode_id):
            self._schedule.hurry(earlier)  # its turn is to find out that it is superseded
        tickets = [*self._parked.pop(upload.inode_id, []), ticket]
        in_doubt = recovered or upload.attempts > 0
        # The index's clock may be set back and forth; only across mounts there is no other.
        age_s = max(0, self._now_ns() - upload.created_ns) / 10**9 if recovered else 0.0
        if not self._jobs:
            self.admission.moved()
        self._jobs[upload.id] = Job(
            upload,
            upload.digests,
            staged,
            object_id,
            in_doubt,
            tickets,
            since=trio.current_time() - age_s,
        )
        self._bytes += upload.size_bytes
        age = self._parked_ages.pop(upload.inode_id, None)
        may_share = not in_doubt and upload.size_bytes <= SHARING_MAX_BYTES
        kin = upload.store_id if may_share else None
        if self._together.linger():
            self._wake.set()
        self._schedule.add(upload.id, upload.inode_id, upload.size_bytes, kin, age)
        if self._stopped is not None:
            ticket.stop(self._stopped)
        self._begin()
        return ticket

    def supersede(self, inode_id: int) -> list[int]:
        """Drop what is queued of a file and was never begun; answers the ids of the uploads, whose journal
        rows and staged files are the caller's to remove. Who waits for them will wait for the next upload
        submitted for the file, which takes their place in the queue: the caller submits one, or calls
        :meth:`forget_inode`. What was begun gives way to that one by itself."""
        dropped = []
        for upload_id in self._schedule.jobs_of(inode_id):
            running = self._schedule.state_of(upload_id) is JobState.RUNNING
            if not running and not self._jobs[upload_id].in_doubt:
                age = self._schedule.drop(upload_id)
                self._parked_ages[inode_id] = min(age, self._parked_ages.get(inode_id, age))
                self._parked.setdefault(inode_id, []).extend(self._remove(upload_id).tickets)
                dropped.append(upload_id)
        return dropped

    def forget_inode(self, inode_id: int) -> None:
        """The file is gone, or empty, and so are its journal rows: drop what is queued and let go of those
        who wait. What was begun is released when it ends, or when S3 has been asked about it."""
        self.supersede(inode_id)
        released = self._parked.pop(inode_id, [])
        self._parked_ages.pop(inode_id, None)
        for upload_id in self._schedule.jobs_of(inode_id):
            job = self._jobs[upload_id]
            job.forgotten = True
            released += job.tickets
            job.tickets = []
            self._schedule.hurry(upload_id)
        self._wake.set()
        for ticket in released:
            ticket.succeed()

    async def secure(self, newer: StagedFile | None, *, promised: bool) -> None:
        """Before staged files go whose journal rows are gone: the index outlives this process. ``promised``:
        bytes of one of them were to survive a power failure as well, so what has taken their place,
        ``newer``, does now. Raises what the index and the disk do."""
        if promised and newer is not None:
            await newer.sync()
            await self._db.commit()
        else:
            await self._db.flush()

    def hurry(self, inode_id: int) -> None:
        """Somebody waits for the file: what failed is tried again now."""
        self._together.hurry()
        for upload_id in self._schedule.jobs_of(inode_id):
            self._schedule.hurry(upload_id)
        self._begin()

    async def barrier(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when everything submitted so far is in S3 and in the index, or superseded by something
        that is. ``progress(files_left, bytes_left)`` is called at the start and after each. A failing
        upload is waited for: :meth:`pending` tells why, and the caller gives up by cancelling. Raises
        :class:`~s3blobfs.errors.VolumeIndexError` when the index takes nothing any more."""
        tickets = [ticket for job in self._jobs.values() for ticket in job.tickets]
        tickets += [ticket for parked in self._parked.values() for ticket in parked]
        barrier = Barrier(tickets)
        with self._together.awaited():
            for upload_id in self._jobs:
                self._schedule.hurry(upload_id)
            self._wake.set()
            while True:
                if progress is not None:
                    progress(barrier.files_left, barrier.bytes_left)
                if barrier.files_left == 0:
                    break
                await barrier.changed()
        # What nobody wants any more but was begun: cut off now, it might leave an object without a row. It is
        # given one chance, for no data depends on it; what it leaves if S3 fails is found by gc.
        forgotten = [job for job in self._jobs.values() if job.forgotten and self._stopped is None]
        for job in forgotten:
            if job.tried.is_set():
                job.tried = trio.Event()
            self._schedule.hurry(job.upload.id)
        self._wake.set()
        for job in forgotten:
            await job.tried.wait()
        await trio.lowlevel.checkpoint()

    def pending(self) -> PendingUploads:
        wanted = [job.upload for job in self._jobs.values() if not job.forgotten]
        return PendingUploads(
            files=len(wanted),
            bytes=sum(upload.size_bytes for upload in wanted),
            oldest_ns=min((upload.created_ns for upload in wanted), default=None),
            in_flight=self._schedule.running,
            last_error=next(reversed(self._errors.values()), None),
        )

    def state_of(self, inode_id: int) -> Literal["staged", "uploading"] | None:
        """``None``: nothing of the file waits for its upload."""
        jobs = [job for job in self._schedule.jobs_of(inode_id) if not self._jobs[job].forgotten]
        if not jobs:
            return None
        running = any(self._schedule.state_of(job) is JobState.RUNNING for job in jobs)
        return "uploading" if running else "staged"

    # -- running ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Upload until cancelled; what is queued then stays journalled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.early.start(nursery)
                nursery.start_soon(self._together.run)
                task_status.started()
                try:
                    while True:
                        self._wake = trio.Event()
                        self._begin()
                        await self._wait_for_work()
                finally:
                    self._nursery = None
                    self.early.stop()
                    self._together.stop()
        finally:
            self._stop(TransientS3Error("uploads have ended; the data is staged for the next mount"))

    def _stop(self, error: S3BlobFSError) -> None:
        self._stopped = error
        for tickets in [*(job.tickets for job in self._jobs.values()), *self._parked.values()]:
            for ticket in tickets:
                ticket.stop(error)
        for job in self._jobs.values():
            job.tried.set()  # it will not be

    def _begin(self) -> None:
        """Begin the uploads that may. Who makes one ready calls this: a turn of :meth:`run` in between would
        cost as much as all else here."""
        if self._nursery is None:
            return
        slots = self._schedule.take(
            trio.current_time(), shared_slots=self._together.free_slots, sharing=self._together.sharing
        )
        for upload_ids in slots:
            jobs = [self._jobs[upload_id] for upload_id in upload_ids]
            sharing = []
            for job in jobs:
                if self._schedule.may_share(job.upload.id) and self._is_wanted(job):
                    sharing.append(job)
                else:
                    self._nursery.start_soon(self._upload, job)
            if sharing:
                self._nursery.start_soon(self._together.upload, self._together.begin(sharing))

    def _is_wanted(self, job: Job) -> bool:
        """No newer content of the file waits behind it, and the file is there."""
        return not job.forgotten and len(self._schedule.jobs_of(job.upload.inode_id)) == 1

    async def _wait_for_work(self) -> None:
        next_time = self._schedule.next_time()
        deadline = math.inf if next_time is None else next_time
        with trio.CancelScope(deadline=min(deadline, self._together.lingers_until)):
            await self._wake.wait()

    async def _upload(self, job: Job) -> None:
        job.giving_way = not self._is_wanted(job)
        try:
            if job.giving_way:
                await self._give_way(job)
            else:
                await self._attempt(job)
        except OSError as error:  # of reading the staged file
            cause = TierUnavailable(f"reading {job.staged.path}: {error.strerror or error}")
            cause.__cause__ = error
            await self._failed(job, cause)
        except S3BlobFSError as error:
            await self._failed(job, error)

    async def _attempt(self, job: Job) -> None:
        committed = await self._transfer.store(job)
        if committed is None:
            await self._release(job)
        else:
            await self._settle(job, committed)

    # -- ends ------------------------------------------------------------------------------------------

    async def _settle(self, job: Job, committed: Committed) -> None:
        """The content is in S3 and in the index."""
        blob = committed.blob
        entry = None
        try:
            if self._stores[blob.store_id].config.cached:
                entry = await self._tier.cache.promote(job.staged, blob.store_id, blob.location.cache_name)
            else:
                await job.staged.discard()
        except TierError as error:
            logger.warning("%s is stored, but its staged file stays: %s", job.what, error)
        reached(Failpoint.PROMOTED)
        self._end(job)
        self._listener.stored(job.upload.id, committed.inode, blob, entry)
        for ticket in job.tickets:
            ticket.succeed()

    async def _release(self, job: Job) -> None:
        """Nobody wants the content any more; or a newer one does not exist yet, and waiters wait for it."""
        await self._discard(job)
        self._end(job)
        if job.forgotten:
            for ticket in job.tickets:
                ticket.succeed()
        else:
            self._pass_on(job)

    async def _give_way(self, job: Job) -> None:
        """A newer content of the file waits behind this one, or the file is gone."""
        await self._transfer.settle(job)
        # Until the commit a crash brings the row back, and its file has to be there then.
        behind = self._schedule.jobs_of(job.upload.inode_id)[1:]
        newer = self._jobs[behind[0]].staged if behind else None
        await self.secure(newer, promised=job.staged.promised)
        await self._release(job)

    def _pass_on(self, job: Job) -> None:
        """Who waits for this upload waits for the next one of the file."""
        successors = self._schedule.jobs_of(job.upload.inode_id)
        if successors:
            self._jobs[successors[0]].tickets += job.tickets
        else:
            self._parked.setdefault(job.upload.inode_id, []).extend(job.tickets)

    async def _discard(self, job: Job) -> None:
        try:
            await job.staged.discard()
        except TierError as error:
            logger.warning("%s is over, but its staged file stays: %s", job.what, error)

    async def _failed(self, job: Job, error: S3BlobFSError) -> None:
        if job.in_doubt:
            self._schedule.set_apart(job.upload.id)  # S3 is asked first
        if job.forgotten and not job.giving_way:
            self._schedule.retry(job.upload.id, trio.current_time())  # not to upload it, but to give way
            self._wake.set()
            return
        if self._db.unusable is not None:
            # Nothing can be committed until the next mount, which uploads this again: nobody is to wait.
            job.tried.set()
            if self._stopped is None:
                logger.error("nothing is uploaded any more in this mount: %s", self._db.unusable)
            self._stop(self._db.unusable)
            return
        job.failures += 1
        job.staged.close_if_idle()
        message = str(error)
        try:
            path = await self._db.write(lambda tx: self._note_failure(tx, job, message))
        except VolumeIndexError as index_error:
            # Only the count of attempts is lost, and a recovered upload is taken to be in doubt anyway.
            logger.warning("cannot note in the index that %s failed: %s", job.what, index_error)
            path = None
        self._errors.pop(job.upload.id, None)
        self._errors[job.upload.id] = message
        self.admission.failed()
        backoff = self._limits.transient if isinstance(error, TransientS3Error) else self._limits.permanent
        delay_s = backoff.delay_s(job.failures, self._jitter())
        if message != job.logged:
            job.logged = message
            name = path.decode(errors="backslashreplace") if path is not None else job.what
            logger.warning(
                "%s %s %s %s failed and is tried again in %.0f s: %s",
                *(("finding", name, "in") if job.giving_way else ("uploading", name, "to")),
                self._stores[job.upload.store_id].config.uri,
                delay_s,
                message,
            )
        self._schedule.retry(job.upload.id, trio.current_time() + delay_s)
        held_up = self._schedule.jobs_of(job.upload.inode_id)
        if job.giving_way:
            job.tried.set()
            for upload_id in held_up[1:]:  # who waits for what waits behind it hears of the trouble too
                for ticket in self._jobs[upload_id].tickets:
                    ticket.fail(error)
        elif len(held_up) > 1:
            self._schedule.hurry(job.upload.id)
        self._wake.set()
        for ticket in job.tickets:
            ticket.fail(error)

    def _note_failure(self, tx: Transaction, job: Job, message: str) -> bytes | None:
        uploads.failed(tx, job.upload.id, message)
        return dentries.path_of(tx, job.upload.inode_id)

    def _end(self, job: Job) -> None:
        """A running job is over."""
        self._schedule.done(job.upload.id)
        self._remove(job.upload.id)
        self._begin()

    def _remove(self, upload_id: int) -> Job:
        job = self._jobs.pop(upload_id)
        job.tried.set()
        self._bytes -= job.upload.size_bytes
        self._errors.pop(upload_id, None)
        self.admission.moved()
        return job
