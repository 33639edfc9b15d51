"""The shipper: sends what changes in the index to the bucket, segment by segment, and finds out when somebody
else does the same.

*Order.* Changes are durable here before they are there (a power cut must not leave the bucket ahead of the
index), and the index notes the number and digest of a segment before it is sent. So whatever happens, the
next mount knows which segments are its own.

*Fencing.* Each segment is a PUT of the next number that must not exist yet. If it does and has our digest, an
answer was lost; if not, another mount has gone on with the volume from elsewhere: from then on every write is
refused here.

*Bounds.* One segment is being sent; behind it changes gather up to a limit, and are then given up for a
snapshot, made when S3 answers again.

*Upkeep.* The copy is looked at now and then, and whenever somebody asks. Where the newest state could not be
recovered from it any more, a segment that begins anew with a snapshot follows.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

import trio

from s3blobfs.config import IndexCopyOptions
from s3blobfs.errors import (
    DamagedContent,
    IndexFenced,
    ObjectStoreError,
    S3BlobFSError,
    TierUnavailable,
    VolumeIndexError,
    VolumeMismatch,
)
from s3blobfs.index import replica
from s3blobfs.index.copying import PinnedState
from s3blobfs.index.database import Database
from s3blobfs.replica.history import History, Joined, Need, Tip
from s3blobfs.replica.options import Limits
from s3blobfs.replica.outgoing import Maker, Outgoing
from s3blobfs.replica.sending import Answer, Sender, evidence
from s3blobfs.replica.status import ReplicaStatus
from s3blobfs.replica.upkeep import Upkeep
from s3blobfs.replica.verification import Depth, Verdict
from s3blobfs.s3.protocol import ObjectClient

logger = logging.getLogger(__name__)

_NS = 10**9


class Shipper:
    """Of one mounted volume. All methods are for the trio thread."""

    def __init__(
        self,
        db: Database,
        client: ObjectClient,
        maker: Maker,
        history: History,
        joined: Joined,
        *,
        prefix: str,
        options: IndexCopyOptions,
        conditional: bool,
        on_fenced: Callable[[str], None],
        limits: Limits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Begins to capture at once, so it is made before the first write of the mount."""
        self._db = db
        self._maker = maker
        self._options = options
        self._sender = Sender(client, history, prefix, conditional=conditional)
        self._on_fenced = on_fenced
        self._limits = limits or Limits()
        self._now_ns = now_ns
        self._jitter = jitter
        self._tip = joined.tip
        self._in_doubt = joined.in_doubt
        self._need = joined.need
        self._sequence = db.sequence if joined.need is not Need.BREAK else -1
        self._out: Outgoing | None = None
        self._out_since_ns: int | None = None
        self._looked_ns = now_ns()
        self._upkeep = Upkeep(
            client,
            history,
            maker,
            prefix=prefix,
            retention_s=options.retention_s,
            limits=self._limits,
            newest=joined.snapshot,
            now_ns=now_ns,
        )
        self._snapshotting = False
        self._renewing = False
        """A break is asked for, though changes could be sent."""
        self._renewed = 0
        """So many times the whole index was sent in front of a segment."""
        self._damage: str | None = None
        self._fenced: str | None = None
        self._stopped: S3BlobFSError | None = None
        self._error: S3BlobFSError | None = None
        self._failures = 0
        self._work = trio.Event()
        self._urgent = trio.Event()
        self._progress = trio.Event()
        self._capture = db.capture(
            lambda: self._work.set(), now_ns=now_ns, backlog_bytes=self._limits.backlog_bytes
        )

    # -- for others ------------------------------------------------------------------------------------

    async def shipped(self) -> None:
        """Return when the bucket has everything that was written until now. Raises :class:`IndexFenced`,
        and what S3 answered when an attempt fails meanwhile."""
        await self._wait_for_sequence(patient=False)

    async def barrier(self) -> None:
        """As :meth:`shipped`, and waits through failures; the caller gives up by cancelling."""
        await self._wait_for_sequence(patient=True)

    async def verify(
        self, depth: Depth, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Verdict:
        """Look whether the copy would do. Raises :class:`IndexFenced` where somebody else has gone on, what
        S3 raises, :class:`VolumeMismatch`, :class:`TierUnavailable`."""
        verdict = await self._upkeep.verify(self._tip, depth, progress)
        if verdict.taken is not None and self._fenced is None:
            self._fence(evidence(verdict.taken))
        if self._fenced is not None:
            raise IndexFenced(self._fenced)
        self._damage = "; ".join(verdict.damage) or None
        return verdict

    async def renew(self) -> None:
        """Send the whole index anew, so that nothing before is needed to recover the present state; returns
        when it is there. Raises as :meth:`shipped`."""
        self._renewing = True
        goal = self._renewed + 1
        await self._wait(lambda: self._renewed >= goal, patient=False)

    async def _wait_for_sequence(self, *, patient: bool) -> None:
        sequence = self._db.sequence
        await self._wait(lambda: self._sequence >= sequence, patient=patient)

    async def _wait(self, reached: Callable[[], bool], *, patient: bool) -> None:
        while not reached():
            if self._stopped is not None:
                raise self._stopped
            self._urgent.set()
            self._work.set()
            failures = self._failures
            await self._progress.wait()
            if self._failures != failures and self._error is not None and not patient:
                raise self._error
        if self._stopped is not None and self._fenced is not None:
            raise self._stopped

    def status(self) -> ReplicaStatus:
        oldest = [each for each in (self._out_since_ns, self._capture.since_ns) if each is not None]
        reached = max(self._sequence, 0)
        return ReplicaStatus(
            segment=self._tip.number,
            sequence=reached,
            behind=max(0, self._db.sequence - reached),
            lag_s=round(max(0, self._now_ns() - min(oldest)) / _NS, 3) if oldest else 0.0,
            backlog_bytes=self._capture.backlog_bytes + (len(self._out.data) if self._out else 0),
            snapshot_pending=self._capture.lost or self._need is Need.BREAK,
            last_snapshot_ns=self._upkeep.snapshot_ns,
            fencing="conditional" if self._sender.conditional else "weak",
            fenced=self._fenced,
            last_error=str(self._error) if self._error is not None else None,
            damage=self._damage,
        )

    # -- running ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled, or until there is no use in it any more."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                await self._run(nursery)
        finally:
            if self._out is not None:
                self._out.discard()
            if self._stopped is None:
                self._stop(VolumeIndexError("the copy of the index has ended"))

    async def _run(self, nursery: trio.Nursery) -> None:
        try:
            self._maker.sweep()
            while self._fenced is None:
                await self._wait_for_work()
                await self._attempt(nursery)
        except (VolumeIndexError, OSError) as error:
            logger.error("the index is not copied to the bucket any more: %s", error)
            self._stop(VolumeIndexError(f"the index is not copied to the bucket any more: {error}"))

    @property
    def _idle(self) -> bool:
        """Nothing is to be sent."""
        captured = self._capture.since_ns is not None or self._capture.lost
        return self._out is None and self._need is Need.NOTHING and not captured and not self._renewing

    async def _wait_for_work(self) -> None:
        """Until something is to be sent and has waited for company, or it is time to look."""
        if self._idle:
            look_in_s = self._limits.look_s - (self._now_ns() - self._looked_ns) / _NS
            with trio.move_on_after(min(self._limits.look_s, max(0.0, look_in_s))):
                await self._work.wait()
        self._work = trio.Event()
        if self._error is not None:
            delay_s = min(
                self._limits.retry_longest_s, self._limits.retry_first_s * 2 ** min(self._failures - 1, 10)
            )
            await trio.sleep(delay_s * (0.5 + self._jitter() / 2))
        elif self._need is Need.NOTHING and self._capture.since_ns is not None:
            waited_s = (self._now_ns() - self._capture.since_ns) / _NS
            # Never longer, also where the clock was put back meanwhile.
            with trio.move_on_after(
                self._options.lag_s / 2 - min(self._options.lag_s / 2, max(0.0, waited_s))
            ):
                await self._urgent.wait()
        self._urgent = trio.Event()

    async def _attempt(self, nursery: trio.Nursery) -> None:
        try:
            await self._look()
            if self._fenced is None:
                await self._glance()
                await self._send_next(nursery)
            self._error, self._failures = None, 0
        except (ObjectStoreError, DamagedContent, VolumeMismatch, TierUnavailable) as error:
            self._failed(error)
        except OSError as error:
            self._failed(TierUnavailable(f"a snapshot of the index cannot be written: {error.strerror}"))
        self._tell()

    def _failed(self, error: S3BlobFSError) -> None:
        if self._error is None:
            logger.warning("the index cannot be copied to the bucket, which is tried again: %s", error)
        self._error = error
        self._failures += 1

    def _tell(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def _stop(self, error: S3BlobFSError) -> None:
        self._stopped = error
        self._tell()

    # -- one segment -----------------------------------------------------------------------------------

    async def _send_next(self, nursery: trio.Nursery) -> None:
        pinned: PinnedState | None = None
        if self._out is None:
            pinned = await self._make()
        out = self._out
        try:
            if out is not None:
                await self._db.note(lambda tx: replica.store(tx, out.row()))
                if out.snapshot is not None:
                    size_bytes = await self._maker.send_snapshot(out.segment.number, out.snapshot)
                    self._upkeep.note_snapshot(size_bytes)
                if not await self._put(out):
                    return
                self._sent(out)
            if pinned is not None and not self._snapshotting:
                self._snapshotting = True
                nursery.start_soon(self._snapshot, self._tip, pinned)
                pinned = None
        finally:
            if pinned is not None:
                pinned.close()
        if out is not None and self._upkeep.tidying_is_due:
            self._upkeep.note_tidying()
            nursery.start_soon(self._upkeep.tidy)

    async def _make(self) -> PinnedState | None:
        """Decide on what is sent next. Answers the state behind it when a snapshot of that is due."""
        since_ns = self._capture.since_ns
        pinned: PinnedState | None = None
        if self._need is Need.BREAK or self._capture.lost or self._renewing:
            self._need, self._renewing = Need.BREAK, False
            state, _ = await self._db.pin()
            self._out_since_ns = since_ns
            self._out = await self._maker.break_(self._tip, max(self._sequence, 0), state)
            return None
        if not self._snapshotting and self._upkeep.snapshot_is_due:
            pinned, changes = await self._db.pin()
        else:
            changes = await self._db.captured()
        try:
            if changes:
                self._out_since_ns = since_ns
                self._out = await self._maker.changes(self._tip, self._sequence, changes)
            elif self._need is Need.MARK:
                self._out = self._maker.mark(self._tip, self._sequence)
        except BaseException:
            if pinned is not None:
                pinned.close()
            raise
        return pinned

    async def _put(self, out: Outgoing) -> bool:
        """Whether it is in the bucket; otherwise this mount is fenced, or begins anew behind another segment
        of its own."""
        answer, segment = await self._sender.send(out, self._in_doubt)
        if answer is Answer.SENT:
            return True
        if answer is Answer.TAKEN:
            self._fence(evidence(segment))
            return False
        # A break follows whatever it holds.
        assert self._in_doubt is not None
        self._tip, self._in_doubt = self._in_doubt, None
        self._need = Need.BREAK
        self._forget_out()
        self._work.set()
        return False

    def _sent(self, out: Outgoing) -> None:
        self._tip = out.tip
        self._sequence = out.segment.sequence
        self._need = Need.NOTHING
        self._in_doubt = None
        self._looked_ns = self._now_ns()
        if out.snapshot is None:
            self._upkeep.note_segment(len(out.data))
        else:
            self._renewed += 1
            self._damage = None
        self._forget_out()

    def _forget_out(self) -> None:
        out, self._out, self._out_since_ns = self._out, None, None
        if out is not None:
            out.discard()

    # -- fencing ---------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """See whether somebody has gone on, when nothing was heard of S3 for long: his first segments may
        have been removed since, and then their numbers would be free again."""
        if self._now_ns() - self._looked_ns < self._limits.look_s * _NS:
            return
        if await self._sender.somebody_went_on(self._tip, self._out):
            self._fence(f"segments behind number {self._tip.number} are in the bucket")
        self._looked_ns = self._now_ns()

    def _fence(self, evidence: str) -> None:
        self._fenced = reason = (
            f"another mount has gone on with this volume ({evidence}); nothing can be changed here any more,"
            " and what is not in S3 yet stays staged: unmount, then bring the other state here with 's3blobfs"
            " recover --force', or mount with --take-over to go on from this one"
        )
        logger.error("%s", reason)
        self._db.fence(reason)
        self._on_fenced(reason)
        self._stop(IndexFenced(reason))

    # -- upkeep ----------------------------------------------------------------------------------------

    async def _glance(self) -> None:
        """Learn of damage before the copy is needed."""
        if self._out is not None or self._need is not Need.NOTHING:
            return  # what is behind the tip decides first
        if not self._upkeep.verification_is_due:
            return
        try:
            verdict = await self.verify(Depth.GLANCE)
        except IndexFenced:
            return  # said, and everything has stopped
        if verdict.damage:
            logger.warning("the copy of the index in the bucket is damaged, and made anew: %s", self._damage)
            self._renewing = True

    async def _snapshot(self, tip: Tip, pinned: PinnedState) -> None:
        try:
            await self._upkeep.snapshot(tip, pinned)
        finally:
            self._snapshotting = False
