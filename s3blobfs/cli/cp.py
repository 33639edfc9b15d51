"""``s3blobfs cp``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click

from s3blobfs.cli.console import copying_progress
from s3blobfs.cli.params import PATH
from s3blobfs.control.client import MountedVolume
from s3blobfs.control.messages import ControlError
from s3blobfs.errors import UsageError

PARALLEL_COPIES = 8
"""A copy into another store waits for S3."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """One entry to be made."""

    source: Path
    target: Path
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=PATH, metavar="SOURCE…")
@click.argument("destination", type=PATH)
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all that is in them.")
@click.option(
    "-n", "--no-clobber", is_flag=True, help="Leave existing files alone instead of replacing them."
)
def cp(sources: tuple[Path, ...], destination: Path, recursive: bool, no_clobber: bool) -> None:
    """Copy files inside one mounted volume without moving their bytes.

    Within a store a copy costs no request at all; into another store S3 copies the object. Permissions and
    symbolic links are kept. For files from elsewhere use cp(1).

    \b
    Examples:
        s3blobfs cp /mnt/files/report.pdf /mnt/files/archive/
        s3blobfs cp -r /mnt/files/photos /mnt/files/photos-backup
    """
    into = destination.is_dir()
    volume = MountedVolume.of(destination if into else destination.absolute().parent)
    plan: list[_Copy] = []
    for source, target in _pairs(sources, destination, into=into):
        plan += _expand(volume, source, target, recursive=recursive)
    if no_clobber:
        plan = [each for each in plan if each.is_directory or not os.path.lexists(each.target)]
    for each in plan:
        if not each.is_file:
            _make_other(each)
    _copy_files(volume, [each for each in plan if each.is_file], replace=not no_clobber)
    # The deepest first, and after their files: a directory without write permission could not be filled.
    for each in reversed(plan):
        if each.is_directory:
            each.target.chmod(stat.S_IMODE(each.status.st_mode))


def _pairs(sources: Sequence[Path], destination: Path, *, into: bool) -> Iterator[tuple[Path, Path]]:
    """What becomes what, by the rules of cp(1)."""
    if not into and len(sources) > 1:
        raise UsageError(f"{destination} is not a directory, and there are several sources")
    for source in sources:
        name = source.name or source.resolve().name
        yield source, destination / name if into else destination


def _expand(volume: MountedVolume, source: Path, target: Path, *, recursive: bool) -> list[_Copy]:
    """A source with, if it is a directory, everything in it; parents before their children."""
    volume.inode_of(source, follow_symlinks=not recursive)  # on the volume, or this raises
    first = _Copy(source, target, source.stat(follow_symlinks=not recursive))
    if not first.is_directory:
        return [first]
    if not recursive:
        raise UsageError(f"{source} is a directory; copy it with -r")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{source} cannot be copied into itself")
    plan = [first]
    for directory in plan:  # grows as it goes
        if directory.is_directory:
            with os.scandir(directory.source) as entries:
                plan += [
                    _Copy(Path(entry.path), directory.target / entry.name, entry.stat(follow_symlinks=False))
                    for entry in entries
                ]
    return plan


def _make_other(copy: _Copy) -> None:
    """Make what is no regular file; what is there already is replaced, unless it is a directory."""
    mode, target = copy.status.st_mode, copy.target
    if copy.is_directory:
        # Writable for now; the permissions come at the end.
        target.mkdir(mode=0o700, exist_ok=True)
        return
    if target.is_dir() and not target.is_symlink():
        raise UsageError(f"{target} is a directory, and {copy.source} is not")
    target.unlink(missing_ok=True)
    if stat.S_ISLNK(mode):
        target.symlink_to(copy.source.readlink())
    else:
        os.mknod(target, mode, copy.status.st_rdev)


def _copy_files(volume: MountedVolume, files: Sequence[_Copy], *, replace: bool) -> None:
    """Raises the first error; what was not begun then is left out."""
    with (
        copying_progress(len(files), sum(each.status.st_size for each in files)) as show,
        ThreadPoolExecutor(PARALLEL_COPIES) as pool,
    ):
        copying = {pool.submit(_copy_file, volume, each, replace=replace): each for each in files}
        try:
            for done in as_completed(copying):
                done.result()
                show(copying[done].source.name, copying[done].status.st_size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy_file(volume: MountedVolume, copy: _Copy, *, replace: bool) -> None:
    source, target = copy.source, copy.target
    if target.is_dir():
        raise UsageError(f"{target} is a directory, and {source} is not")
    if not os.access(source, os.R_OK):
        raise UsageError(f"{source}: not readable for this user")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{target.parent}: not writable for this user")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{source} and {target} are the same file")
    try:
        volume.call(
            "copy",
            source=copy.status.st_ino,
            parent=volume.inode_of(target.parent),
            name=target.name,
            replace=replace,
        )
    except ControlError as error:
        raise ControlError(f"{source}: {error}") from error
