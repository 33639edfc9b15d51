"""``s3blobfs scrub``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from s3blobfs.cli.console import size_text
from s3blobfs.cli.params import size
from s3blobfs.cli.tools import Tool, tool_options
from s3blobfs.maintenance import scrub as maintenance
from s3blobfs.maintenance.scrub import CONCURRENCY, ScrubOptions
from s3blobfs.maintenance.target import Json
from s3blobfs.offline import IndexCopy

DAMAGE_REMAINS = 4


@click.command()
@click.option("--read", is_flag=True, help="Read every byte, instead of asking S3 for sizes and digests.")
@click.option("--heal", is_flag=True, help="Heal from the cache, from a twin, or from an older version.")
@click.option("--restart", is_flag=True, help="Begin anew, where an interrupted scrub would be gone on with.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="At most so many requests a second."
)
@click.option("--bandwidth", type=size, metavar="SIZE", help="Read at most so much a second.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=CONCURRENCY,
    show_default=True,
    metavar="N",
    help="Objects looked at at a time.",
)
@tool_options
def scrub(
    target: str,
    read: bool,
    heal: bool,
    restart: bool,
    rate: float | None,
    bandwidth: int | None,
    concurrency: int,
    as_json: bool,
    **values: Any,
) -> int:
    """Compare every content of a volume with its object in S3, and heal what is damaged.

    The copy of the index in the bucket is looked at, too: what a recovery of the newest state needs, or with
    --read all of it. --heal sends the index anew where it is damaged.

    Interrupted, it goes on where it was when it is started again. The exit code is 0 when everything is well
    or was healed, 4 when damage remains, and 1 when the comparison could not be made.

    \b
    Examples:
        s3blobfs scrub /mnt/files --rate 50
        s3blobfs scrub /mnt/files --read --heal --bandwidth 20M
    """
    if bandwidth == 0:
        raise click.BadParameter("nothing can be read with a bandwidth of 0")
    options = ScrubOptions(
        read=read,
        heal=heal,
        restart=restart,
        requests_per_s=rate,
        bytes_per_s=bandwidth,
        concurrency=concurrency,
    )
    tool = Tool("scrub", target, as_json, values)
    report = tool.run(
        asdict(options),
        lambda volume, progress: maintenance.scrub(volume, options, progress=progress),
        IndexCopy.KEPT,
    )
    tool.show(report, _lines)
    return DAMAGE_REMAINS if report["remaining"] or _is_damaged(report["index_copy"]) else 0


def _lines(report: Json) -> Iterator[str]:
    for damage in report["damages"]:
        version = f" version {damage['version']}" if damage["version"] else ""
        yield f"damaged: {damage['key']}{version} in store {damage['store']}: {damage['detail']}"
        for path in damage["paths"]:
            yield f"    {path}"
        more = damage["files"] - len(damage["paths"])
        if more:
            yield f"    and {more} more files"
    resumed = ", gone on with where the last one was interrupted" if report["resumed"] else ""
    read = f", {size_text(report['bytes_read'])} read" if report["depth"] == "read" else ""
    yield f"{report['checked']} objects compared{read}{resumed}"
    for source, count in report["healed"].items():
        yield f"{count} healed from {source}"
    yield from _copy_lines(report["index_copy"])
    if report["remaining"]:
        yield f"{report['remaining']} damaged"
    elif not _is_damaged(report["index_copy"]):
        yield "everything is well"


def _is_damaged(copy: Json) -> bool:
    return bool(copy["damage"]) and not copy["renewed"]


def _copy_lines(copy: Json) -> Iterator[str]:
    for sentence in copy["damage"]:
        yield f"damaged: the copy of the index in the bucket: {sentence}"
    for sentence in copy["gaps"]:
        yield f"some earlier times cannot be recovered to: {sentence}"
    if copy["renewed"]:
        yield "the whole index was sent to the bucket anew"
