"""What was measured, put together: medians over the rounds, spread, and ratios to the limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchlib.measure import Sample, Unit

Figure = Callable[[Sample], float]


@dataclass(frozen=True, slots=True)
class Result:
    """One row on one target: the medians of its rounds."""

    rate: float
    slowest: float
    fastest: float
    seconds: float
    settled_s: float
    cpu_s: float
    peak_memory_bytes: int | None
    requests: Mapping[str, int]
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Result:
        rates = [sample.rate for sample in samples]
        kinds = sorted({kind for sample in samples for kind in sample.requests})
        peaks = [sample.peak_memory_bytes for sample in samples if sample.peak_memory_bytes is not None]
        return cls(
            rate=statistics.median(rates),
            slowest=min(rates),
            fastest=max(rates),
            seconds=statistics.median(sample.seconds for sample in samples),
            settled_s=statistics.median(sample.settled_s for sample in samples),
            cpu_s=statistics.median(sample.cpu_s for sample in samples),
            peak_memory_bytes=max(peaks, default=None),
            requests={
                kind: statistics.median_high(sample.requests.get(kind, 0) for sample in samples)
                for kind in kinds
            },
            rounds=len(samples),
        )

    @property
    def spread(self) -> float:
        """How far the fastest and the slowest round are from each other, relative to the median."""
        return (self.fastest - self.slowest) / self.rate


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two figures, compared round by round."""

    median: float
    lowest: float
    highest: float


def _rate(sample: Sample) -> float:
    return sample.rate


@dataclass(slots=True)
class Results:
    """Of a run: samples by row, then by target, then by the number of the round."""

    units: Mapping[str, Unit]
    samples: dict[str, dict[str, dict[int, Sample]]] = field(default_factory=dict)

    def add(self, row: str, target: str, number: int, sample: Sample) -> None:
        self.samples.setdefault(row, {}).setdefault(target, {})[number] = sample

    def of(self, row: str, target: str) -> Result | None:
        samples = self.samples.get(row, {}).get(target)
        return Result.of(list(samples.values())) if samples else None

    def ratio(self, row: str, target: str, to: str, figure: Figure = _rate) -> Ratio | None:
        """Speed, or another figure, relative to another target's in the same rounds; ``None`` when there are
        no such rounds, or the other's figure is 0 in all of them."""
        by_target = self.samples.get(row, {})
        mine, others = by_target.get(target, {}), by_target.get(to, {})
        ratios = [
            figure(mine[number]) / other
            for number in mine.keys() & others.keys()
            if (other := figure(others[number]))
        ]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def targets(self) -> list[str]:
        """In the order in which they were measured first."""
        return list(dict.fromkeys(target for by_target in self.samples.values() for target in by_target))
