"""``scripts/bench growth``: whether costs grow with the size of a file, and with the number of files.

There is a volume for each factor, with a large file of as many times the size, and as many times the small
files. In each round a row is measured on all of them right after one another.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchlib.measure import Sample, Unit, Watch
from benchlib.peers.run import rotated
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
    with ExitStack() as stack:
        say("starting the S3 server")
        endpoint_url = stack.enter_context(s3_server(directory / "server")).endpoint_url
        for mode in modes:
            results = _measured(directory, endpoint_url, mode, chosen, scale, factors, rounds, say)
            curves += [curve_of(results, mode, name, factors) for name in results.samples]
    return Growth(scale, rounds, curves)


def _measured(
    directory: Path,
    endpoint_url: str,
    mode: str,
    rows: Sequence[Row],
    scale: Scale,
    factors: Sequence[int],
    rounds: int,
    say: Say,
) -> Results:
    results = Results({row.name: row.unit for row in rows})
    with ExitStack() as stack:
        volumes = {
            factor: stack.enter_context(mounted(_GrownVolume(mode, factor, directory, endpoint_url)))
            for factor in factors
        }
        for number in range(rounds):
            places = [
                Place(volumes[factor], _grown(scale, factor), number)
                for factor in rotated(factors, number, rounds)
            ]
            measure_round(results, places, rows, number, lambda text: say(f"{mode}, {text}"))
    return results


class _GrownVolume(Volume):
    """A volume with a bucket of its own."""

    def __init__(self, mode: str, factor: int, directory: Path, endpoint_url: str) -> None:
        place = f"{mode}-{factor}"
        super().__init__(MODES[mode], directory / place, endpoint_url, bucket=f"growth-{place}")
        self.name = str(factor)


def _grown(scale: Scale, factor: int) -> Scale:
    return replace(scale, large_bytes=scale.large_bytes * factor, small_files=scale.small_files * factor)


def alike(row: Row, per: Per) -> Row:
    """The row as it is, or for one that does as much everywhere: with all files there before, and an amount
    that tells of operations."""
    if per is not Per.OPERATION:
        return row

    def work(place: Place, watch: Watch) -> int:
        assert place.large_file.exists() and place.small_files
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
