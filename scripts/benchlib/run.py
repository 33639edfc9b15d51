"""A run: in each round every row is measured on all targets one after the other, so that they are compared
at the same time of a machine that has other things to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchlib.bare import BareS3
from benchlib.measure import Sampling, measure
from benchlib.place import Place, Scale
from benchlib.profile import Profiler
from benchlib.results import Results
from benchlib.row import Row
from benchlib.rows import ROWS
from benchlib.server import s3_server
from benchlib.targets import DirectoryTarget, PlainDirectory
from benchlib.volume import MODES, Volume, mounted

Say = Callable[[str], None]


def run(
    directory: Path,
    modes: Sequence[str],
    rows: Sequence[Row],
    scale: Scale,
    rounds: int,
    say: Say,
    profiler: Profiler | None = None,
) -> Results:
    """Measure volumes of these modes, a plain directory, and S3; ``directory`` is empty and on the disk
    that is to be used."""
    results = Results({row.name: row.unit for row in rows})
    with ExitStack() as stack:
        say("starting the S3 server")
        server = stack.enter_context(s3_server(directory / "server"))
        bare = BareS3(server.endpoint_url, scale)
        plain = PlainDirectory(directory / "plain")
        targets: list[DirectoryTarget] = [
            stack.enter_context(mounted(Volume(MODES[mode], directory / mode, server.endpoint_url)))
            for mode in modes
        ]
        for number in range(rounds):
            places = [Place(target, scale, number) for target in (*targets, plain)]
            measure_round(results, places, rows, number, say, bare, profiler)
    return results


def measure_round(
    results: Results,
    places: Sequence[Place],
    rows: Iterable[Row],
    number: int,
    say: Say,
    bare: BareS3 | None = None,
    profiler: Profiler | None = None,
) -> None:
    """One round, in places that were made for it. Its files are removed in the end."""
    for row in rows:
        say(f"round {number}: {row.title}")
        for place in places:
            if isinstance(place.target, Volume) or not row.volumes_only:
                sampling: Sampling | None = None
                if profiler is not None:
                    sampling = partial(profiler.sampling, place.target, row.name, number)
                sample = measure(place.target, row.unit, partial(row.work, place), sampling=sampling)
                results.add(row.name, place.target.name, number, sample)
        if bare is not None and (work := bare.rows.get(row.name)) is not None:
            sample = measure(bare, row.unit, partial(work, f"{row.name}-{number}"))
            results.add(row.name, bare.name, number, sample)
    for place in places:
        shutil.rmtree(place.directory)


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """In the order of a round."""
    return [row for name, row in ROWS.items() if name in names or not names]
