"""Which upload begins next. Pure: no clock, no IO, no tasks; the caller says what time it is.

                  ┌───────────────── retry ──────────────────┐
                  ▼                                          │
    add ──► BEHIND ──► READY ──────────── take ──────────► RUNNING ──► done
                         ▲                                   │
                         └───────── DELAYED ◄──── retry ─────┘
                         ▲──────────── give_back ────────────┘
    drop: from BEHIND, READY and DELAYED

* Jobs of one inode run one at a time, in the order in which they were added. Only the first of them is READY
  or DELAYED; the others are BEHIND it.
* Jobs are *small* or *large*. Within each class READY jobs begin strictly in order of age, so none is
  overtaken for ever. Between the classes the older one goes first, if it may:
* The last ``small_slots`` of the slots are closed to large jobs: whatever large uploads are under way, a
  small one finds a slot within the time of a small upload.
* Large jobs share a budget of bytes in flight. One that is larger than the budget runs when no other large
  one does; younger large ones wait behind it, so it will. Small ones are not counted: the slots bound them.
* Some small jobs may share a slot: those of one *kin*. How many slots may be begun for them, and how many may
  share one, is said by who takes them. They are taken in order of age as well.
"""

from __future__ import annotations

import collections
import enum
import heapq
from dataclasses import dataclass, field

from s3blobfs.config import MIB


@dataclass(frozen=True, slots=True)
class ScheduleLimits:
    """How much is under way at once."""

    uploads: int = 16
    large_bytes: int = 1024 * MIB
    """Large uploads together; a single one may be larger."""
    small_bytes: int = 1 * MIB
    """An upload up to here is small."""
    small_slots: int = 4
    """Slots kept for small uploads; one at least is open to large ones."""
    shared_bytes: int = 1 * MIB
    """Of jobs that share a slot, together."""

    @property
    def large_uploads(self) -> int:
        return max(1, self.uploads - self.small_slots)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed job waits: doubling, and somewhere in the upper half of that."""

    first_s: float
    longest_s: float

    def delay_s(self, failures: int, jitter: float) -> float:
        """After the ``failures``-th failure in a row (from 1). ``jitter``: 0 to 1, at random, so that what
        failed together does not come back together."""
        # The exponent is bounded before it is used: 2.0**1024 is an error.
        full_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return full_s * (0.5 + jitter / 2)


class JobState(enum.Enum):
    BEHIND = enum.auto()
    """An earlier job of the same inode comes first."""
    READY = enum.auto()
    DELAYED = enum.auto()
    """It failed and waits for its time."""
    RUNNING = enum.auto()


@dataclass(slots=True)
class _Slot:
    jobs: int = 0


@dataclass(slots=True)
class _Job:
    id: int
    inode_id: int
    size_bytes: int
    age: int
    """Smaller is older; a retried job keeps its age, and one that takes another's place gets it."""
    kin: int | None
    state: JobState = JobState.BEHIND
    not_before: float = 0.0
    slot: _Slot | None = None
    """While it is RUNNING."""


@dataclass(slots=True)
class Schedule:
    """The queue. Job ids are the caller's, unique among the jobs that are in it."""

    limits: ScheduleLimits = field(default_factory=ScheduleLimits)
    _jobs: dict[int, _Job] = field(default_factory=dict)
    _by_inode: dict[int, collections.deque[_Job]] = field(default_factory=dict)
    _ages: int = 0
    # Heaps hold outdated entries, recognised when they come up: dropping from the middle of one is dear.
    _small: list[tuple[int, int]] = field(default_factory=list)
    _large: list[tuple[int, int]] = field(default_factory=list)
    """READY jobs as (age, id)."""
    _delayed: list[tuple[float, int]] = field(default_factory=list)
    """DELAYED jobs as (not_before, id)."""
    _ready_kin: int = 0
    """READY jobs that may share a slot."""
    _running: int = 0
    _slots: int = 0
    _running_large: int = 0
    _running_large_bytes: int = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def running(self) -> int:
        return self._running

    @property
    def ready_to_share(self) -> int:
        """How many READY jobs may share a slot."""
        return self._ready_kin

    def state_of(self, job_id: int) -> JobState:
        return self._jobs[job_id].state

    def jobs_of(self, inode_id: int) -> list[int]:
        """In their order."""
        return [job.id for job in self._by_inode.get(inode_id, ())]

    # -- changes ---------------------------------------------------------------------------------------

    def add(
        self, job_id: int, inode_id: int, size_bytes: int, kin: int | None = None, age: int | None = None
    ) -> None:
        """Queue a job behind all others of its inode. Small ones may share a slot with others of their
        ``kin``. ``age``: of one that was dropped in its favour, so that a file which changes all the time has
        its turn all the same."""
        if job_id in self._jobs:
            raise ValueError(f"job {job_id} is queued already")
        self._ages += 1
        age = self._ages if age is None else age
        job = self._jobs[job_id] = _Job(job_id, inode_id, size_bytes, age, kin)
        if self._is_large(job):
            job.kin = None
        line = self._by_inode.setdefault(inode_id, collections.deque())
        line.append(job)
        if line[0] is job:
            self._make_ready(job)

    def take(self, now: float, *, shared_slots: int = 0, sharing: int = 1) -> list[list[int]]:
        """The jobs to begin at ``now``, a list for each slot; they are RUNNING from here on. Of jobs with a
        kin at most ``shared_slots`` lists, of at most ``sharing`` each."""
        while (delayed := self._first_delayed()) is not None and delayed.not_before <= now:
            self._make_ready(delayed)
        begun = []
        while self._slots < self.limits.uploads and (job := self._next(shared_slots > 0)) is not None:
            slot = _Slot()
            self._slots += 1
            self._run(job, slot)
            begun.append([job.id])
            if job.kin is not None:
                shared_slots -= 1
                begun[-1] += self._share(job, slot, sharing - 1)
        return begun

    def done(self, job_id: int) -> None:
        """A RUNNING job is over, whichever way; the next of its inode may begin."""
        job = self._stop(job_id)
        self._remove(job)

    def retry(self, job_id: int, not_before: float) -> None:
        """A RUNNING job failed; it keeps its place and is READY again at ``not_before``."""
        job = self._stop(job_id)
        job.state, job.not_before = JobState.DELAYED, not_before
        heapq.heappush(self._delayed, (not_before, job_id))

    def give_back(self, job_id: int) -> None:
        """A RUNNING job was not begun after all; it keeps its place and is READY again."""
        self._make_ready(self._stop(job_id))

    def set_apart(self, job_id: int) -> None:
        """From the next time on that it is RUNNING, the job has a slot for itself."""
        job = self._jobs[job_id]
        self._ready_kin -= job.state is JobState.READY and job.kin is not None
        job.kin = None

    def may_share(self, job_id: int) -> bool:
        return self._jobs[job_id].kin is not None

    def hurry(self, job_id: int) -> None:
        """A DELAYED job waits no longer; any other is left alone."""
        job = self._jobs[job_id]
        if job.state is JobState.DELAYED:
            self._make_ready(job)

    def drop(self, job_id: int) -> int:
        """Take a job that is not RUNNING out of the queue; answers its age."""
        job = self._jobs[job_id]
        if job.state is JobState.RUNNING:
            raise ValueError(f"job {job_id} is running")
        self._remove(job)
        return job.age

    def next_time(self) -> float | None:
        """When the first DELAYED job becomes READY; ``None`` when none is delayed."""
        job = self._first_delayed()
        return None if job is None else job.not_before

    # -- choosing --------------------------------------------------------------------------------------

    def _share(self, first: _Job, slot: _Slot, count: int) -> list[int]:
        """Up to so many jobs that come along with ``first``."""
        size_bytes = first.size_bytes
        taken: list[int] = []
        while len(taken) < count and (job := self._first_ready(self._small)) is not None:
            size_bytes += job.size_bytes
            if job.kin != first.kin or size_bytes > self.limits.shared_bytes:
                break
            self._run(job, slot)
            taken.append(job.id)
        return taken

    def _next(self, may_share: bool) -> _Job | None:
        small, large = self._first_ready(self._small), self._first_ready(self._large)
        if small is not None and small.kin is not None and not may_share:
            small = None
        if large is not None and not self._admits(large):
            large = None
        return min((job for job in (small, large) if job is not None), key=lambda job: job.age, default=None)

    def _admits(self, large: _Job) -> bool:
        if self._running_large == 0:
            return True
        return (
            self._running_large < self.limits.large_uploads
            and self._running_large_bytes + large.size_bytes <= self.limits.large_bytes
        )

    def _first_ready(self, heap: list[tuple[int, int]]) -> _Job | None:
        while heap:
            age, job_id = heap[0]
            job = self._jobs.get(job_id)
            if job is not None and job.age == age and job.state is JobState.READY:
                return job
            heapq.heappop(heap)
        return None

    def _first_delayed(self) -> _Job | None:
        while self._delayed:
            not_before, job_id = self._delayed[0]
            job = self._jobs.get(job_id)
            if job is not None and job.state is JobState.DELAYED and job.not_before == not_before:
                return job
            heapq.heappop(self._delayed)
        return None

    # -- bookkeeping -----------------------------------------------------------------------------------

    def _is_large(self, job: _Job) -> bool:
        return job.size_bytes > self.limits.small_bytes

    def _run(self, job: _Job, slot: _Slot) -> None:
        self._ready_kin -= job.kin is not None
        job.state = JobState.RUNNING
        job.slot = slot
        slot.jobs += 1
        self._count(job, +1)

    def _make_ready(self, job: _Job) -> None:
        job.state = JobState.READY
        self._ready_kin += job.kin is not None
        heapq.heappush(self._large if self._is_large(job) else self._small, (job.age, job.id))

    def _stop(self, job_id: int) -> _Job:
        job = self._jobs[job_id]
        if job.state is not JobState.RUNNING:
            raise ValueError(f"job {job_id} is not running")
        self._count(job, -1)
        assert job.slot is not None
        job.slot.jobs -= 1
        if not job.slot.jobs:
            self._slots -= 1
        job.slot = None
        return job

    def _count(self, job: _Job, sign: int) -> None:
        self._running += sign
        if self._is_large(job):
            self._running_large += sign
            self._running_large_bytes += sign * job.size_bytes

    def _remove(self, job: _Job) -> None:
        self._ready_kin -= job.state is JobState.READY and job.kin is not None
        del self._jobs[job.id]
        line = self._by_inode[job.inode_id]
        was_first = line[0] is job
        line.remove(job)
        if not line:
            del self._by_inode[job.inode_id]
        elif was_first:
            self._make_ready(line[0])
