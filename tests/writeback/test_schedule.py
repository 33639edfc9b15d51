"""The schedule: properties over random histories, and a few sentences of its docstring one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from s3blobfs.writeback.schedule import Backoff, JobState, Schedule, ScheduleLimits

SMALL, LARGE = 10, 100


def taken(schedule: Schedule, now: float) -> list[int]:
    """Each has a slot for itself."""
    return [job for (job,) in schedule.take(now)]


def limits(uploads: int = 4, small_slots: int = 1, large_bytes: int = 250) -> ScheduleLimits:
    return ScheduleLimits(
        uploads=uploads, large_bytes=large_bytes, small_bytes=SMALL, small_slots=small_slots
    )


class ScheduleMachine(RuleBasedStateMachine):
    """A model that knows every job and recomputes from scratch what the schedule may do."""

    jobs = Bundle("jobs")
    running_jobs = Bundle("running_jobs")

    def __init__(self) -> None:
        super().__init__()
        self.limits = limits()
        self.schedule = Schedule(self.limits)
        self.now = 0.0
        self.ids = 0
        self.inode_of: dict[int, int] = {}
        self.size_of: dict[int, int] = {}
        self.waiting: list[int] = []
        """Oldest first; retried ones keep their place."""
        self.running: list[int] = []
        self.not_before: dict[int, float] = {}

    # -- model -----------------------------------------------------------------------------------------

    def eligible(self) -> list[int]:
        busy = {self.inode_of[job] for job in self.running}
        found = []
        for job in self.waiting:
            if self.inode_of[job] not in busy and self.not_before.get(job, 0) <= self.now:
                found.append(job)
            busy.add(self.inode_of[job])
        return found

    def may_begin(self, job: int) -> bool:
        if len(self.running) == self.limits.uploads:
            return False
        large = [self.size_of[each] for each in self.running if self.size_of[each] > SMALL]
        if self.size_of[job] <= SMALL or not large:
            return True
        return (
            len(large) < self.limits.large_uploads
            and sum(large) + self.size_of[job] <= self.limits.large_bytes
        )

    def expected(self) -> list[int]:
        begun: list[int] = []
        while True:
            first_of_class: dict[bool, int] = {}
            for job in self.eligible():
                first_of_class.setdefault(self.size_of[job] > SMALL, job)
            candidates = [job for job in first_of_class.values() if self.may_begin(job)]
            if not candidates:
                return begun
            job = min(candidates)
            self.waiting.remove(job)
            self.running.append(job)
            self.not_before.pop(job, None)
            begun.append(job)

    # -- rules -----------------------------------------------------------------------------------------

    @rule(target=jobs, inode=st.integers(1, 5), size=st.sampled_from([0, SMALL, SMALL + 1, LARGE, 300]))
    def add(self, inode: int, size: int) -> int:
        self.ids += 1
        self.inode_of[self.ids], self.size_of[self.ids] = inode, size
        self.waiting.append(self.ids)
        self.schedule.add(self.ids, inode, size)
        return self.ids

    @rule(passed=st.floats(0, 10), target=running_jobs)
    def take(self, passed: float) -> object:
        self.now += passed
        begun = taken(self.schedule, self.now)
        self.not_before = {job: time for job, time in self.not_before.items() if time > self.now}
        assert begun == self.expected()
        return multiple(*begun)

    @rule(job=consumes(running_jobs))
    def done(self, job: int) -> None:
        self.running.remove(job)
        self.schedule.done(job)

    @rule(job=consumes(running_jobs), delay=st.floats(0, 20))
    def retry(self, job: int, delay: float) -> None:
        self.running.remove(job)
        self.waiting.append(job)
        self.waiting.sort()
        self.not_before[job] = self.now + delay
        self.schedule.retry(job, self.now + delay)

    @rule(job=jobs)
    def drop_or_refuse(self, job: int) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
            self.not_before.pop(job, None)
            self.schedule.drop(job)
        elif job in self.running:
            with pytest.raises(ValueError, match="is running"):
                self.schedule.drop(job)

    @rule(job=jobs)
    def hurry(self, job: int) -> None:
        if job in self.waiting or job in self.running:
            self.not_before.pop(job, None)
            self.schedule.hurry(job)

    @precondition(lambda self: self.running)
    @rule()
    def adding_again_is_refused(self) -> None:
        with pytest.raises(ValueError, match="queued already"):
            self.schedule.add(self.running[0], 1, 1)

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.schedule) == len(self.waiting) + len(self.running)
        assert self.schedule.running == len(self.running)
        for inode in range(1, 6):
            line = [job for job in sorted(self.waiting + self.running) if self.inode_of[job] == inode]
            assert self.schedule.jobs_of(inode) == line
            states = [self.schedule.state_of(job) for job in line]
            assert all(state is JobState.BEHIND for state in states[1:])
            assert JobState.BEHIND not in states[:1]

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.running) <= self.limits.uploads
        large = [self.size_of[job] for job in self.running if self.size_of[job] > SMALL]
        assert len(large) <= self.limits.large_uploads
        assert len(large) <= 1 or sum(large) <= self.limits.large_bytes
        assert len({self.inode_of[job] for job in self.running}) == len(self.running)

    @invariant()
    def next_time_is_that_of_the_first_delayed(self) -> None:
        first = {self.inode_of[job]: job for job in sorted(self.waiting + self.running, reverse=True)}
        times = [time for job, time in self.not_before.items() if first[self.inode_of[job]] == job]
        assert self.schedule.next_time() == min(times, default=None)


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, LARGE, 300])), max_size=30),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_everything_is_begun_in_the_end_in_the_order_of_its_inode(
    jobs: list[tuple[int, int]], uploads: int, order: object
) -> None:
    schedule = Schedule(limits(uploads=uploads, small_slots=min(1, uploads - 1)))
    for number, (inode, size) in enumerate(jobs):
        schedule.add(number, inode, size)
    begun: list[int] = []
    running: list[int] = []
    while len(schedule):
        now = taken(schedule, 0.0)
        begun += now
        running += now
        assert running, "nothing runs and nothing begins"
        ended = order.choice(running)  # type: ignore[attr-defined]
        running.remove(ended)
        schedule.done(ended)
    assert sorted(begun) == list(range(len(jobs)))
    for inode in range(1, 5):
        of_inode = [job for job in begun if jobs[job][0] == inode]
        assert of_inode == sorted(of_inode)


def test_large_uploads_leave_a_slot_to_small_ones() -> None:
    schedule = Schedule(limits(large_bytes=10_000))
    for job in range(5):
        schedule.add(job, job, LARGE)
    assert taken(schedule, 0) == [0, 1, 2]
    schedule.add(5, 5, 1)
    assert taken(schedule, 0) == [5]
    schedule.done(5)
    schedule.add(6, 6, 1)
    assert taken(schedule, 0) == [6]


def test_stream_of_small_uploads_does_not_hold_up_a_large_one() -> None:
    schedule = Schedule(limits(uploads=2, small_slots=1))
    schedule.add(0, 0, 1)
    schedule.add(1, 1, 1)
    assert taken(schedule, 0) == [0, 1]
    schedule.add(2, 2, LARGE)
    schedule.add(3, 3, 1)
    schedule.done(0)
    assert taken(schedule, 0) == [2]


def test_large_upload_waits_for_the_budget_and_is_not_overtaken_by_younger_large_ones() -> None:
    schedule = Schedule(limits(uploads=8, small_slots=1))
    for job, size in enumerate([LARGE, LARGE, LARGE, SMALL + 1]):
        schedule.add(job, job, size)
    assert taken(schedule, 0) == [0, 1]
    schedule.done(0)
    assert taken(schedule, 0) == [2, 3]


def test_upload_above_the_budget_runs_alone_among_large_ones() -> None:
    schedule = Schedule(limits())
    schedule.add(0, 0, LARGE)
    schedule.add(1, 1, 10**12)
    schedule.add(2, 2, LARGE)
    assert taken(schedule, 0) == [0]
    schedule.done(0)
    assert taken(schedule, 0) == [1]
    schedule.add(3, 3, 1)
    assert taken(schedule, 0) == [3]
    schedule.done(1)
    assert taken(schedule, 0) == [2]


def test_one_slot_serves_both_classes_in_order() -> None:
    schedule = Schedule(ScheduleLimits(uploads=1, small_slots=0, small_bytes=SMALL))
    for job, size in enumerate([LARGE, 1, LARGE]):
        schedule.add(job, job, size)
    for job in range(3):
        assert taken(schedule, 0) == [job]
        schedule.done(job)


def test_retried_job_keeps_its_place() -> None:
    schedule = Schedule(limits(uploads=1))
    schedule.add(0, 0, 1)
    schedule.add(1, 1, 1)
    assert taken(schedule, 0) == [0]
    schedule.retry(0, not_before=5.0)
    assert schedule.next_time() == 5.0
    assert taken(schedule, 1) == [1]
    schedule.add(2, 2, 1)
    schedule.done(1)
    assert taken(schedule, 5) == [0]


def test_what_takes_the_place_of_another_has_its_turn() -> None:
    """A file that changes all the time must not be overtaken for ever by files that change once."""
    schedule = Schedule(limits(uploads=1))
    schedule.add(0, 0, 1)
    assert taken(schedule, 0) == [0]
    schedule.add(1, 1, 1)
    schedule.add(2, 2, 1)
    age = schedule.drop(1)
    schedule.add(3, 1, 1, age=age)
    schedule.done(0)
    assert taken(schedule, 0) == [3]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_doubles_to_a_bound(failures: int, jitter: float) -> None:
    backoff = Backoff(first_s=1.0, longest_s=60.0)
    delay_s = backoff.delay_s(failures, jitter)
    full_s = min(60.0, 2.0 ** min(failures - 1, 10))
    assert full_s / 2 <= delay_s <= full_s


def test_only_running_jobs_end() -> None:
    schedule = Schedule()
    schedule.add(0, 0, 1)
    with pytest.raises(ValueError, match="is not running"):
        schedule.done(0)
    with pytest.raises(ValueError, match="is not running"):
        schedule.retry(0, 1.0)


# --- shared slots -------------------------------------------------------------------------------------


def test_jobs_of_one_kin_share_a_slot_in_their_order() -> None:
    schedule = Schedule(limits(uploads=2))
    for job in range(5):
        schedule.add(job, job, 1, kin=7)
    assert schedule.ready_to_share == 5
    assert schedule.take(0) == []
    assert schedule.take(0, shared_slots=1, sharing=3) == [[0, 1, 2]]
    assert (schedule.running, schedule.ready_to_share) == (3, 2)
    schedule.add(5, 5, LARGE)
    assert schedule.take(0, shared_slots=1, sharing=3) == [[3, 4]]
    for job in range(3):
        assert schedule.take(0) == []
        schedule.done(job)
    assert schedule.take(0) == [[5]]


def test_slot_is_shared_with_no_other_kin_nor_beyond_its_bytes() -> None:
    schedule = Schedule(ScheduleLimits(small_bytes=SMALL, shared_bytes=SMALL))
    for job, (size, kin) in enumerate([(1, 1), (1, 1), (1, 2), (6, 2), (4, 2), (1, None), (LARGE, 2)]):
        schedule.add(job, job, size, kin=kin)
    assert schedule.ready_to_share == 5
    assert schedule.take(0, shared_slots=9, sharing=9) == [[0, 1], [2, 3], [4], [5], [6]]


def test_what_is_given_back_keeps_its_place() -> None:
    schedule = Schedule(limits(uploads=2))
    for job in range(4):
        schedule.add(job, job % 3, 1, kin=1)
    assert schedule.take(0, shared_slots=1, sharing=3) == [[0, 1, 2]]
    schedule.give_back(1)
    schedule.give_back(2)
    assert schedule.state_of(1) is JobState.READY
    schedule.done(0)
    schedule.set_apart(2)
    assert (schedule.running, schedule.ready_to_share) == (0, 2)
    assert schedule.take(0) == []
    assert schedule.take(0, shared_slots=1, sharing=9) == [[1], [2]]
    schedule.done(1)
    schedule.drop(3)
    assert schedule.ready_to_share == 0
    schedule.give_back(2)
    assert not schedule.may_share(2)
    assert schedule.take(0) == [[2]]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 6, LARGE]), st.sampled_from([None, 1, 2]))),
    st.integers(1, 4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_shared_slots_over_random_histories(
    jobs: list[tuple[int, int, int | None]], uploads: int, sharing: int, order: object
) -> None:
    """Slots are bounded, every job of a slot is of one kin, the rest is as without sharing."""
    schedule = Schedule(limits(uploads=uploads, small_slots=min(1, uploads - 1)))
    for number, (inode, size, kin) in enumerate(jobs):
        schedule.add(number, inode, size, kin)
    begun: list[int] = []
    slots: list[list[int]] = []
    while len(schedule):
        for slot in schedule.take(0.0, shared_slots=2, sharing=sharing):
            assert len(slot) <= sharing
            assert len(slot) == 1 or len({jobs[job][2] for job in slot} | {None}) == 2
            slots.append(slot)
        assert 0 < len(slots) <= uploads
        assert schedule.running == sum(map(len, slots))
        slot = order.choice(slots)  # type: ignore[attr-defined]
        ended = slot.pop()
        slots = [slot for slot in slots if slot]
        fate = order.choice(["done", "back", "apart"])  # type: ignore[attr-defined]
        if fate == "done" or ended in begun:
            schedule.done(ended)
            continue
        begun.append(ended)  # given back once
        if fate == "apart":
            schedule.set_apart(ended)
        schedule.give_back(ended)
    assert (schedule.running, schedule.ready_to_share) == (0, 0)
