"""``scripts/bench growth``, as a command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchlib.grid import show
from benchlib.growth import GROWING, LIMIT, run_growth
from benchlib.growthreport import as_grids, as_json
from benchlib.options import DIRECTORY, FILE, names
from benchlib.options import size as size_of
from benchlib.place import QUICK, Scale
from benchlib.volume import MODES

_SCALE = Scale(appends=5)
"""Each append to the large file leaves an object of its size in the server until the round is over."""
_FACTORS = "1,3,10"
_QUICK_FACTORS = "1,3"
_ROUNDS, _QUICK_ROUNDS = 3, 1


def _modes(text: str) -> list[str]:
    if not (found := names(MODES, text)):
        raise click.BadParameter("names no mode")
    return found


def _rows(text: str) -> list[str]:
    return names(GROWING, text)


def _factors(text: str) -> list[int]:
    try:
        found = sorted({int(factor) for factor in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"not whole numbers: {text!r}") from error
    if len(found) < 2 or found[0] != 1:
        raise click.BadParameter(f"needed are 1 and at least one larger number: {text!r}")
    return found


@click.command(
    help=f"""Measure whether the costs of s3blobfs grow with the size of a file and with the number of files,
    over an S3 server (SeaweedFS) of its own on loopback. Every byte that is read is compared.

    For each factor there is a volume with a large file of that many times --size and that many times --files
    small files. Compared is the cost of one MiB where the work is the large file, of one file where it is the
    small files, and of one operation where it is the same wherever it is done, with all files there. A row
    whose cost for one unit at the largest factor is more than {LIMIT} times that at factor 1 is marked.

    Processor time and requests are of the mount, until everything is in S3. Factors are measured right after
    one another, row by row; each round begins with another, in new volumes. Modes are measured one after the
    other. The contents of the large files are kept in memory, twice: with the sizes above some 4 GiB.

    \b
    Examples:
        scripts/bench growth --quick
        scripts/bench growth --json growth.json --markdown growth.md
        scripts/bench growth --modes digest --rows append-large,list-cold --factors 1,2,5,10 --rounds 5
    """
)
@click.option("--quick", is_flag=True, help="Tiny sizes and one round, in seconds: whether it works at all.")
@click.option(
    "--modes", type=_modes, default="digest,versioned", show_default=True, metavar="MODE,…",
    help=f"Volumes to measure, of: {', '.join(MODES)}.",
)  # fmt: skip
@click.option(
    "--rows", type=_rows, default=",".join(GROWING), metavar="ROW,…",
    help=f"Of: {', '.join(GROWING)}; all if not given.",
)  # fmt: skip
@click.option(
    "--factors", type=_factors, metavar="N,…",
    help=f"Whole numbers, 1 among them; {_FACTORS} if not given ({_QUICK_FACTORS} with --quick).",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), help=f"{_ROUNDS} if not given; medians are shown.")
@click.option("--size", type=size_of, metavar="SIZE", help="Of the large file at factor 1; 64M if not given.")
@click.option(
    "--files", type=click.IntRange(1), metavar="N", help="Small files at factor 1; 1000 if not given."
)
@click.option(
    "--directory", type=DIRECTORY, metavar="DIR",
    help="Where everything is kept meanwhile: with the sizes above some 15 GiB, a round's at a time; decides "
    "which disk is measured. In the temporary directory if not given.",
)  # fmt: skip
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the results as JSON.")
@click.option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write the tables as Markdown.")
def growth(
    quick: bool,
    modes: list[str],
    rows: list[str],
    factors: list[int] | None,
    rounds: int | None,
    size: int | None,
    files: int | None,
    directory: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    scale = (QUICK if quick else _SCALE).with_sizes(size, files)
    factors = factors or _factors(_QUICK_FACTORS if quick else _FACTORS)
    rounds = rounds or (_QUICK_ROUNDS if quick else _ROUNDS)
    say = Console(stderr=True, highlight=False, markup=False)
    with tempfile.TemporaryDirectory(dir=directory, prefix="s3blobfs-bench-") as made:
        results = run_growth(Path(made), modes, rows, scale, factors, rounds, say.print)
    show(as_grids(results), as_json(results), json_path, markdown_path)
