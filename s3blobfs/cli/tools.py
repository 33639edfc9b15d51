"""What fsck, scrub and gc have in common: their target, mounted or not, and how far they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from s3blobfs.app import find_volume
from s3blobfs.cli.console import console, counting_progress, printable, size_text
from s3blobfs.cli.params import PATH, Decorated, s3_options, s3_uri, take_s3_options
from s3blobfs.control.client import MountedVolume
from s3blobfs.errors import UsageError
from s3blobfs.maintenance.target import Json, Progress, Target
from s3blobfs.offline import IndexCopy, OfflineVolume, run_offline
from s3blobfs.volume.paths import VolumePaths

URI_SCHEME = "s3://"

_PARAMETERS = (
    click.argument("target", metavar="MOUNTPOINT|s3://BUCKET[/PREFIX]"),
    click.option(
        "--index", type=PATH, help="The index of a volume that is not mounted; in the state directory if not "
        "given.",
    ),
    click.option(
        "--cache-dir", type=PATH, help="Its directory of staged files and the cache; beside the index if not "
        "given.",
    ),
    click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object."),
)  # fmt: skip


def tool_options(function: Decorated) -> Decorated:
    """Adds what every tool takes: :class:`Tool` collects it."""
    for decorate in reversed(_PARAMETERS):
        function = decorate(function)
    return s3_options(function)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool with its target."""

    name: str
    target: str
    as_json: bool
    values: dict[str, Any]
    """The other arguments of the command, those that :func:`tool_options` added among them."""

    @property
    def is_offline(self) -> bool:
        return self.target.startswith(URI_SCHEME)

    def run(self, arguments: Json, offline: Callable[[Target, Progress], Any], index_copy: IndexCopy) -> Json:
        """The tool's report: by a request with ``arguments`` where the target is mounted, else by awaiting
        ``offline`` on the opened volume. Raises what either does."""
        s3 = take_s3_options(self.values)
        index, cache_dir = self.values.pop("index"), self.values.pop("cache_dir")
        with _progress(self.name) as progress:
            if not self.is_offline:
                if index is not None or cache_dir is not None:
                    raise click.UsageError("--index and --cache-dir are for a volume given as s3://…")
                return MountedVolume.of(Path(self.target)).call(self.name, progress=progress, **arguments)
            bucket, prefix = s3_uri(self.target)
            descriptor = trio.run(find_volume, bucket, prefix, s3)
            paths = (
                VolumePaths(index.absolute()) if index else VolumePaths.default(descriptor.settings.volume_id)
            )
            if not paths.index.exists():
                raise UsageError(
                    f"the index of {descriptor.title} is not at {paths.index}; give it with --index"
                )
            volume = OfflineVolume(
                descriptor,
                paths.index,
                (cache_dir or paths.tier).absolute(),
                s3,
                self.name,
                index_copy,
            )

            async def tool(target: Target) -> Json:
                report: Json = (await offline(target, progress)).to_json()
                return report

            return trio.run(run_offline, volume, tool)

    def show(self, report: Json, lines: Callable[[Json], Iterator[str]]) -> None:
        """On standard output."""
        if self.as_json:
            click.echo(json.dumps(report, indent=1))
            return
        for line in lines(report):
            console().print(printable(line))


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Progress]:
    with counting_progress(name) as bar:

        def report(progress: Json) -> None:
            bar(progress["done"], progress["total"], _detail(progress))

        yield report


def _detail(progress: Json) -> str:
    parts = [f"{progress['phase']}: {progress['done']}"]
    if progress["total"] is not None:
        parts.append(f"of {progress['total']}")
    for name in ("damaged", "healed", "found", "deleted"):
        if progress.get(name):
            parts.append(f"{progress[name]} {name}")
    if progress.get("bytes"):
        parts.append(size_text(progress["bytes"]))
    return ", ".join(parts).replace(", of ", " of ")
