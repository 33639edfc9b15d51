"""One measurement: the time between two points, and what was used for it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchlib.targets import Target
from benchlib.usage import Usage
from benchlib.waiting import wait_until
from s3blobfs.config import MIB

_STORED_TIMEOUT_S = 300.0

Sampling = Callable[[], AbstractContextManager[None]]
"""Looks at what the target does while the context lasts."""


class Unit(enum.Enum):
    """What a row's amount is counted in, for one second."""

    BYTES = "MiB/s"
    OPERATIONS = "ops/s"


class NotStored(Exception):
    """What was written has not come to be in S3."""


class Storage(Protocol):
    """Something whose files are in S3 sooner or later."""

    def wait_until_stored(self) -> None:
        """By its own statement."""

    def shows(self, paths: Sequence[Path]) -> bool:
        """Whether S3 has these files, asked without it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one row on one target."""

    seconds: float
    settled_s: float
    """Until nothing was left to be done behind; at least ``seconds``."""
    rate: float
    """In the row's unit."""
    cpu_s: float
    peak_memory_bytes: int | None
    requests: Mapping[str, int]
    """To S3, by kind."""

    @property
    def amount(self) -> float:
        """What was done, in the row's unit without its "per second"."""
        return self.rate * self.seconds

    @property
    def unit_s(self) -> float:
        """For one unit."""
        return 1 / self.rate

    @property
    def unit_cpu_s(self) -> float:
        """For one unit."""
        return self.cpu_s / self.amount


class Watch:
    """Handed to a row, which puts ``with watch(stores=…):`` around what is to be measured, once.

    With ``storage`` the time of a row that stores files ends when they are in S3: its own statement that they
    are ends the time, if a look into the bucket confirms it; a look that confirms is ours and is not counted.
    """

    def __init__(
        self,
        target: Target,
        storage: Storage | None = None,
        requests: Callable[[], Mapping[str, int]] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """``requests``: who counts them, if not the target itself."""
        self._sampling = sampling or nullcontext
        self._target = target
        self._storage = storage
        self._requests = requests
        self._not_counted_s = 0.0
        self._not_counted_cpu_s = 0.0
        self._seconds: float | None = None
        self._settled_s = 0.0
        self._used = Usage(0.0)
        self._peak_memory_bytes: int | None = None

    @contextmanager
    def __call__(self, stores: Sequence[Path] = ()) -> Iterator[None]:
        """``stores``: the files that are written."""
        assert self._seconds is None, "a row measures once"
        target = self._target
        target.settle()
        before = self._usage()
        target.forget_peak_memory()
        with self._sampling():
            begun = time.perf_counter()
            yield
            self.stored(stores)
            self._seconds = time.perf_counter() - begun - self._not_counted_s
            target.settle()
            self._settled_s = time.perf_counter() - begun - self._not_counted_s
        self._used = self._usage().since(before)
        self._peak_memory_bytes = target.peak_memory_bytes()

    def stored(self, paths: Sequence[Path]) -> None:
        """Return when these files are in S3, if that belongs to what is measured. Raises
        :class:`NotStored`."""
        if self._storage is None or not paths:
            return
        storage = self._storage

        def are_stored() -> bool:
            storage.wait_until_stored()
            looked, before = time.perf_counter(), self._target.usage()
            if confirmed := storage.shows(paths):
                self._not_counted_s += time.perf_counter() - looked
                self._not_counted_cpu_s += self._target.usage().since(before).cpu_s
            return confirmed

        if not wait_until(are_stored, _STORED_TIMEOUT_S):
            raise NotStored(f"{self._target.name}: not in S3 after {_STORED_TIMEOUT_S:.0f} s")

    def sample(self, unit: Unit, amount: int) -> Sample:
        assert self._seconds is not None, "the row measured nothing"
        return Sample(
            seconds=self._seconds,
            settled_s=self._settled_s,
            rate=amount / self._seconds / (MIB if unit is Unit.BYTES else 1),
            cpu_s=self._used.cpu_s - self._not_counted_cpu_s,
            peak_memory_bytes=self._peak_memory_bytes,
            requests=self._used.requests,
        )

    def _usage(self) -> Usage:
        usage = self._target.usage()
        return usage if self._requests is None else Usage(usage.cpu_s, self._requests())


def measure(
    target: Target,
    unit: Unit,
    run: Callable[[Watch], int],
    storage: Storage | None = None,
    requests: Callable[[], Mapping[str, int]] | None = None,
    sampling: Sampling | None = None,
) -> Sample:
    """Run a row, which answers the bytes or operations that it measured."""
    watch = Watch(target, storage, requests, sampling)
    return watch.sample(unit, run(watch))
