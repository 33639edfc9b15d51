"""When and how often a request is repeated.

The policy is pure; the runner sleeps on trio's clock. Exponential backoff with full jitter: the delay is
uniform between nothing and a bound that doubles, which spreads clients that failed together (M. Brooker,
"Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3blobfs.config import S3Options
from s3blobfs.errors import OutcomeUnknown, TransientS3Error

T = TypeVar("T")
Randomness = Callable[[], float]
"""Uniform in [0, 1)."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    max_attempts: int
    """The first one included."""
    backoff_base_s: float
    """Bound of the delay before the second attempt; each further bound is twice the one before."""
    backoff_max_s: float

    @classmethod
    def of(cls, options: S3Options) -> RetryPolicy:
        return cls(options.max_attempts, options.backoff_base_s, options.backoff_max_s)

    def next_delay_s(self, attempts: int, remaining_s: float, uniform: float) -> float | None:
        """How long to wait after ``attempts`` failed ones, with ``remaining_s`` until the deadline; ``None``
        to give up."""
        if attempts >= self.max_attempts:
            return None
        # The exponent is bounded for the float's sake, not for the delay's.
        bound_s = min(self.backoff_max_s, self.backoff_base_s * 2.0 ** min(attempts - 1, 60))
        delay_s = bound_s * uniform
        return delay_s if delay_s < remaining_s else None


async def retry(
    attempt: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    deadline: float,
    on_attempt: Callable[[int], None],
    uniform: Randomness = random.random,
    repeat_unknown: bool = True,
) -> T:
    """Await ``attempt()`` until it does not raise :class:`~s3blobfs.errors.TransientS3Error`, or the policy
    gives up: then the last error is raised. Any other error is raised at once.

    ``deadline`` is in :func:`trio.current_time`; no attempt begins after it, and a running one is its own
    master. ``on_attempt`` is told the number of each attempt, from 1, before it is made. Without
    ``repeat_unknown`` an attempt that may have taken place is the last one: its
    :class:`~s3blobfs.errors.OutcomeUnknown` is raised.
    """
    attempts = 0
    while True:
        attempts += 1
        on_attempt(attempts)
        try:
            return await attempt()
        except TransientS3Error as error:
            if isinstance(error, OutcomeUnknown) and not repeat_unknown:
                raise
            remaining_s = deadline - trio.current_time()
            delay_s = policy.next_delay_s(attempts, remaining_s, uniform())
            if delay_s is None:
                raise
        await trio.sleep(delay_s)
