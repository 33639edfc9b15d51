"""The retry policy, the runner on a mock clock, and the request runner's bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import S3Options
from s3blobfs.errors import ObjectNotFound, TransientS3Error
from s3blobfs.s3.each import HeadRequest, Request, Requests
from s3blobfs.s3.requests import RequestRunner
from s3blobfs.s3.retry import RetryPolicy, retry
from s3blobfs.trace import Count, Tracer

POLICY = RetryPolicy(max_attempts=5, backoff_base_s=0.1, backoff_max_s=0.5)


class Flaky:
    """Fails transiently ``failures`` times."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.times: list[float] = []
        self._failures = failures
        self._error = error or TransientS3Error("503")

    async def __call__(self) -> str:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if len(self.times) <= self._failures:
            raise self._error
        return "done"


def delays(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def test_bounds_double_up_to_the_largest() -> None:
    bounds = [POLICY.next_delay_s(attempts, 1e9, 1.0) for attempts in range(1, 6)]
    assert bounds == pytest.approx([0.1, 0.2, 0.4, 0.5, None])


@given(
    attempts=st.integers(1, 10_000), remaining_s=st.floats(-10, 10), uniform=st.floats(0, 1, exclude_max=True)
)
def test_a_delay_never_reaches_the_deadline(attempts: int, remaining_s: float, uniform: float) -> None:
    policy = RetryPolicy(max_attempts=10_001, backoff_base_s=0.1, backoff_max_s=5.0)
    delay_s = policy.next_delay_s(attempts, remaining_s, uniform)
    assert delay_s is None or 0 <= delay_s < remaining_s


async def test_repeats_until_it_works(autojump_clock: trio.testing.MockClock) -> None:
    flaky, numbers = Flaky(3), list[int]()
    assert await retry(flaky, POLICY, deadline=1e9, on_attempt=numbers.append, uniform=lambda: 0.5) == "done"
    assert delays(flaky.times) == pytest.approx([0.05, 0.1, 0.2])
    assert numbers == [1, 2, 3, 4]


async def test_gives_up_after_the_last_attempt(autojump_clock: trio.testing.MockClock) -> None:
    flaky = Flaky(100)
    with pytest.raises(TransientS3Error, match="503"):
        await retry(flaky, POLICY, deadline=1e9, on_attempt=lambda _: None, uniform=lambda: 1.0)
    assert len(flaky.times) == POLICY.max_attempts


async def test_gives_up_before_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    flaky = Flaky(100)
    deadline = trio.current_time() + 0.35
    with pytest.raises(TransientS3Error):
        await retry(flaky, POLICY, deadline=deadline, on_attempt=lambda _: None, uniform=lambda: 1.0)
    assert len(flaky.times) == 3
    assert trio.current_time() < deadline


async def test_permanent_errors_are_not_repeated() -> None:
    flaky = Flaky(100, ObjectNotFound("no"))
    with pytest.raises(ObjectNotFound):
        await retry(flaky, POLICY, deadline=1e9, on_attempt=lambda _: None)
    assert len(flaky.times) == 1


# --- the request runner -------------------------------------------------------------------------------


def options(**changes: float) -> S3Options:
    values: dict[str, float] = {"backoff_base_s": 0.001, "total_timeout_s": 5.0, "request_timeout_s": 1.0}
    return S3Options(**(values | changes))  # type: ignore[arg-type]


def failing(times: int) -> Callable[[], str]:
    left = iter(range(times))

    def request() -> str:
        if next(left, None) is not None:
            raise TransientS3Error("503")
        return "done"

    return request


async def test_counts_the_kind_once_and_repetitions_apart() -> None:
    tracer = Tracer()
    runner = RequestRunner(options(), tracer)
    assert await runner.run(Count.S3_PUT, failing(2), reads_only=False) == "done"
    assert await runner.run(Count.S3_GET, failing(0), reads_only=True) == "done"
    assert await runner.run(None, failing(1), reads_only=False) == "done"
    assert tracer.counts == {Count.S3_PUT: 1, Count.S3_RETRY: 3, Count.S3_GET: 1}


async def test_a_read_is_abandoned_at_the_deadline() -> None:
    runner = RequestRunner(options(total_timeout_s=0.05), Tracer())
    release = threading.Event()
    try:
        with pytest.raises(TransientS3Error, match=r"within 0\.05 s"):
            await runner.run(Count.S3_GET, release.wait, reads_only=True)
    finally:
        release.set()


async def test_a_cancelled_read_returns_at_once() -> None:
    runner = RequestRunner(options(), Tracer())
    release = threading.Event()
    try:
        with trio.move_on_after(0.01) as scope:
            await runner.run(Count.S3_GET, release.wait, reads_only=True)
        assert scope.cancelled_caught
    finally:
        release.set()


async def test_a_cancelled_change_is_waited_for() -> None:
    runner = RequestRunner(options(), Tracer())
    begun, release = threading.Event(), threading.Event()
    finished: list[bool] = []

    def request() -> None:
        begun.set()
        finished.append(release.wait(10))

    async with trio.open_nursery() as nursery:

        async def change() -> None:
            await runner.run(Count.S3_PUT, request, reads_only=False)

        nursery.start_soon(change)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        release.set()
    assert finished == [True]


async def test_threads_are_bounded() -> None:
    runner = RequestRunner(options(max_threads=2), Tracer())
    lock = threading.Lock()
    now, most = 0, 0
    full = threading.Barrier(2)

    def request() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        full.wait(10)
        with lock:
            now -= 1

    async def run() -> None:
        await runner.run(Count.S3_GET, request, reads_only=True)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(run)
    assert most == 2


@pytest.mark.parametrize("reads_only", [False, True])
async def test_waiting_for_a_thread_has_an_end(reads_only: bool) -> None:
    runner = RequestRunner(options(max_threads=1, total_timeout_s=0.1, request_timeout_s=0.05), Tracer())
    begun, release = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        release.wait(10)

    async with trio.open_nursery() as nursery:

        async def first() -> None:
            await runner.run(Count.S3_PUT, occupy, reads_only=False)

        nursery.start_soon(first)
        await trio.to_thread.run_sync(begun.wait)
        try:
            with pytest.raises(TransientS3Error, match="waiting included"):
                await runner.run(Count.S3_PUT, lambda: None, reads_only=reads_only)
        finally:
            release.set()


async def test_one_whose_repetition_finds_no_thread_does_not_keep_those_behind_it() -> None:
    runner = RequestRunner(
        options(max_threads=1, total_timeout_s=0.1, request_timeout_s=0.05), Tracer(), uniform=lambda: 0.0
    )
    queued, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    made: list[str] = []

    class Unlucky(HeadRequest):
        def fail(self, error: Exception) -> None:
            super().fail(error)
            release.set()

    requests = [Unlucky("k0"), HeadRequest("k1")]

    def make(request: Request[Any]) -> None:
        made.append(request.key)
        if request.key == "k0":
            trio.from_thread.run(queued.wait, trio_token=token)
            raise TransientS3Error("503")

    def asked_for() -> Requests[None]:
        yield from requests

    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run_each, asked_for(), make)
        await trio.testing.wait_all_tasks_blocked()

        async def occupy() -> None:
            await runner.run(Count.S3_PUT, lambda: release.wait(10), reads_only=False)

        nursery.start_soon(occupy)
        await trio.testing.wait_all_tasks_blocked()
        queued.set()
    assert made == ["k0", "k1"]
    with pytest.raises(TransientS3Error, match="no answer within"):
        requests[0].answer()
