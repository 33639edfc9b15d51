"""What is at a path where a volume is, or is to be, mounted: read from the kernel's mount table."""

from __future__ import annotations

import enum
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from s3blobfs.errors import UsageError

MOUNT_TABLE = Path("/proc/self/mountinfo")
FILESYSTEM_TYPE = "fuse.s3blobfs"


class State(enum.Enum):
    """What is at a path."""

    FREE = "free"
    """Nothing is mounted right there."""
    MOUNTED = "mounted"
    """A filesystem of ours."""
    STALE = "stale"
    """A FUSE mount whose process is gone."""
    FOREIGN = "foreign"
    """Another filesystem."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of the mount table."""

    mountpoint: Path
    filesystem_type: str


def mount_entries() -> list[MountEntry]:
    """All mounts of this process's namespace, in the order in which they were made."""
    entries = []
    for line in os.fsdecode(MOUNT_TABLE.read_bytes()).splitlines():
        # proc_pid_mountinfo(5): optional fields stand before a lone hyphen, the type after it.
        before, _, after = line.partition(" - ")
        mountpoint = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        entries.append(MountEntry(Path(mountpoint), after.split()[0]))
    return entries


def find_mount(path: Path) -> MountEntry | None:
    """What is mounted exactly at ``path`` (absolute, without symbolic links); the topmost of several."""
    return next((entry for entry in reversed(mount_entries()) if entry.mountpoint == path), None)


def state_of(path: Path) -> State:
    """``path`` must be absolute and without symbolic links, as :func:`resolve` gives it."""
    entry = find_mount(path)
    if entry is None:
        return State.FREE
    if is_disconnected(path):
        return State.STALE
    return State.MOUNTED if entry.filesystem_type == FILESYSTEM_TYPE else State.FOREIGN


def is_disconnected(path: Path) -> bool:
    """Whether ``path`` is in a FUSE mount without a process: ``Transport endpoint is not connected``."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def resolve(path: Path) -> Path:
    """Absolute and without symbolic links; the last component is not looked at when it is a mount that no
    longer answers."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps '..'
    return absolute.parent.resolve() / absolute.name if is_disconnected(absolute) else absolute.resolve()


def check_vacant(mountpoint: Path) -> None:
    """Raises :class:`UsageError`, saying what to do, where nothing can be mounted at ``mountpoint``."""
    state = state_of(mountpoint)
    if state is State.STALE:
        raise UsageError(
            f"{mountpoint} is a mount whose process is gone; clean it up with: s3blobfs umount {mountpoint}"
        )
    if state is State.MOUNTED:
        raise UsageError(
            f"a volume is mounted at {mountpoint} already; look at it with: s3blobfs status {mountpoint}"
        )
    if state is State.FOREIGN:
        raise UsageError(f"another filesystem is mounted at {mountpoint}; choose another directory")
    if not mountpoint.exists():
        raise UsageError(f"the mountpoint {mountpoint} does not exist; make it with: mkdir -p {mountpoint}")
    if not mountpoint.is_dir():
        raise UsageError(f"the mountpoint {mountpoint} is not a directory")
    try:
        occupied = any(mountpoint.iterdir())
    except PermissionError:
        raise UsageError(f"the mountpoint {mountpoint} is not readable for this user") from None
    if occupied:
        raise UsageError(
            f"the mountpoint {mountpoint} is not empty, and its files would be hidden; "
            "choose an empty directory"
        )
