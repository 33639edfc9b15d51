"""``s3blobfs recover``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import trio

from s3blobfs.cli.console import console, error_console, printable, recovering_progress, size_text
from s3blobfs.cli.params import PATH, moment, s3_options, s3_uri, take_s3_options
from s3blobfs.recovering import RecoveredVolume, RecoveryOptions, recover_volume
from s3blobfs.replica.fromobjects import Rebuilt
from s3blobfs.replica.recovery import Recovered

LISTED = 20
"""Of files of a kind, in the output for people."""
_NS = 10**9


@click.command()
@click.argument("uri", type=s3_uri, metavar="s3://BUCKET[/PREFIX]")
@click.option("--index", type=PATH, help="Where the index is made; in the state directory if not given.")
@click.option(
    "--at",
    type=moment,
    metavar="TIME",
    help="The state of that time, as 2026-01-31T12:30 (local time) or 2026-01-31T12:30Z; the newest if not "
    "given.",
)
@click.option("--partial", is_flag=True, help="Accept an earlier state where that one cannot be reached.")
@click.option("--force", is_flag=True, help="Move an index that is there aside, with its cache directory.")
@click.option(
    "--from-objects",
    is_flag=True,
    help="Use nothing of the index's copy in the bucket, but what the objects say of themselves.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@s3_options
def recover(uri: tuple[str, str], index: Path | None, as_json: bool, **values: Any) -> None:
    """Bring the index of a volume back from its bucket, on a machine that does not have it.

    Every piece is verified. What is missing or damaged is named, and nothing is written then unless --partial
    says so. With --from-objects names are those that files had when they were stored.

    \b
    Examples:
        s3blobfs recover s3://my-bucket
        s3blobfs recover s3://my-bucket --at 2026-01-31T12:30 --index old.db
        s3blobfs recover s3://my-bucket --from-objects
    """
    bucket, prefix = uri
    if values["from_objects"] and (values["at"] is not None or values["partial"]):
        raise click.UsageError("--from-objects excludes --at and --partial")
    s3 = take_s3_options(values)
    options = RecoveryOptions(
        bucket=bucket,
        prefix=prefix,
        s3=s3,
        index_path=index.absolute() if index else None,
        at_ns=values["at"],
        partial=values["partial"],
        force=values["force"],
        from_objects=values["from_objects"],
    )
    with recovering_progress("rebuilding" if options.from_objects else "recovering") as show:
        result = trio.run(recover_volume, options, show)
    if as_json:
        click.echo(json.dumps(_document(result), indent=1))
        return
    output = console()
    output.print(f"recovered volume {result.volume_id} at {result.uri}; its index is {result.index}")
    for path in result.set_aside:
        output.print(f"moved aside: {path}")
    if result.recovered is not None:
        _say(result.recovered)
    if result.rebuilt is not None:
        _say_rebuilt(result.rebuilt)
    option = f" --index {index}" if index else ""
    output.print(f"mount it with: s3blobfs mount{option} {result.uri} MOUNTPOINT")


def _say(recovered: Recovered) -> None:
    output, remarks, what = console(), error_console(), recovered.reconstruction
    output.print(
        f"state of {_time(what.made_ns)}: {recovered.files} files and directories, "
        f"{size_text(recovered.bytes)}, from a snapshot and {what.segments} segments"
    )
    for problem in what.problems:
        remarks.print(f"in the bucket: {printable(problem)}")
    if recovered.found:
        output.print(f"{recovered.found} files were in S3 already though the index did not know yet")
    for lost in recovered.lost[:LISTED]:
        name = (
            lost.path.decode(errors="surrogateescape") if lost.path is not None else f"inode {lost.inode_id}"
        )
        kept = "empty now" if lost.kept_bytes is None else "its earlier content is there"
        remarks.print(f"lost: {size_text(lost.size_bytes)} of {printable(name)}, never stored in S3; {kept}")
    _say_more(len(recovered.lost))


def _say_rebuilt(rebuilt: Rebuilt) -> None:
    output, remarks = console(), error_console()
    output.print(
        f"{rebuilt.files} files, {size_text(rebuilt.bytes)}; {rebuilt.conflicts} under another name because "
        f"theirs was taken, {rebuilt.lost_and_found} in lost+found"
    )
    for skipped in rebuilt.skipped[:LISTED]:
        remarks.print(f"left out: {printable(skipped)}")
    _say_more(len(rebuilt.skipped))


def _say_more(count: int) -> None:
    if count > LISTED:
        error_console().print(f"… and {count - LISTED} more; --json lists all")


def _time(made_ns: int) -> str:
    return datetime.fromtimestamp(made_ns / _NS).astimezone().isoformat(sep=" ", timespec="seconds")


def _document(result: RecoveredVolume) -> dict[str, Any]:
    document: dict[str, Any] = {
        "volume_id": result.volume_id,
        "uri": result.uri,
        "index": str(result.index),
        "duration_s": round(result.duration_s, 3),
        "set_aside": [str(path) for path in result.set_aside],
    }
    if (recovered := result.recovered) is not None:
        what = recovered.reconstruction
        document |= {
            "time": datetime.fromtimestamp(what.made_ns / _NS, UTC).isoformat(),
            "complete": what.complete,
            "snapshot": what.snapshot,
            "segments": what.segments,
            "segment": what.newest.number,
            "sequence": what.sequence,
            "inodes": recovered.files,
            "bytes": recovered.bytes,
            "found": recovered.found,
            "problems": what.problems,
            "lost": [
                asdict(lost)
                | {"path": None if lost.path is None else lost.path.decode(errors="surrogateescape")}
                for lost in recovered.lost
            ],
        }
    if result.rebuilt is not None:
        document |= asdict(result.rebuilt)
    return document
