"""Runs blocking requests in worker threads: bounded in number and in time, retried, counted.

One :class:`RequestRunner` serves all buckets of a volume, so ``S3Options.max_threads`` bounds them together.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import trio

from s3blobfs.config import S3Options
from s3blobfs.errors import OutcomeUnknown, S3BlobFSError, TransientS3Error
from s3blobfs.s3.each import Request, Requests
from s3blobfs.s3.retry import Randomness, RetryPolicy, retry
from s3blobfs.threads import run_in_thread
from s3blobfs.trace import Count, Tracer

T = TypeVar("T")

ASIDE_MAX_THREADS = 16
"""For requests that nobody waits for, beside ``S3Options.max_threads``."""


class RequestRunner:
    """``uniform`` gives the retries' jitter; the clock is trio's."""

    def __init__(self, options: S3Options, tracer: Tracer, *, uniform: Randomness = random.random) -> None:
        self._options = options
        self._tracer = tracer
        self._policy = RetryPolicy.of(options)
        self._limiter = trio.CapacityLimiter(options.max_threads)
        self._limiter_aside = trio.CapacityLimiter(ASIDE_MAX_THREADS)
        self._uniform = uniform

    async def run(
        self, kind: Count | None, request: Callable[[], T], *, reads_only: bool, repeat_unknown: bool = True
    ) -> T:
        """Answer ``request()``, made in a worker thread and repeated while it fails transiently.

        ``kind`` is counted once, each repetition as ``Count.S3_RETRY``; ``None`` is for requests that have
        no kind of their own. Ends within ``total_timeout_s``. ``repeat_unknown``: see :func:`retry`.

        A request that only reads is abandoned when the caller is cancelled or its time is up: its thread
        ends by itself within ``request_timeout_s`` and its answer is dropped. One that changes something is
        waited for, because the caller has to know what became of it, and the file it reads must stay until
        it is done; so none is begun that could not end by the deadline.
        """
        deadline = trio.current_time() + self._options.total_timeout_s
        begin_by = deadline if reads_only else deadline - self._last_attempt_s

        async def attempt() -> T:
            # For a change this bounds the wait for a free thread, and nothing once it has one.
            with trio.move_on_at(begin_by):
                return await run_in_thread(request, self._limiter, abandon_on_cancel=reads_only)
            raise self._no_answer()

        def count(attempts: int) -> None:
            if attempts > 1:
                self._tracer.count(Count.S3_RETRY)
            elif kind is not None:
                self._tracer.count(kind)

        return await retry(
            attempt,
            self._policy,
            deadline=begin_by,
            on_attempt=count,
            uniform=self._uniform,
            repeat_unknown=repeat_unknown,
        )

    async def run_each(self, requests: Requests[None], make: Callable[[Request[Any]], None]) -> None:
        """Make what ``requests`` asks for, one after the other in one turn through a worker thread; ``make``
        makes one. One that fails transiently is repeated as by :meth:`run`, in another turn that begins with
        it. None is left to itself: what is under way comes to its end, and so do those behind it.

        Raises :class:`~s3blobfs.errors.TransientS3Error` when no thread becomes free in time to begin."""
        request: Request[Any] | None = None
        attempts, began = 0, 0.0
        first_s = self._options.total_timeout_s - self._last_attempt_s
        made: Counter[Count] = Counter()

        def turn() -> TransientS3Error | None:
            nonlocal request, attempts, began
            while True:
                if request is None:
                    request, attempts, began = next(requests, None), 0, time.monotonic()
                    if request is None:
                        return None
                attempts += 1
                made[request.kind if attempts == 1 else Count.S3_RETRY] += 1
                try:
                    make(request)
                except TransientS3Error as error:
                    return error
                except S3BlobFSError as error:
                    request.fail(error)
                request = None

        try:
            while True:
                if request is None:
                    begin_by = trio.current_time() + first_s
                with trio.move_on_at(begin_by) as waiting:
                    error = await run_in_thread(turn, self._limiter)
                if waiting.cancelled_caught:
                    if request is None:
                        raise self._no_answer()
                    request.fail(self._no_answer())
                    request = None
                    continue
                if error is None:
                    return
                assert request is not None, "it failed"
                if attempts == 1:  # those before it in the turn may have taken longer than one may
                    begin_by = trio.current_time() - (time.monotonic() - began) + first_s
                remaining_s = begin_by - trio.current_time()
                delay_s = self._policy.next_delay_s(attempts, remaining_s, self._uniform())
                if delay_s is None or (isinstance(error, OutcomeUnknown) and not request.repeat_unknown):
                    request.fail(error)
                    request = None
                else:
                    await trio.sleep(delay_s)
        finally:
            requests.close()
            for kind, number in made.items():
                self._tracer.count(kind, number)

    @property
    def _last_attempt_s(self) -> float:
        """So long before its deadline the last attempt of a change may begin."""
        return min(self._options.request_timeout_s, self._options.total_timeout_s / 2)

    def _no_answer(self) -> TransientS3Error:
        return TransientS3Error(
            f"no answer within {self._options.total_timeout_s:g} s, all attempts and waiting included"
        )

    async def run_aside(self, kind: Count, requests: Iterator[None]) -> None:
        """Run through ``requests``, each step of which makes one, in a thread that no demanded request waits
        for. Nothing is repeated. Cancelled, it leaves the thread to itself: the iterator has to end it."""
        made = 0

        def work() -> None:
            nonlocal made
            for _ in requests:
                made += 1

        try:
            await trio.to_thread.run_sync(work, limiter=self._limiter_aside, abandon_on_cancel=True)
        finally:
            self._tracer.count(kind, made)
