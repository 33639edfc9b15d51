"""``scripts/bench peers``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchlib.options import DIRECTORY, FILE, names
from benchlib.options import size as size_of
from benchlib.peers.catalog import BEHIND, STORED
from benchlib.peers.report import OURS, as_markdown
from benchlib.peers.run import run_peers
from benchlib.peers.state import State
from benchlib.peers.tools import TOOLS
from benchlib.peers.turn import PEER_ROWS
from benchlib.place import QUICK, Scale
from benchlib.rows import ROWS
from s3blobfs.config import MIB

_SCALE = Scale(large_bytes=128 * MIB, small_files=500, appends=10)
_SYSTEMS = tuple({**STORED, **BEHIND})
_ROUNDS = 3


def _systems(text: str) -> list[str]:
    return names(_SYSTEMS, text)


def _rows(text: str) -> list[str]:
    return names(PEER_ROWS, text)


_INSTALL = "\n".join(f"        {tool.install:<30} {tool.name}" for tool in TOOLS)


@click.command(
    help=f"""Measure s3blobfs beside other filesystems over the same S3 server (SeaweedFS on loopback), one
    after the other; each round begins with another. Every byte that is read is compared.

    Rows that write end when the data is in S3: by each system's own statement (s3blobfs, JuiceFS, s3fs and
    weed mount: close returns; with durability disk: sync; rclone: its queue is empty), confirmed by a look
    into the bucket past the system. A second table has those that upload behind, until close returns.

    With --latency-ms all requests of S3's clients go through a proxy that holds each up for so long, and
    counts it. weed mount is left out then: it does not speak S3.

    \b
    Systems that are not installed are left out. They come from
{_INSTALL}

    \b
    Examples:
        scripts/bench peers --quick
        scripts/bench peers --rounds 3 --json peers.json --markdown peers.md
        scripts/bench peers --latency-ms 20 --json far.json --markdown far.md
        scripts/bench peers --systems s3blobfs-digest,rclone,disk --rows large-write,untar
    """
)
@click.option("--quick", is_flag=True, help="Tiny sizes and one round: whether it works at all.")
@click.option(
    "--systems", type=_systems, default=",".join(_SYSTEMS), metavar="SYSTEM,…",
    help=f"Of: {', '.join(_SYSTEMS)}; all if not given.",
)  # fmt: skip
@click.option(
    "--rows", type=_rows, default="", metavar="ROW,…", help=f"Rows to measure, of: {', '.join(PEER_ROWS)}."
)
@click.option("--rounds", type=click.IntRange(1), help=f"{_ROUNDS} if not given.")
@click.option("--size", type=size_of, metavar="SIZE", help="Of the large file; 128M if not given.")
@click.option("--files", type=click.IntRange(1), metavar="N", help="Small files; 500 if not given.")
@click.option(
    "--latency-ms", type=click.FloatRange(0), metavar="MS",
    help="Added to each request by a proxy, which also counts requests (as it does with 0).",
)  # fmt: skip
@click.option(
    "--directory", type=DIRECTORY, metavar="DIR",
    help="Where everything is kept meanwhile; decides which disk is measured.",
)  # fmt: skip
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the results after each turn.")
@click.option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write the tables.")
@click.option("--resume", is_flag=True, help="Go on with the results in the file of --json.")
def peers(
    quick: bool,
    systems: list[str],
    rows: list[str],
    rounds: int | None,
    size: int | None,
    files: int | None,
    latency_ms: float | None,
    directory: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
    resume: bool,
) -> None:
    scale = (QUICK if quick else _SCALE).with_sizes(size, files)
    if resume and json_path is None:
        raise click.UsageError("--resume goes on with the file of --json, which is not given")
    if resume and json_path is not None and json_path.exists():
        state = State.load(json_path, scale, latency_ms)
    else:
        state = State(scale, latency_ms)
    console = Console(stderr=True, highlight=False, markup=False)
    _say_what_is_left_out(systems, latency_ms, console)

    def save() -> None:
        if json_path is not None:
            state.save(json_path)
        if markdown_path is not None:
            markdown_path.write_text(as_markdown(state))

    with tempfile.TemporaryDirectory(dir=directory, prefix="s3blobfs-peers-") as made:
        chosen = [ROWS[name] for name in PEER_ROWS if name in rows or not rows]
        run_peers(
            Path(made), systems, chosen, rounds or (1 if quick else _ROUNDS), state, console.print, save
        )
    save()  # there may have been nothing left to measure
    click.echo(as_markdown(state))
    if any(failure.turn.system in OURS for failure in state.failures):
        sys.exit("bench: s3blobfs failed")


def _say_what_is_left_out(systems: list[str], latency_ms: float | None, console: Console) -> None:
    for name, entry in {**STORED, **BEHIND}.items():
        if name in systems:
            for tool in entry.missing():
                console.print(f"left out: {name}: {tool.name} is not installed ({tool.install})")
            if latency_ms is not None and not entry.speaks_s3:
                console.print(f"left out: {name}: it does not speak S3, so the proxy cannot hold it up")
