"""The two ends of going into the background.

The command starts itself once more, in a session of its own, and waits at a pipe. The child mounts and then
writes ``ready``, or one line that says what is wrong; the command exits accordingly. A child that ends
without a word closes the pipe, so nobody waits for ever. The child's output goes to the mount's log as soon
as it knows where that is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from s3blobfs.cli.failure import line_of
from s3blobfs.errors import S3BlobFSError, UsageError
from s3blobfs.volume.paths import PRIVATE_FILE_MODE

READY = "ready"
LOG_MAX_BYTES = 8 * 1024**2
"""A log that is longer when a mount begins is put aside, in place of the one before."""


class MountFailed(S3BlobFSError):
    """The process in the background gave up; the message is its own."""


def start(make_arguments: Callable[[int], Sequence[str]]) -> str:
    """Start ``s3blobfs`` in the background and wait until it is ready; answers what it says of itself then.
    ``make_arguments`` is told the pipe's descriptor, for :class:`ReadyPipe`. Raises :class:`MountFailed`."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read_fd, encoding="utf-8", errors="surrogateescape") as answers:
        try:
            process = subprocess.Popen(
                # -P: what lies in the current directory must not be taken for our modules.
                [sys.executable, "-P", "-m", "s3blobfs", *make_arguments(write_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(write_fd,),
                start_new_session=True,
            )
        finally:
            os.close(write_fd)
        word, _, detail = answers.readline().rstrip("\n").partition(" ")
        if word == READY:
            process.returncode = 0  # it outlives this process: nothing to wait for
            return detail
    code = process.wait()
    raise MountFailed(detail or f"the mount's process ended with code {code} and no word")


class ReadyPipe:
    """The child's end. It reports once: that it is ready, or the error that ends the context before."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd: int | None = fd

    def ready(self, detail: str) -> None:
        self._report(f"{READY} {detail}")

    def __enter__(self) -> ReadyPipe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report(f"failed {line_of(error) if error is not None else 'unmounted before it was usable'}")

    def _report(self, line: str) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        # Whoever started this may have been interrupted; the mount is there all the same.
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, f"{' '.join(line.split())}\n".encode("utf-8", "surrogateescape"))
        os.close(fd)


def redirect_output(log_path: Path) -> None:
    """Let standard output and standard error, with everything logged, go to a file for this user alone, and
    leave the directory that the command was started in."""
    try:
        if log_path.exists() and log_path.stat().st_size > LOG_MAX_BYTES:
            log_path.replace(log_path.with_name(f"{log_path.name}.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(log_path, flags, PRIVATE_FILE_MODE)
    except OSError as error:
        raise UsageError(f"cannot write the mount's log {log_path}: {error.strerror}") from error
    for standard in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(fd, standard)
    os.close(fd)
    os.chdir("/")
