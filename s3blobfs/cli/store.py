"""``s3blobfs store``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from s3blobfs.cli.console import console, printable
from s3blobfs.cli.params import DIGEST, KEYING, PATH, s3_uri
from s3blobfs.control.client import MountedVolume
from s3blobfs.control.messages import Json
from s3blobfs.errors import UsageError
from s3blobfs.types import DigestAlgorithm, Keying


@click.group()
def store() -> None:
    """Look after the stores of a mounted volume.

    A store says where contents of files go, and how they are keyed there. New files go to the store of the
    nearest directory above them that one is bound to; the root is bound to the store 'default'. Files stay
    in the store they were made in, also when they are moved.
    """


@store.command("list")
@click.argument("mountpoint", type=PATH)
def list_stores(mountpoint: Path) -> None:
    """Show the stores, and the directories bound to them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("store", "address", "mode", "cache", "directories"):
        table.add_column(column, overflow="fold")
    for each in MountedVolume.of(mountpoint).call("store.list")["stores"]:
        table.add_row(
            each["name"],
            f"s3://{each['bucket']}/{each['prefix']}",
            mode_text(each),
            "yes" if each["cached"] else "no",
            printable(" ".join(each["directories"])),
        )
    console().print(table)


@store.command()
@click.argument("mountpoint", type=PATH)
@click.argument("name")
@click.argument("uri", type=s3_uri, metavar="s3://BUCKET[/PREFIX]")
@click.option(
    "--mode",
    "keying",
    type=KEYING,
    default=Keying.DIGEST.value,
    show_default=True,
    help="How objects are keyed.",
)
@click.option(
    "--digest",
    type=DIGEST,
    default=DigestAlgorithm.MD5.value,
    show_default=True,
    help="The key of --mode digest.",
)
@click.option(
    "--cache/--no-cache", "cached", default=True, show_default=True, help="Whether whole files are cached."
)
@click.option(
    "--at", "directory", type=PATH, metavar="DIRECTORY", help="Bind it to this directory of the volume."
)
@click.option("--create-bucket", is_flag=True, help="Make the bucket if there is none.")
@click.option("--versioning", is_flag=True, help="Turn the bucket's versioning on.")
def add(
    mountpoint: Path,
    name: str,
    uri: tuple[str, str],
    keying: str,
    digest: str,
    cached: bool,
    directory: Path | None,
    create_bucket: bool,
    versioning: bool,
) -> None:
    """Add a store to a mounted volume.

    \b
    Example:
        mkdir /mnt/files/other
        s3blobfs store add /mnt/files other s3://my-bucket/other --mode digest --at /mnt/files/other
    """
    volume = MountedVolume.of(mountpoint)
    # Before anything is made: a wrong directory must not leave a store behind.
    inode = None if directory is None else _directory_of(volume, directory)
    bucket, prefix = uri
    volume.call(
        "store.add",
        name=name,
        uri=f"s3://{bucket}/{prefix}",
        keying=keying,
        digest=digest,
        cached=cached,
        create_bucket=create_bucket,
        versioning=versioning,
    )
    if inode is not None:
        volume.call("store.bind", directory=inode, name=name)


@store.command()
@click.argument("directory", type=PATH)
@click.argument("name")
def bind(directory: Path, name: str) -> None:
    """Let new files below DIRECTORY go to the store NAME from now on.

    \b
    Example:
        s3blobfs store bind /mnt/files/other other
    """
    volume = MountedVolume.of(directory)
    volume.call("store.bind", directory=_directory_of(volume, directory), name=name)


def _directory_of(volume: MountedVolume, directory: Path) -> int:
    inode = volume.inode_of(directory)
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    return inode


def mode_text(store_description: Json) -> str:
    """``digest (md5)`` or ``versioned``."""
    keying: str = store_description["keying"]
    if keying == Keying.DIGEST.value:
        return f"{keying} ({store_description['digest_algorithm']})"
    return keying
