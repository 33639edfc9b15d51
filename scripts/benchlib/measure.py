"""One measurement: the time between two points, and what was used for it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchlib.targets import Target
from benchlib.usage import Usage
from s3blobfs.config import MIB


class Unit(enum.Enum):
    """What a row's amount is counted in, for one second."""

    BYTES = "MiB/s"
    OPERATIONS = "ops/s"


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one row on one target."""

    seconds: float
    rate: float
    """In the row's unit."""
    cpu_s: float
    peak_memory_bytes: int | None
    requests: Mapping[str, int]
    """To S3, by kind."""


class Watch:
    """Handed to a row, which puts ``with watch:`` around what is to be measured, once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._seconds: float | None = None
        self._used = Usage(0.0)
        self._peak_memory_bytes: int | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        assert self._seconds is None, "a row measures once"
        target = self._target
        before = target.usage()
        target.forget_peak_memory()
        begun = time.perf_counter()
        yield
        self._seconds = time.perf_counter() - begun
        target.settle()
        self._used = target.usage().since(before)
        self._peak_memory_bytes = target.peak_memory_bytes()

    def sample(self, unit: Unit, amount: int) -> Sample:
        assert self._seconds is not None, "the row measured nothing"
        return Sample(
            seconds=self._seconds,
            rate=amount / self._seconds / (MIB if unit is Unit.BYTES else 1),
            cpu_s=self._used.cpu_s,
            peak_memory_bytes=self._peak_memory_bytes,
            requests=self._used.requests,
        )


def measure(target: Target, unit: Unit, run: Callable[[Watch], int]) -> Sample:
    """Run a row, which answers the bytes or operations that it measured."""
    watch = Watch(target)
    return watch.sample(unit, run(watch))
