"""``s3blobfs trace``."""

from __future__ import annotations

from pathlib import Path

import click

from s3blobfs.cli.console import size_text
from s3blobfs.cli.params import PATH
from s3blobfs.control.client import MountedVolume
from s3blobfs.volume.descriptor import DEFAULT_STORE_NAME


@click.group()
@click.argument("mountpoint", type=PATH)
@click.pass_context
def trace(ctx: click.Context, mountpoint: Path) -> None:
    """Draw what the volume mounted at MOUNTPOINT does to its cache and to S3, as a sequence diagram in
    PlantUML's language.

    \b
    Example:
        s3blobfs trace /mnt/files start /tmp/files.puml
        s3blobfs trace /mnt/files section Write
        echo foo > /mnt/files/a
        s3blobfs trace /mnt/files stop
    """
    ctx.obj = mountpoint


@trace.command()
@click.argument("file", type=PATH)
@click.pass_obj
def start(mountpoint: Path, file: Path) -> None:
    """Begin a diagram in FILE, which is replaced."""
    MountedVolume.of(mountpoint).call("trace.start", file=str(file.absolute()))


@trace.command()
@click.argument("title")
@click.pass_obj
def section(mountpoint: Path, title: str) -> None:
    """Write a caption across the diagram."""
    MountedVolume.of(mountpoint).call("trace.section", title=title)


@trace.command()
@click.pass_obj
def stop(mountpoint: Path) -> None:
    """End the diagram."""
    written = MountedVolume.of(mountpoint).call("trace.stop")["file"]
    click.echo(f"the diagram is {written}" if written else "no diagram was being drawn")


@trace.command()
@click.argument("key")
@click.option("--store", default=DEFAULT_STORE_NAME, show_default=True, help="The store it is of.")
@click.pass_obj
def blob(mountpoint: Path, key: str, store: str) -> None:
    """Look for a blob in the cache and in S3, and draw what is found. KEY is a digest, or ID@VERSION."""
    found = MountedVolume.of(mountpoint).call("trace.blob", blob=key, store=store)
    cached = {True: "in the cache", False: "not in the cache", None: "the store is not cached"}[
        found["cached"]
    ]
    stored = f"in S3 ({size_text(found['size_bytes'])})" if found["stored"] else "not in S3"
    click.echo(f"{cached}; {stored}")
