"""``scripts/bench growth``: whether costs grow with the size of a file, and with the number of files.

In each round there is a new volume for each factor, with a large file of as many times the size, and as many
times the small files. A row is measured on all of them right after one another.
"""

from __future__ import annotations

import enum
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchlib.measure import Sample, Unit, Watch
from benchlib.peers.bucket import Bucket
from benchlib.peers.run import described, rotated
from benchlib.peers.system import Server
from benchlib.place import Place, Scale
from benchlib.results import Ratio, Results
from benchlib.row import Row
from benchlib.rows import ROWS
from benchlib.run import Say, measure_round
from benchlib.server import s3_server
from benchlib.volume import MODES, Volume, mounted

LIMIT = 1.5
"""At the largest factor one unit costs at most so many times what it costs at factor 1, or the row grows."""


class Per(enum.Enum):
    """What the cost of a row is divided by."""

    MIB = "MiB"
    """Its work is the large file."""
    FILE = "file"
    """Its work is the small files."""
    OPERATION = "operation"
    """It does as much wherever it is done: with the large file, or beside it and the small files."""


GROWING: Mapping[str, Per] = {
    **dict.fromkeys(("large-write", "large-write-again", "large-write-pieces"), Per.MIB),
    **dict.fromkeys(("large-read-cold", "large-read-local", "large-read-kernel"), Per.MIB),
    **dict.fromkeys(("small-write", "small-write-threads"), Per.FILE),
    **dict.fromkeys(("small-read-cold", "small-read-cold-threads"), Per.FILE),
    **dict.fromkeys(("small-read-local", "small-read-local-threads", "small-read-kernel"), Per.FILE),
    **dict.fromkeys(("list-cold", "list-hot", "untar", "copy-small-direct"), Per.FILE),
    **dict.fromkeys(("random-read-local", "middle-read-cold", "append", "append-large"), Per.OPERATION),
    **dict.fromkeys(("copy", "copy-direct"), Per.OPERATION),
    **dict.fromkeys(("mkdir", "rename", "rmdir", "directories", "rename-tree"), Per.OPERATION),
    "unlink": Per.FILE,
}
"""All rows, in the order of a round: those that do as much everywhere come when all files are there."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a row costs at one factor: medians of the rounds. Ratios are to factor 1."""

    factor: int
    unit_s: float
    time: Ratio
    """Of one unit."""
    unit_processor_s: float
    """Of the mount."""
    processor: Ratio | None
    """Of one unit; ``None`` where factor 1 took none."""
    peak_memory_bytes: int
    unit_requests: Mapping[str, float]
    """To S3 for one unit, by kind."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A row of a mode at all factors."""

    mode: str
    row: str
    title: str
    per: Per
    steps: Sequence[Step]


def grows(ratio: Ratio | None) -> bool:
    return ratio is not None and ratio.median > LIMIT


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one run."""

    scale: Scale
    """At factor 1."""
    rounds: int
    curves: Sequence[Curve]


def run_growth(
    directory: Path,
    modes: Sequence[str],
    rows: Sequence[str],
    scale: Scale,
    factors: Sequence[int],
    rounds: int,
    say: Say,
) -> Growth:
    """Measure volumes of these modes, one mode after the other. ``directory`` is empty; ``factors`` ascend
    from 1."""
    curves: list[Curve] = []
    chosen = [alike(ROWS[name], per) for name, per in GROWING.items() if name in rows]
    with s3_server(directory / "server") as seaweed:
        server = described(seaweed, seaweed.endpoint_url)
        for mode in modes:
            results = Results({row.name: row.unit for row in chosen})
            for number in range(rounds):
                order = rotated(factors, number, rounds)
                with _places(directory / "volumes", server, mode, scale, order, number) as places:
                    measure_round(results, places, chosen, number, partial(_say_of, say, mode))
            curves += [curve_of(results, mode, name, factors) for name in results.samples]
    return Growth(scale, rounds, curves)


def _say_of(say: Say, mode: str, text: str) -> None:
    say(f"{mode}, {text}")


@contextmanager
def _places(
    directory: Path, server: Server, mode: str, scale: Scale, factors: Sequence[int], number: int
) -> Iterator[list[Place]]:
    """New volumes, one for each factor. Behind the context neither the disk nor the server has anything of
    them: what a round leaves there for later would fill the disk."""
    with ExitStack() as stack:
        places = []
        for factor in factors:
            bucket = f"growth-{mode}-{factor}-{number}"
            volume = Volume(MODES[mode], directory / str(factor), server.endpoint_url, bucket)
            volume.name = str(factor)
            stack.callback(Bucket(bucket, server).remove)
            places.append(Place(stack.enter_context(mounted(volume)), _grown(scale, factor), number))
        yield places
    shutil.rmtree(directory)


def _grown(scale: Scale, factor: int) -> Scale:
    return replace(scale, large_bytes=scale.large_bytes * factor, small_files=scale.small_files * factor)


def alike(row: Row, per: Per) -> Row:
    """The row as it is, or for one that does as much everywhere: with all files there before, and an amount
    that tells of operations."""
    if per is not Per.OPERATION:
        return row

    def work(place: Place, watch: Watch) -> int:
        _ = place.large_file, place.small_files  # written by who asks for them first
        amount = row.work(place, watch)
        return 1 if row.unit is Unit.BYTES else amount

    return replace(row, unit=Unit.OPERATIONS, work=work)


# -- what came of it -----------------------------------------------------------------------------------


def curve_of(results: Results, mode: str, row: str, factors: Sequence[int]) -> Curve:
    """Of results whose targets are named by their factors."""
    steps = [_step(results, row, factor, factors[0]) for factor in factors]
    return Curve(mode, row, ROWS[row].title, GROWING[row], steps)


def _step(results: Results, row: str, factor: int, least: int) -> Step:
    samples = list(results.samples[row][str(factor)].values())
    result = results.of(row, str(factor))
    time = results.ratio(row, str(factor), str(least), _unit_s)
    assert result is not None and result.peak_memory_bytes is not None and time is not None
    return Step(
        factor=factor,
        unit_s=_median(samples, _unit_s),
        time=time,
        unit_processor_s=_median(samples, _unit_cpu_s),
        processor=results.ratio(row, str(factor), str(least), _unit_cpu_s),
        peak_memory_bytes=result.peak_memory_bytes,
        unit_requests={
            kind: count / _median(samples, _amount) for kind, count in result.requests.items() if count
        },
    )


def _median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return statistics.median(map(figure, samples))


def _amount(sample: Sample) -> float:
    return sample.amount


def _unit_s(sample: Sample) -> float:
    return sample.unit_s


def _unit_cpu_s(sample: Sample) -> float:
    return sample.unit_cpu_s
