"""``s3blobfs umount``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click

from s3blobfs.cli.console import storing_progress
from s3blobfs.cli.params import PATH
from s3blobfs.control.client import Conversation, MountedVolume
from s3blobfs.control.messages import ControlError, Json
from s3blobfs.errors import UsageError
from s3blobfs.volume.mountpoint import State, resolve, state_of


@click.command()
@click.argument("mountpoint", type=PATH)
@click.option("--detach", is_flag=True, help="Leave what is not in S3 yet to the next mount.")
def umount(mountpoint: Path, detach: bool) -> None:
    """Unmount a volume, and wait until everything is in S3.

    Interrupting it does no harm: the volume is unmounted then, and what is missing in S3 goes there all the
    same. umount(8) and fusermount3 -u do as well, but do not wait.

    A mount whose process was killed ("Transport endpoint is not connected") is cleaned up.
    """
    mountpoint = resolve(mountpoint)
    state = state_of(mountpoint)
    if state is State.FREE:
        raise UsageError(f"nothing is mounted at {mountpoint}")
    if state is State.FOREIGN:
        raise UsageError(f"what is mounted at {mountpoint} is not an s3blobfs volume")
    if state is State.STALE:
        unmount(mountpoint)
        click.echo(
            f"cleaned up {mountpoint}, whose process was gone; what it had staged goes to S3 when the volume "
            "is mounted again"
        )
        return
    with MountedVolume.of(mountpoint).begin("unmount", detach=detach) as conversation:
        conversation.wait_for_progress()  # it listens; from here on nothing is missed
        unmount(mountpoint)
        left = _wait(conversation)
    if left["files_left"]:
        click.echo(
            f"{left['files_left']} files ({left['bytes_left']} bytes) are not in S3 yet; they stay on this "
            "machine and go there when the volume is mounted again"
        )


def _wait(conversation: Conversation) -> Json:
    """What is left when it is over."""
    told = None
    with storing_progress("unmounted; storing") as show:

        def report(progress: Json) -> None:
            nonlocal told
            if progress["state"] != "storing":
                return
            show(progress["files_left"], progress["bytes_left"])
            error = progress["last_error"]
            if error and error != told:
                told = error
                click.echo(f"s3blobfs: still trying: {error}", err=True)

        try:
            return conversation.wait(report)
        except ControlError as error:
            raise ControlError(f"unmounted, but not everything is in S3: {error}") from error


def unmount(mountpoint: Path) -> None:
    """Take the mount out of the file tree. Raises :class:`UsageError` when it is in use."""
    command = (
        ["umount", "--", str(mountpoint)] if os.geteuid() == 0 else ["fusermount3", "-u", str(mountpoint)]
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is missing; install the package fuse3") from error
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise UsageError(
            f"{mountpoint} is in use; end the programs that have files or their current directory there "
            f"(fuser -vm {mountpoint} lists them)"
        )
    raise UsageError(f"{command[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
