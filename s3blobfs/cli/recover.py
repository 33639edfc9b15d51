"""``s3blobfs recover``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from s3blobfs.cli.console import console, counting_progress, error_console, printable, size_text
from s3blobfs.cli.params import (
    DIGEST,
    DURABILITY,
    KEYING,
    PATH,
    moment,
    s3_options,
    s3_uri,
    take_s3_options,
)
from s3blobfs.recovering import RecoveredVolume, RecoveryOptions, recover_volume
from s3blobfs.replica.fromobjects import Rebuilt
from s3blobfs.replica.recovery import ContentsGone, GoneContent, Recovered, Request
from s3blobfs.replica.restoring import Outcome, Restored
from s3blobfs.types import DigestAlgorithm, Durability, Keying
from s3blobfs.volume.deriving import Stated

LISTED = 20
"""Of files of a kind, in the output for people."""
EXIT_INCOMPLETE = 4
"""As of scrub: what was asked for is there, and something of it is not."""
_NS = 10**9


@click.command()
@click.argument("uri", type=s3_uri, metavar="s3://BUCKET[/PREFIX]")
@click.option("--index", type=PATH, help="Where the index is made; in the state directory if not given.")
@click.option(
    "--at", type=moment, metavar="TIME",
    help="The state of that time, as 2026-01-31T12:30 (local time) or 2026-01-31T12:30Z; the newest if not "
    "given.",
)  # fmt: skip
@click.option(
    "--partial", is_flag=True,
    help="Accept an earlier state where that one cannot be reached, and files whose content is gone.",
)  # fmt: skip
@click.option(
    "--restore-unnamed/--leave-unnamed", default=True, show_default=True,
    help="Whether files come back that were stored after the newest state of the index.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Move an index that is there aside, with its cache directory.")
@click.option(
    "--from-objects",
    is_flag=True,
    help="Use nothing of the index's copy in the bucket, but what the objects say of themselves.",
)
@click.option(
    "--mode", "keying", type=KEYING,
    help="With --from-objects, if the volume's settings are lost: how objects are keyed, where they do not "
    "tell.",
)  # fmt: skip
@click.option("--digest", type=DIGEST, help="Likewise: the digest that is the key with --mode digest.")
@click.option(
    "--cache/--no-cache", "cached", default=None, help="Likewise: whether whole files are kept in the cache."
)
@click.option("--durability", type=DURABILITY, help="Likewise: what close() waits for.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@s3_options
def recover(uri: tuple[str, str], index: Path | None, as_json: bool, **values: Any) -> int:
    """Bring the index of a volume back from its bucket, on a machine that does not have it.

    Every piece is verified, and every content looked for in S3. What is missing or damaged is named, and
    nothing is written then unless --partial says so. With --from-objects names are those that files had when
    they were stored.

    The exit code is 0 when the state asked for is there, 4 when --partial accepted that something is missing,
    and 1 when nothing was recovered.

    \b
    Examples:
        s3blobfs recover s3://my-bucket
        s3blobfs recover s3://my-bucket --at 2026-01-31T12:30 --index old.db
        s3blobfs recover s3://my-bucket --from-objects
    """
    options = _options(uri, index, values)
    try:
        with counting_progress("recovering") as show:
            result = trio.run(recover_volume, options, partial(_show, show))
    except ContentsGone as error:
        if as_json:
            click.echo(json.dumps({"gone": [_gone(each) for each in error.gone]}, indent=1))
        else:
            _say_gone(error.gone)
        raise
    if as_json:
        click.echo(json.dumps(_document(result), indent=1))
    else:
        _say_all(result, index)
    recovered = result.recovered
    if recovered is not None and (recovered.gone or not recovered.reconstruction.complete):
        return EXIT_INCOMPLETE
    return 0


def _options(uri: tuple[str, str], index: Path | None, values: dict[str, Any]) -> RecoveryOptions:
    bucket, prefix = uri
    if values["from_objects"] and (values["at"] is not None or values["partial"]):
        raise click.UsageError("--from-objects excludes --at and --partial")
    keying, digest, durability = values["keying"], values["digest"], values["durability"]
    stated = Stated(
        Keying(keying) if keying else None,
        DigestAlgorithm(digest) if digest else None,
        values["cached"],
        Durability(durability) if durability else None,
    )
    if not stated.is_empty and not values["from_objects"]:
        raise click.UsageError("--mode, --digest, --cache and --durability are for --from-objects")
    return RecoveryOptions(
        bucket=bucket,
        prefix=prefix,
        s3=take_s3_options(values),
        index_path=index.absolute() if index else None,
        request=Request(values["at"], values["partial"], values["restore_unnamed"]),
        force=values["force"],
        from_objects=values["from_objects"],
        stated=stated,
    )


def _show(show: Callable[[int, int | None, str], None], phase: str, done: int, total: int | None) -> None:
    number = size_text if phase == "reading" else str
    # More objects may be there than the index names.
    of = f" of {number(total)}" if total is not None and total >= done else ""
    show(done, total, f"{phase}: {number(done)}{of}")


# --- for people ----------------------------------------------------------------------------------------


def _say_all(result: RecoveredVolume, index: Path | None) -> None:
    output = console()
    output.print(f"recovered volume {result.volume_id} at {result.uri}; its index is {result.index}")
    for path in result.set_aside:
        output.print(f"moved aside: {path}")
    for remark in result.assumed:
        output.print(printable(remark))
    if result.described:
        output.print("the volume's settings were lost, and are written anew: nobody may have it mounted now")
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
    for restored in recovered.restored:
        output.print(_restored_line(restored))
    _say_gone(recovered.gone)
    for lost in recovered.lost[:LISTED]:
        name = _name(lost.path) if lost.path is not None else f"inode {lost.inode_id}"
        kept = "empty now" if lost.kept_bytes is None else "its earlier content is there"
        remarks.print(f"lost: {size_text(lost.size_bytes)} of {name}, never stored in S3; {kept}")
    _say_more(len(recovered.lost))


def _restored_line(restored: Restored) -> str:
    what = f"{size_text(restored.size_bytes)}, stored at {_time(restored.modified_ns)}"
    if restored.outcome is Outcome.LEFT:
        return (
            f"left: the object {printable(restored.object_key)} ({what}): a later or the same content counts"
        )
    how = {
        Outcome.MADE: "a file that the index did not know yet",
        Outcome.CHANGED: "a newer content than the index knew",
        Outcome.BESIDE: "under another name, since its own is taken",
        Outcome.LOST_AND_FOUND: "its place is not known, or cannot be made",
    }[restored.outcome]
    return f"restored: {_name(restored.path)} ({what}): {how}"


def _say_gone(gone: Sequence[GoneContent]) -> None:
    remarks = error_console()
    for each in gone[:LISTED]:
        remarks.print(f"gone: {size_text(each.size_bytes)} of {_name(each.path)}{_remains(each)}")
    _say_more(len(gone))


def _remains(gone: GoneContent) -> str:
    if not gone.remaining:
        return ""
    listed = ", ".join(
        f"{version.age.value} of {_time(version.modified_ns)} ({size_text(version.size_bytes)})"
        for version in gone.remaining
    )
    return f"; S3 has versions: {listed}"


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


def _name(path: bytes | None) -> str:
    return printable(path.decode(errors="surrogateescape")) if path is not None else "a file without a name"


def _time(made_ns: int) -> str:
    return datetime.fromtimestamp(made_ns / _NS).astimezone().isoformat(sep=" ", timespec="seconds")


# --- for programs --------------------------------------------------------------------------------------


def _document(result: RecoveredVolume) -> dict[str, Any]:
    document: dict[str, Any] = {
        "volume_id": result.volume_id,
        "uri": result.uri,
        "index": str(result.index),
        "duration_s": round(result.duration_s, 3),
        "set_aside": [str(path) for path in result.set_aside],
        "assumed": result.assumed,
        "settings_written": result.described,
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
            "restored": [
                asdict(each) | {"path": _text(each.path), "outcome": each.outcome.value}
                for each in recovered.restored
            ],
            "gone": [_gone(each) for each in recovered.gone],
            "lost": [asdict(lost) | {"path": _text(lost.path)} for lost in recovered.lost],
        }
    if result.rebuilt is not None:
        document |= asdict(result.rebuilt)
    return document


def _gone(gone: GoneContent) -> dict[str, Any]:
    remaining = [asdict(each) | {"age": each.age.value} for each in gone.remaining]
    return asdict(gone) | {"path": _text(gone.path), "remaining": remaining}


def _text(path: bytes | None) -> str | None:
    return None if path is None else path.decode(errors="surrogateescape")
