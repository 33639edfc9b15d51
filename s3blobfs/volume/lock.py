"""The volume's lock: one process at a time has the index open for writing.

A ``flock(2)`` on a file beside the index. The kernel releases it with the process, however that ends, so
there is nothing to clean up; the file itself stays, since removing it could hand the lock to two processes.
Its text says who holds it, for the message that the second one gets.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from s3blobfs.errors import UsageError, VolumeInUse
from s3blobfs.volume.paths import PRIVATE_FILE_MODE

HOLDER_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who has the volume."""

    pid: int
    host: str
    purpose: str
    """``mount``, or the command that holds it."""
    mountpoint: str
    """Empty unless it is a mount."""
    since: str

    @classmethod
    def this_process(cls, purpose: str, mountpoint: Path | None = None) -> LockHolder:
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            purpose=purpose,
            mountpoint="" if mountpoint is None else str(mountpoint),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        process = f"process {self.pid} on {self.host} since {self.since}"
        if self.mountpoint:
            return f"mounted at {self.mountpoint} ({process}); see: s3blobfs umount {self.mountpoint}"
        return f"in use by 's3blobfs {self.purpose}' ({process}); wait until it has ended"


class VolumeLock:
    """Held from construction until :meth:`release` or the end of the process."""

    def __init__(self, path: Path, holder: LockHolder) -> None:
        """Take the lock at once, or raise :class:`VolumeInUse` naming its holder; :class:`UsageError` when
        everybody may write to its directory, and so put files of his own beside the index."""
        _refuse_if_open_to_all(path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, PRIVATE_FILE_MODE)
        except OSError as error:
            raise UsageError(f"cannot open the volume's lock {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(holder)).encode(), 0)
        except BlockingIOError:
            found = _read_holder(fd)
            os.close(fd)
            raise VolumeInUse(
                f"the volume is {found or f'in use by another process (lock {path})'}"
            ) from None
        except OSError as error:
            os.close(fd)
            raise UsageError(f"cannot lock {path}: {error.strerror}") from error
        self._fd: int | None = fd

    def release(self) -> None:
        """Let the next one in; again is harmless."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.ftruncate(fd, 0)
            os.close(fd)

    def __enter__(self) -> VolumeLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _refuse_if_open_to_all(directory: Path) -> None:
    try:
        mode = directory.stat().st_mode
    except OSError:
        return  # opening the lock says what is wrong
    if mode & stat.S_IWOTH:
        raise UsageError(
            f"everybody may write to {directory}; keep the index in a directory of your own (--index), or "
            f"close this one: chmod o-w {directory}"
        )


def find_holder(path: Path) -> LockHolder | None:
    """Who holds the lock now; ``None`` if nobody, or somebody who has not said yet who he is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    finally:
        os.close(fd)
    return None


def _read_holder(fd: int) -> LockHolder | None:
    """The text is written after the lock is taken, and may therefore be missing or half there."""
    try:
        return LockHolder(**json.loads(os.pread(fd, HOLDER_MAX_BYTES, 0)))
    except (ValueError, TypeError):
        return None
