"""``scripts/bench scale``: what becomes of speed and memory when there are very many names.

Three volumes: one without a file, one with few, one with very many. What is compared is done on two of them
in turns.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchlib.content import WrongBytes, small_contents, write_file
from benchlib.filling import DIRECTORY, Sizes, fill
from benchlib.indexsize import IndexSize, index_size, size_with_contents
from benchlib.naming import Compared, Place, compare_on_disk, compare_operations
from benchlib.scalevolume import ScaledVolume
from benchlib.server import s3_server
from s3blobfs.config import MIB

Say = Callable[[str], None]

MEMORY_LIMIT_BYTES = 200 * 10**6
MOUNT_LIMIT = 1.1
"""Mounting and unmounting take as long as without any file: their spread is larger than a tenth."""
_CONTENTS = 16
"""Objects that all files refer to in turn."""
_DISK_ROUNDS = 5
_DOTS = 2
_SAY_EVERY = 1_000_000


@dataclass(frozen=True, slots=True)
class Walk:
    """A command that goes over all names, and the most memory that the mount had meanwhile."""

    title: str
    entries: int
    seconds: float
    processor_s: float
    """Of the mount."""
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Times:
    """How long a command takes on the volume with a few files, or none, and on that with very many."""

    title: str
    limit: float | None
    few: Sequence[float]
    many: Sequence[float]
    peak_memory_bytes: int | None = None
    """With very many; of the process that does it."""

    @property
    def ratio(self) -> float:
        return statistics.median(many / few for few, many in zip(self.few, self.many, strict=True))

    @property
    def spread(self) -> float:
        ratios = [many / few for few, many in zip(self.few, self.many, strict=True)]
        return (max(ratios) - min(ratios)) / self.ratio


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole index, sent to the bucket by the first mount that follows."""

    seconds: float
    processor_s: float
    size_bytes: int
    peak_memory_bytes: int


@dataclass(slots=True)
class ScaleResults:
    """Of one run."""

    sizes: Sizes
    few: Sizes
    operations: list[Compared] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    snapshot: Snapshot | None = None
    index: IndexSize | None = None
    contents: IndexSize | None = None
    """Of an index in which each file has a content of its own."""


def run_scale(directory: Path, sizes: Sizes, few: Sizes, rounds: int, say: Say) -> ScaleResults:
    """Make the volumes in ``directory``, which is empty, and measure."""
    results = ScaleResults(sizes, few)
    with ExitStack() as stack:
        say("starting the S3 server")
        server = stack.enter_context(s3_server(directory / "server"))
        empty, small, large = (
            ScaledVolume(name, directory / name, server.endpoint_url) for name in ("empty", "few", "many")
        )
        for volume, its in ((empty, None), (small, few), (large, sizes)):
            stack.callback(volume.abandon)
            _make(volume, its, say)
        results.index = index_size(large.index, sizes.files + sizes.inodes)
        results.contents = size_with_contents(directory / "contents.db")
        say("the first mount, and a snapshot of the index")
        _first_mount(empty)
        results.snapshot = _first_mount(large)
        mount, umount = _mounting(empty, large, rounds, say)
        _operations(results, small, large, rounds, say)
        results.walks, after_s = _walks(large, sizes, say)
        usual_s = statistics.median(umount.few)
        after = Times("unmount, after the kernel has seen all names", None, [usual_s], [after_s])
        results.times = [mount, umount, after, *_commands(small, large, directory, say)]
    return results


def _make(volume: ScaledVolume, sizes: Sizes | None, say: Say) -> None:
    """An unmounted volume; ``None``: without a file."""
    say(f"making the volume {volume.name!r}")
    volume.make()
    if sizes is None:
        return
    volume.mount()
    for number, content in enumerate(small_contents("shared", _CONTENTS)):
        write_file(volume.directory / f"content-{number:02}", content)
    volume.umount()
    said = 0

    def progress(made: int) -> None:
        nonlocal said
        if made >= said + _SAY_EVERY:
            said = made
            say(f"{made:,} inodes")

    fill(volume.index, sizes, progress)


def _first_mount(volume: ScaledVolume) -> Snapshot:
    """The index has become another one behind the back of its copy in the bucket, which is made anew."""
    begun = time.perf_counter()
    volume.mount()
    volume.settle()
    seconds = time.perf_counter() - begun
    snapshot = Snapshot(seconds, volume.usage().cpu_s, volume.snapshot_bytes(), volume.peak_memory_bytes())
    volume.umount()
    return snapshot


def _mounting(empty: ScaledVolume, large: ScaledVolume, rounds: int, say: Say) -> tuple[Times, Times]:
    mounts: dict[str, list[float]] = {"empty": [], "many": []}
    umounts: dict[str, list[float]] = {"empty": [], "many": []}
    peak = 0
    for number in range(rounds):
        say(f"mounting and unmounting, round {number}")
        for volume in (empty, large) if number % 2 else (large, empty):
            mounts[volume.name].append(_seconds(volume.mount))
            if volume is large:
                peak = max(peak, volume.peak_memory_bytes())
            umounts[volume.name].append(_seconds(volume.umount))
    return (
        Times("mount", MOUNT_LIMIT, mounts["empty"], mounts["many"], peak),
        Times("unmount", MOUNT_LIMIT, umounts["empty"], umounts["many"]),
    )


def _operations(
    results: ScaleResults, small: ScaledVolume, large: ScaledVolume, rounds: int, say: Say
) -> None:
    few, many = Place(small, results.few, "few"), Place(large, results.sizes, "many")
    for title, compare, count in (
        ("operations", compare_operations, rounds),
        ("lookups from the disk", compare_on_disk, _DISK_ROUNDS),
    ):
        say(title)
        small.mount()
        large.mount()
        small.settle()
        rows = compare(few, many, min(results.few.files, results.few.inodes), count)
        for row in rows:
            say(f"{row.title}: {row.ratio:.2f}, spread {row.spread:.0%}")
        results.operations += rows
        small.umount()
        large.umount()


def _walks(large: ScaledVolume, sizes: Sizes, say: Say) -> tuple[list[Walk], float]:
    """Also the seconds that the unmount takes when the kernel has seen all names."""
    large.mount()
    everything = sizes.files + sizes.inodes + 1 + _CONTENTS + 1
    walks = []
    for title, command, lines in (
        ("ls -f of the one directory", ["ls", "-f", DIRECTORY], sizes.files + _DOTS),
        ("find over everything", ["find", "."], everything),
        (
            "find -type f -newer over everything",
            ["find", ".", "-type", "f", "-newer", "content-00"],
            sizes.files + sizes.inodes - sizes.directories + _CONTENTS - 1,
        ),
    ):
        say(title)
        walks.append(walk := _walk(large, title, command, lines))
        say(f"{walk.peak_memory_bytes / 1e6:.0f} MB")
    return walks, _seconds(large.umount)


def _walk(volume: ScaledVolume, title: str, command: Sequence[str], lines: int) -> Walk:
    """Raises :class:`WrongBytes` when it does not say as many lines as there are names."""
    volume.forget_peak_memory()
    processor_s = volume.usage().cpu_s
    begun = time.perf_counter()
    said = 0
    with subprocess.Popen(command, cwd=volume.directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(MIB):
            said += piece.count(b"\n")
    seconds = time.perf_counter() - begun
    if process.returncode or said != lines:
        raise WrongBytes(f"{title}: exit code {process.returncode}, {said} lines and not {lines}")
    return Walk(title, said, seconds, volume.usage().cpu_s - processor_s, volume.peak_memory_bytes())


def _commands(small: ScaledVolume, large: ScaledVolume, directory: Path, say: Say) -> list[Times]:
    found = []
    for command in ("fsck", "recover"):
        say(command)
        index = directory / "recovered.db"
        of_few, _ = small.measured(command, small.index if command == "fsck" else directory / "few.recovered")
        of_many, peak = large.measured(command, large.index if command == "fsck" else index)
        found.append(Times(command, None, [of_few], [of_many], peak))
    return found


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
