"""A run: rounds of rows, on every target in turn, so that a busy minute of the machine hits all alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchlib.bare import BareS3
from benchlib.measure import Watch, measure
from benchlib.place import Place, Scale
from benchlib.results import Results
from benchlib.rows import ROWS, Row
from benchlib.server import s3_server
from benchlib.targets import DirectoryTarget, PlainDirectory
from benchlib.volume import MODES, Volume, mounted

Say = Callable[[str], None]


def run(
    directory: Path, modes: Sequence[str], rows: Sequence[Row], scale: Scale, rounds: int, say: Say
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
            for target in (*targets, plain):
                measure_round(results, target, rows, Place(target, scale, number), say)
            for row in rows:
                if (work := bare.rows.get(row.name)) is not None:
                    say(f"S3, round {number}: {row.title}")
                    run_one = partial(work, f"{row.name}-{number}")
                    results.add(row.name, bare.name, measure(bare, row.unit, run_one))
    return results


def measure_round(
    results: Results, target: DirectoryTarget, rows: Iterable[Row], place: Place, say: Say
) -> None:
    """One round on one target. Its files are removed in the end."""
    for row in rows:
        if row.volumes_only and not isinstance(target, Volume):
            continue
        say(f"{target.name}, {place.seed}: {row.title}")

        def work(watch: Watch, row: Row = row) -> int:
            return row.work(place, watch)

        results.add(row.name, target.name, measure(target, row.unit, work))
    shutil.rmtree(place.directory)


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """In the order of a round."""
    return [row for name, row in ROWS.items() if name in names or not names]
