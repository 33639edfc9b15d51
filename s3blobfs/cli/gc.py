"""``s3blobfs gc``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from s3blobfs.cli.console import size_text
from s3blobfs.cli.main import EXIT_FAILED
from s3blobfs.cli.params import duration
from s3blobfs.cli.tools import Tool, tool_options
from s3blobfs.maintenance import gc as maintenance
from s3blobfs.maintenance.gc import GcOptions
from s3blobfs.maintenance.target import Json
from s3blobfs.offline import IndexCopy


@click.command()
@click.option("--delete", is_flag=True, help="Delete what is found; otherwise it is only listed.")
@click.option(
    "--grace", type=duration, default="1d", show_default=True, metavar="AGE",
    help="Leave alone what is younger; 1h at least while the volume is mounted.",
)  # fmt: skip
@click.option(
    "--keep-versions", type=click.IntRange(0), metavar="N",
    help="Let go of earlier versions of a file beyond the N newest.",
)  # fmt: skip
@click.option(
    "--older-than", type=duration, metavar="AGE",
    help="Let go of versions that gave way to a newer one longer ago than this; with --keep-versions, only "
    "of those that both let go.",
)  # fmt: skip
@tool_options
def gc(
    target: str,
    delete: bool,
    grace: float,
    keep_versions: int | None,
    older_than: float | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Look for objects, versions and uploads in the bucket that nobody needs, and delete them.

    A dry run unless --delete is given. What this program did not make, or cannot explain, is counted and
    never touched. Earlier versions of files are kept unless --keep-versions or --older-than lets them go.

    \b
    Examples:
        s3blobfs gc /mnt/files
        s3blobfs gc /mnt/files --delete --keep-versions 5 --older-than 30d
    """
    options = GcOptions(delete=delete, grace_s=grace, keep_versions=keep_versions, older_than_s=older_than)
    tool = Tool("gc", target, as_json, values)
    report = tool.run(
        asdict(options),
        lambda volume, progress: maintenance.gc(volume, options, progress=progress),
        IndexCopy.KEPT if delete else IndexCopy.COMPARED,
    )
    tool.show(report, _lines)
    return EXIT_FAILED if report["failed"] else 0


def _lines(report: Json) -> Iterator[str]:
    for kind, tally in report["found"].items():
        if not tally["count"]:
            continue
        deleted = f", {report['deleted'][kind]['count']} deleted" if report["delete"] else ""
        yield f"{kind}: {tally['count']}, {size_text(tally['bytes'])}{deleted}"
        for example in report["examples"].get(kind, []):
            yield f"    {example}"
        more = tally["count"] - len(report["examples"].get(kind, []))
        if more and report["examples"].get(kind):
            yield f"    and {more} more"
    kept = [
        f"{tally['count']} {why} ({size_text(tally['bytes'])})"
        for why, tally in report["kept"].items()
        if tally["count"]
    ]
    yield f"kept: {', '.join(kept) or 'nothing'}"
    if report["failed"]:
        yield f"{report['failed']} could not be deleted"
    if not report["delete"] and any(tally["count"] for tally in report["found"].values()):
        yield "nothing was deleted; do so with --delete"
