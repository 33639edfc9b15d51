"""``scripts/bench scale``, as a command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchlib.filling import Sizes
from benchlib.grid import show
from benchlib.options import DIRECTORY, FILE
from benchlib.scale import run_scale
from benchlib.scalereport import as_grids, as_json

_LEAST = 100
"""Enough names that no round takes one that another has taken."""


@click.command()
@click.option(
    "--files", type=click.IntRange(_LEAST), default=1_000_000, show_default=True, help="In one directory."
)
@click.option(
    "--inodes", type=click.IntRange(_LEAST), default=5_000_000, show_default=True, help="In a tree."
)
@click.option(
    "--few", type=click.IntRange(_LEAST), default=1000, show_default=True,
    help="So many of each in the volume that it is compared with.",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Medians are shown.")
@click.option(
    "--directory", type=DIRECTORY, metavar="DIR",
    help="Where everything is kept meanwhile: with the sizes above some 4 GiB. In the temporary directory if "
    "not given.",
)  # fmt: skip
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the results as JSON.")
@click.option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write ratios as Markdown.")
def scale(
    files: int,
    inodes: int,
    few: int,
    rounds: int,
    directory: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """What becomes of speed and memory when there are very many names.

    They are made straight in the index; everything else goes through the mount. Looking up is cold:
    no name is asked for twice, the kernel has none of them, and SQLite has only what its cache holds.

    \b
    Examples:
        scripts/bench scale --markdown scale.md
        scripts/bench scale --files 100000 --inodes 500000 --rounds 3
    """
    say = Console(stderr=True, highlight=False, markup=False)
    with tempfile.TemporaryDirectory(dir=directory, prefix="s3blobfs-bench-") as made:
        results = run_scale(Path(made), Sizes(files, inodes), Sizes(few, few), rounds, say.print)
    show(as_grids(results), as_json(results), json_path, markdown_path)
