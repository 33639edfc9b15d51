"""The client side of the control socket: plain blocking sockets, for the command line.

A mounted volume is found by any path on it: the root of the mount has the extended attribute
``user.s3blobfs.control``, which names the socket.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from s3blobfs.control.addresses import short_address
from s3blobfs.control.messages import (
    ANSWER_MAX_BYTES,
    ControlError,
    Json,
    MalformedMessage,
    decode,
    encode,
)
from s3blobfs.errors import UsageError
from s3blobfs.volume.mountpoint import is_disconnected, resolve

CONTROL_ATTRIBUTE = "user.s3blobfs.control"
CONNECT_TIMEOUT_S = 10.0

ProgressListener = Callable[[Json], None]


def ignore_progress(_: Json) -> None:
    """For requests that report none."""


class MountedVolume:
    """A volume that is mounted now."""

    def __init__(self, mountpoint: Path, socket_path: Path) -> None:
        self.mountpoint = mountpoint
        self._socket_path = socket_path

    @classmethod
    def of(cls, path: Path) -> MountedVolume:
        """The volume that ``path`` is on. Raises :class:`UsageError` when it is on none, or on one whose
        process is gone."""
        path = resolve(path)
        mountpoint = _mountpoint_of(path)
        try:
            address = os.getxattr(mountpoint, CONTROL_ATTRIBUTE)
        except OSError as error:
            if is_disconnected(mountpoint):
                raise _stale(mountpoint) from error
            if error.errno == errno.EACCES:
                raise _closed(mountpoint) from error
            raise UsageError(f"{path} is not on a mounted s3blobfs volume") from error
        return cls(mountpoint, Path(os.fsdecode(address)))

    def call(
        self, request: str, /, *, progress: ProgressListener = ignore_progress, **arguments: object
    ) -> Json:
        """Send a request and wait for its answer. Raises :class:`ControlError`."""
        with self.begin(request, **arguments) as conversation:
            return conversation.wait(progress)

    def begin(self, request: str, /, **arguments: object) -> Conversation:
        """Send a request; the answer is for the conversation's :meth:`Conversation.wait`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            with short_address(self._socket_path) as address:
                connection.connect(address)
            connection.sendall(encode({"request": request, **arguments}))
            connection.settimeout(None)
        except PermissionError as error:
            connection.close()
            raise ControlError(f"{self.mountpoint} is mounted by another user; become that user") from error
        except OSError as error:
            connection.close()
            raise ControlError(
                f"the process behind {self.mountpoint} does not listen ({error.strerror}); "
                "it may be ending: look at the mount's log"
            ) from error
        except ControlError:
            connection.close()
            raise
        return Conversation(connection)

    def inode_of(self, path: Path, *, follow_symlinks: bool = True) -> int:
        """The number of a file of this volume. Raises :class:`UsageError` for one that is elsewhere."""
        try:
            status = path.stat(follow_symlinks=follow_symlinks)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise _stale(self.mountpoint) from error
            raise UsageError(f"{path}: {error.strerror}") from error
        if status.st_dev != self.mountpoint.stat().st_dev:
            raise UsageError(f"{path} is not on the volume mounted at {self.mountpoint}")
        return status.st_ino


class Conversation:
    """A request that was sent."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines: BinaryIO = connection.makefile("rb")

    def wait(self, progress: ProgressListener) -> Json:
        """The result, with its long lists put together. Raises as :meth:`MountedVolume.call`."""
        lists: dict[str, list[object]] = {}
        while True:
            message = self._receive()
            if message.keys() == {"progress"}:
                progress(message["progress"])
            elif message.keys() == {"part"}:
                for name, entries in message["part"].items():
                    lists.setdefault(name, []).extend(entries)
            elif message.keys() == {"result"}:
                return {**message["result"], **lists}
            else:
                raise _error_of(message)

    def wait_for_progress(self) -> Json:
        """The next report; an answer in its place is an error."""
        message = self._receive()
        if message.keys() == {"progress"}:
            report: Json = message["progress"]
            return report
        raise _error_of(message)

    def _receive(self) -> Json:
        try:
            line = self._lines.readline(ANSWER_MAX_BYTES + 1)
        except ConnectionResetError:  # it was killed before it had read the request
            line = b""
        if not line.endswith(b"\n"):
            raise ControlError("the mount's process ended before it answered; look at its log")
        return decode(line)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._connection.close()


def _error_of(message: Json) -> ControlError:
    error = message.get("error")
    if not isinstance(error, dict):
        return MalformedMessage(f"not an answer: {sorted(message)}")
    return ControlError(str(error.get("message")))


def _mountpoint_of(path: Path) -> Path:
    """``path`` or the nearest of its parents at which something is mounted."""
    try:
        if not is_disconnected(path) and not path.exists():
            raise UsageError(f"{path}: {os.strerror(errno.ENOENT)}")
        for each in (path, *path.parents):
            if is_disconnected(each):
                raise _stale(each)
            if each.is_mount():
                return each
    except PermissionError as error:
        raise _closed(path) from error
    return Path("/")


def _closed(path: Path) -> UsageError:
    return UsageError(f"{path} is closed to this user; if it is another user's mount, become that user")


def _stale(mountpoint: Path) -> UsageError:
    return UsageError(
        f"the process behind {mountpoint} is gone; nothing is lost: "
        f"clean up with 's3blobfs umount {mountpoint}' and mount again"
    )
