"""Sets of byte ranges."""

from __future__ import annotations

from collections.abc import Iterator


class Ranges:
    """Half-open ranges that neither overlap nor touch, in order. Few of them are expected."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    @property
    def end(self) -> int:
        """Behind the last one; 0 without any."""
        return self._ranges[-1][1] if self._ranges else 0

    def add(self, start: int, end: int) -> None:
        """All from ``start`` up to ``end``."""
        apart = []
        for one in self._ranges:
            if one[1] < start or one[0] > end:
                apart.append(one)
            else:
                start, end = min(start, one[0]), max(end, one[1])
        self._ranges = sorted([*apart, (start, end)])

    def remove(self, start: int, end: int) -> None:
        """Nothing from ``start`` up to ``end``."""
        left = []
        for first, last in self._ranges:
            left += [
                piece for piece in ((first, min(last, start)), (max(first, end), last)) if piece[0] < piece[1]
            ]
        self._ranges = left

    def covered(self, start: int, end: int) -> int:
        """How many bytes from ``start`` up to ``end`` are in it."""
        return sum(max(0, min(last, end) - max(first, start)) for first, last in self._ranges)
