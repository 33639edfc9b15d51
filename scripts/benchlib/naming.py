"""What one operation on a name costs, in a volume with few names and in one with very many.

Both do the same, one operation on the one and one on the other in turns, so that they are compared at the
same time of a machine that has other things to do.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchlib.filling import DIRECTORY, Sizes, file_name, node_path, parent_of
from benchlib.scalevolume import ScaledVolume

LIMIT = 1.5
"""An operation may take so many times as long with many names as with few."""
_SHARE_USED = 0.25
"""Of the names of the smaller volume, by each kind of operation in all rounds together."""

Named = tuple[int, str]
"""A descriptor of a directory, and a name in it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation in one round, in seconds."""

    elapsed: float
    processor: float
    """Of the mount's thread that serves requests."""


@dataclass(slots=True)
class Compared:
    """One operation: its costs round by round with few names, and with many."""

    title: str
    limit: float | None
    """The largest ratio that is accepted; ``None`` where none is promised."""
    few: list[Cost] = field(default_factory=list)
    many: list[Cost] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times as long it takes with many names: the median of the rounds."""
        return statistics.median(self._ratios)

    @property
    def spread(self) -> float:
        """How far the rounds' ratios are apart, relative to the median."""
        return (max(self._ratios) - min(self._ratios)) / self.ratio

    @property
    def processor_ratio(self) -> float | None:
        """The same of the processor time, over all rounds; ``None`` where it was too little to be seen."""
        of_few = sum(cost.processor for cost in self.few)
        return sum(cost.processor for cost in self.many) / of_few if of_few else None

    @property
    def _ratios(self) -> list[float]:
        return [many.elapsed / few.elapsed for few, many in zip(self.few, self.many, strict=True)]


class Place:
    """The directory and the tree of one mounted volume, with names for measuring."""

    def __init__(self, volume: ScaledVolume, sizes: Sizes, seed: str) -> None:
        self.volume = volume
        self._sizes = sizes
        source = random.Random(seed)
        self._files = iter(source.sample(range(sizes.files), min(sizes.files, _MOST_USED)))
        leaves = range(sizes.directories, sizes.inodes)
        self._leaves = iter(source.sample(leaves, min(len(leaves), _MOST_USED)))
        self._source = source
        self._fresh = max(sizes.files, sizes.inodes)

    def _directory(self, tree: bool) -> Path:
        """In the tree any that has files."""
        if not tree:
            return self.volume.directory / DIRECTORY
        leaf = self._source.randrange(self._sizes.directories, self._sizes.inodes)
        return self.volume.directory / node_path(parent_of(leaf))

    @contextlib.contextmanager
    def existing(self, count: int, *, tree: bool) -> Iterator[list[Named]]:
        """Names of files that nobody has asked for yet."""
        with contextlib.ExitStack() as stack:
            yield [self._existing(stack, tree) for _ in range(count)]

    def _existing(self, stack: contextlib.ExitStack, tree: bool) -> Named:
        if not tree:
            return self._opened(stack, self._directory(tree=False)), file_name(next(self._files))
        number = next(self._leaves)
        return self._opened(stack, self.volume.directory / node_path(parent_of(number))), file_name(number)

    @contextlib.contextmanager
    def fresh(self, count: int, *, tree: bool) -> Iterator[list[Named]]:
        """Names that are not taken."""
        with contextlib.ExitStack() as stack:
            numbers = range(self._fresh, self._fresh + count)
            self._fresh += count
            yield [(self._opened(stack, self._directory(tree)), file_name(number)) for number in numbers]

    @contextlib.contextmanager
    def directories(self, count: int, *, tree: bool) -> Iterator[list[Named]]:
        """Paths of directories, which the kernel has looked up."""
        paths = [self._directory(tree) for _ in range(count)]
        for path in paths:
            path.stat()
        yield [(-1, str(path)) for path in paths]

    @contextlib.contextmanager
    def itself(self, count: int) -> Iterator[list[Named]]:
        """The mountpoint's path."""
        yield [(-1, str(self.volume.directory))] * count

    def _opened(self, stack: contextlib.ExitStack, directory: Path) -> int:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)  # asks the mount for the way there alone
        stack.callback(os.close, descriptor)
        return descriptor


_MOST_USED = 10_000

Prepare = Callable[[Place, int], contextlib.AbstractContextManager[list[Named]]]
"""What an operation is done to, so many times; a descriptor is of no meaning where the name is a path."""
Operate = Callable[[int, str], object]


def compare_operations(few: Place, many: Place, names: int, rounds: int) -> list[Compared]:
    """``names``: how many files the smaller volume's directory, and its tree, have at least."""
    count = _count(names, rounds)
    rows = []
    # Listing comes last: a page that is listed tells the kernel of its names.
    for title, prepare, operate in (
        ("look up", Place.existing, _look_up),
        ("remove", Place.existing, _remove),
        ("create", Place.fresh, _create),
        ("list, first page", Place.directories, _list_first_page),
    ):
        for tree in (False, True):
            where = "in the tree" if tree else "in the one directory"
            row = Compared(f"{title}, {where}", limit=LIMIT)
            _compare(row, _in_memory(partial(prepare, tree=tree)), operate, (few, many), count, rounds)
            rows.append(row)
    statfs = Compared("statfs", limit=LIMIT)
    statvfs = _in_memory(Place.itself)
    _compare(statfs, statvfs, lambda _, path: os.statvfs(path), (few, many), count, rounds)
    return [*rows, statfs]


def compare_on_disk(few: Place, many: Place, names: int, rounds: int) -> list[Compared]:
    """Lookups while the operating system has nothing of the index in memory."""
    rows = []
    for tree in (False, True):
        where = "in the tree" if tree else "in the one directory"

        @contextlib.contextmanager
        def forgotten(place: Place, count: int, tree: bool = tree) -> Iterator[list[Named]]:
            with place.existing(count, tree=tree) as named:
                place.volume.forget_index_pages()
                yield named

        row = Compared(f"look up, {where}, the index on disk alone", limit=None)
        _compare(row, forgotten, _look_up, (few, many), _count(names, rounds), rounds)
        rows.append(row)
    return rows


def _in_memory(prepare: Prepare) -> Prepare:
    """The same, while the operating system has the whole index in memory."""

    @contextlib.contextmanager
    def prepared(place: Place, count: int) -> Iterator[list[Named]]:
        with place.volume.index_in_memory(), prepare(place, count) as named:
            yield named

    return prepared


def _count(names: int, rounds: int) -> int:
    return max(1, int(names * _SHARE_USED / (rounds + 1)))


def _compare(
    row: Compared, prepare: Prepare, operate: Operate, places: tuple[Place, Place], count: int, rounds: int
) -> None:
    """The first round is a rehearsal: what a mount does for the first time takes longer, whatever it is."""
    for number in range(rounds + 1):
        with prepare(places[0], count) as of_few, prepare(places[1], count) as of_many:
            few, many = _one_round(operate, places, (of_few, of_many))
        if number:
            row.few.append(few)
            row.many.append(many)


def _one_round(
    operate: Operate, places: tuple[Place, Place], named: tuple[Sequence[Named], Sequence[Named]]
) -> list[Cost]:
    """Each operation on one volume, then on the other. What counts is the median: on a machine that has
    other things to do the mean says how long it had them to do."""
    processor = [place.volume.serving_s() for place in places]
    elapsed: tuple[list[float], list[float]] = ([], [])
    for at, pair in enumerate(zip(*named, strict=True)):
        for which in (0, 1) if at % 2 else (1, 0):  # the one that goes first is another one each time
            directory, name = pair[which]
            begun = time.perf_counter()
            operate(directory, name)
            elapsed[which].append(time.perf_counter() - begun)
    return [
        Cost(statistics.median(times), (place.volume.serving_s() - before) / len(times))
        for place, times, before in zip(places, elapsed, processor, strict=True)
    ]


# -- operations ----------------------------------------------------------------------------------------


def _look_up(directory: int, name: str) -> None:
    os.stat(name, dir_fd=directory, follow_symlinks=False)


def _remove(directory: int, name: str) -> None:
    os.unlink(name, dir_fd=directory)


def _create(directory: int, name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=directory))


def _list_first_page(_: int, path: str) -> None:
    with os.scandir(path) as entries:
        next(entries)
