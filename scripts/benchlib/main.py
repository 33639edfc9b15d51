"""The command line of ``scripts/bench``."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchlib.bare import BareS3
from benchlib.content import WrongBytes
from benchlib.growthcommand import growth
from benchlib.kernel import KERNEL_ROWS, SETTINGS, run_settings
from benchlib.options import DIRECTORY, FILE, NEW_DIRECTORY, names
from benchlib.options import size as size_of
from benchlib.peers.command import peers
from benchlib.place import QUICK, Scale
from benchlib.profile import Profiler
from benchlib.report import as_json, as_markdown, as_table
from benchlib.results import Results
from benchlib.rows import ROWS
from benchlib.run import chosen_rows, run
from benchlib.scalecommand import scale as scale_command
from benchlib.targets import filesystem_type
from benchlib.volume import MODES, CommandFailed
from s3blobfs.errors import S3BlobFSError

_DEFAULT_MODES = "digest,versioned,digest-disk,versioned-disk"
_ROUNDS, _QUICK_ROUNDS = 3, 1


def _modes(text: str) -> list[str]:
    return names(MODES, text)


def _rows(text: str) -> list[str]:
    return names(ROWS, text)


def _settings(text: str) -> list[str]:
    return list(SETTINGS) if text == "all" else names(SETTINGS, text)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--quick", is_flag=True, help="Tiny sizes and one round, in seconds: whether it works at all.")
@click.option(
    "--modes", type=_modes, default=_DEFAULT_MODES, show_default=True, metavar="MODE,…",
    help=f"Volumes to measure, of: {', '.join(MODES)}. Those named 'disk' have --durability disk.",
)  # fmt: skip
@click.option(
    "--rows", type=_rows, default="", metavar="ROW,…", help=f"Rows to measure, of: {', '.join(ROWS)}."
)
@click.option("--rounds", type=click.IntRange(1), help=f"{_ROUNDS} if not given; medians are shown.")
@click.option("--size", type=size_of, metavar="SIZE", help="Of the large file; 64M if not given.")
@click.option("--files", type=click.IntRange(1), metavar="N", help="Small files; 1000 if not given.")
@click.option(
    "--directory", type=DIRECTORY, metavar="DIR",
    help="Where everything is kept meanwhile; decides which disk is measured. In the temporary directory if "
    "not given.",
)  # fmt: skip
@click.option(
    "--kernel", "settings", type=_settings, metavar="SETTING,…",
    help="Instead: how settings of the kernel's side change the speed, compared with the first of them. One "
    f"or more of {', '.join(SETTINGS)}; or 'all'.",
)  # fmt: skip
@click.option(
    "--profile", "profile", type=NEW_DIRECTORY, metavar="DIR",
    help="Sample each volume with py-spy while a row is measured, which slows it; the stacks and their sums "
    "by layer and by task go here.",
)  # fmt: skip
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write the results as JSON.")
@click.option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write ratios as Markdown.")
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    modes: list[str],
    rows: list[str],
    rounds: int | None,
    size: int | None,
    files: int | None,
    directory: Path | None,
    settings: list[str] | None,
    profile: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure s3blobfs at the mount point, over an S3 server (SeaweedFS) of its own on loopback, beside the
    plain disk and bare S3 as the limits. Every byte that is read is compared.

    'nothing cached' is a new mount with an empty cache. 'local cache' is read after the kernel's pages of the
    mounted file were dropped (those of the cached file itself are not). Times of writes end when close
    returns; processor time and requests are counted until everything is in S3.

    \b
    Examples:
        scripts/bench --quick
        scripts/bench --json bench.json --markdown bench.md
        scripts/bench --modes digest --rows large-write,large-read-cold --size 1G --rounds 5
        scripts/bench --kernel all
        scripts/bench --modes digest --rows small-write,untar --profile profile
        scripts/bench growth --help
        scripts/bench peers --help
        scripts/bench scale --help
    """
    if context.invoked_subcommand is not None:
        return
    if profile is not None and settings:
        raise click.UsageError("--profile is not for --kernel, which measures several mounts of one mode")
    scale = (QUICK if quick else Scale()).with_sizes(size, files)
    rounds = rounds or (_QUICK_ROUNDS if quick else _ROUNDS)
    say = Console(stderr=True, highlight=False, markup=False)
    profiler = Profiler(profile) if profile is not None else None
    with tempfile.TemporaryDirectory(dir=directory, prefix="s3blobfs-bench-") as made:
        base = Path(made)
        (base / "plain").mkdir()
        if settings:
            results = run_settings(base, settings, chosen_rows(rows or KERNEL_ROWS), scale, rounds, say.print)
            limits = settings[:1]
        else:
            results = run(base, modes, chosen_rows(rows), scale, rounds, say.print, profiler)
            limits = [filesystem_type(base), BareS3.name]
    _report(results, limits, scale, json_path, markdown_path)
    if profiler is not None:
        profiler.write_shares()


def _report(
    results: Results, limits: list[str], scale: Scale, json_path: Path | None, markdown_path: Path | None
) -> None:
    titles = {name: row.title for name, row in ROWS.items()}
    console = Console(width=None if sys.stdout.isatty() else 160)
    for target in results.targets():
        console.print(as_table(results, target, titles, [limit for limit in limits if limit != target]))
    if json_path is not None:
        json_path.write_text(json.dumps(as_json(results, titles, scale), indent=1) + "\n")
    if markdown_path is not None:
        measured = [target for target in results.targets() if target not in limits]
        markdown_path.write_text(as_markdown(results, titles, measured, limits))


main.add_command(growth)
main.add_command(peers)
main.add_command(scale_command)


def _end(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: everything is unmounted and ended on the way out."""
    raise KeyboardInterrupt


def entry() -> None:
    signal.signal(signal.SIGTERM, _end)
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit("bench: interrupted")
    except (CommandFailed, WrongBytes, S3BlobFSError) as error:
        sys.exit(f"bench: {error}")
