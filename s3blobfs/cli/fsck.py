"""``s3blobfs fsck``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from s3blobfs.cli.failure import line_of
from s3blobfs.cli.tools import Tool, tool_options
from s3blobfs.errors import S3BlobFSError, UsageError
from s3blobfs.maintenance import fsck as maintenance
from s3blobfs.maintenance.fsck import Outcome
from s3blobfs.maintenance.target import Json
from s3blobfs.offline import IndexCopy

# fsck(8); several may be added up.
CORRECTED = 1
UNCORRECTED = 4
OPERATIONAL_ERROR = 8
USAGE_ERROR = 16


class _Misused(click.UsageError):
    exit_code = USAGE_ERROR


class _Failed(click.ClickException):
    exit_code = OPERATIONAL_ERROR


class _FsckCommand(click.Command):
    """Gives errors the exit codes of fsck(8)."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _Misused(error.format_message(), error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _Misused(error.format_message(), ctx) from error
        except (S3BlobFSError, OSError) as error:
            if type(error) is UsageError:
                raise _Misused(line_of(error)) from error
            raise _Failed(line_of(error)) from error


@click.command(cls=_FsckCommand)
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@tool_options
def fsck(target: str, repair: bool, as_json: bool, **values: Any) -> int:
    """Check the index of a volume, and mend it.

    Files that no name leads to any more come to the directory lost+found; what is lost is said. While the
    volume is mounted only such problems are mended as concern nothing that the mount has a copy of; for the
    others unmount it, and give its address.

    The exit code is that of fsck(8): 0 no errors, 1 errors corrected, 4 errors left, 8 the check could not be
    made, 16 not understood; 1 and 4 may add up.

    \b
    Examples:
        s3blobfs fsck /mnt/files
        s3blobfs fsck --repair s3://my-bucket
    """
    tool = Tool("fsck", target, as_json, values)
    report = tool.run(
        {"repair": repair},
        lambda volume, progress: maintenance.fsck(volume, repair=repair, progress=progress),
        IndexCopy.IGNORED,
    )
    tool.show(report, _lines)
    counts = report["counts"]
    left = counts[Outcome.LEFT.value] + counts[Outcome.FOUND.value]
    return (CORRECTED if counts[Outcome.MENDED.value] else 0) + (UNCORRECTED if left else 0)


def _lines(report: Json) -> Iterator[str]:
    for problem in report["problems"]:
        note = f": {problem['note']}" if problem["note"] else ""
        yield f"{problem['outcome']}: {problem['kind']}: {problem['detail']}{note}"
    counts = report["counts"]
    if not any(counts.values()):
        yield "the index is in order"
    else:
        yield ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
