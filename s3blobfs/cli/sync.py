"""``s3blobfs sync``."""

from __future__ import annotations

from pathlib import Path

import click

from s3blobfs.cli.console import storing_progress
from s3blobfs.cli.params import PATH
from s3blobfs.control.client import MountedVolume
from s3blobfs.control.messages import Json


@click.command()
@click.argument("path", type=PATH)
def sync(path: Path) -> None:
    """Wait until a file is in S3 as it is now: with a PATH of a regular file that file, with any other PATH
    on a mounted volume everything in the volume.

    \b
    Examples:
        s3blobfs sync /mnt/files
        s3blobfs sync /mnt/files/report.pdf
    """
    volume = MountedVolume.of(path)
    inode = volume.inode_of(path) if path.is_file() else None
    with storing_progress("storing") as show:

        def report(progress: Json) -> None:
            show(progress["files_left"], progress["bytes_left"])

        volume.call("sync", inode=inode, progress=report)
