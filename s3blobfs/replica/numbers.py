"""A set of segments' numbers, in little memory.

A volume in steady use makes a segment a second or so and keeps them for its retention: hundreds of thousands
in a week, which its mount looks at each hour. They have hardly any gaps, so runs of them are kept.
"""

from __future__ import annotations

from collections.abc import Iterator


class Numbers:
    """Numbers that are added once each; in rising order, as S3 lists them, they take least."""

    def __init__(self) -> None:
        self._runs: list[range] = []

    def add(self, number: int) -> None:
        if self._runs and self._runs[-1].stop == number:
            self._runs[-1] = range(self._runs[-1].start, number + 1)
        else:
            self._runs.append(range(number, number + 1))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    @property
    def first(self) -> int | None:
        return min((run.start for run in self._runs), default=None)

    def missing(self, first: int, last: int) -> Iterator[int]:
        """Those from ``first`` to ``last`` (inclusive) that were not added, in order."""
        for run in sorted(self._runs, key=lambda run: run.start):
            yield from range(first, min(run.start, last + 1))
            first = max(first, run.stop)
        yield from range(first, last + 1)
