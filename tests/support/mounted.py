"""A mounted volume over a real S3 server, made and mounted by the commands a user types.

In the end it is unmounted whatever happened, its log must hold nothing at WARNING or above that the test does
not expect, and its index is checked.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from s3blobfs.index.database import Database
from s3blobfs.trace import Tracer
from s3blobfs.volume.paths import VolumePaths
from tests.support.commands import COMMAND_TIMEOUT_S, end_mount, process_behind, run_s3blobfs
from tests.support.servers import S3Server

LOG_LEVEL = re.compile(r"^(WARNING|ERROR|CRITICAL)\b|^Traceback", re.MULTILINE)
LOG_ENTRY = re.compile(r"\n(?=(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)")


class CommandFailed(AssertionError):
    """A command ended with another status than 0."""


@dataclass
class MountedVolume:
    """One volume with its state in ``directory``; may be mounted again and again."""

    server: S3Server
    bucket: str
    directory: Path
    mkfs_options: Sequence[str] = ()
    mount_options: Sequence[str] = ()
    endpoint_url: str | None = None
    """In place of the server's own: a proxy."""
    expected_logs: list[str] = field(default_factory=list)
    """Patterns of log lines at WARNING or above that the test provokes."""
    extra_environment: dict[str, str] = field(default_factory=dict)
    """Of the commands, and so of a mount that is made while it holds something."""

    def __post_init__(self) -> None:
        self.mountpoint = self.directory / "mnt"
        self.index = self.directory / "index.db"
        self.mountpoint.mkdir(parents=True, exist_ok=True)

    # -- commands ------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        state = {"XDG_STATE_HOME": str(self.directory / "state")}
        return {**kept, **self.server.environment, **state, **self.extra_environment}

    def command(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``s3blobfs`` with these arguments."""
        result = run_s3blobfs(*arguments, environment=self.environment)
        if check and result.returncode != 0:
            raise CommandFailed(f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def _endpoint(self) -> tuple[str, str]:
        return "--endpoint-url", self.endpoint_url or self.server.endpoint_url

    def mkfs(self) -> None:
        """Make the bucket too."""
        self.command(
            "mkfs", self.uri, "--create-bucket", "--index", self.index, *self._endpoint, *self.mkfs_options
        )

    def tool(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """fsck, scrub or gc, while nothing is mounted."""
        return self.command(name, self.uri, "--index", self.index, *self._endpoint, *options)

    def mount(self, *options: str | Path) -> None:
        mount: list[str | Path] = ["mount", self.uri, self.mountpoint, "--index", self.index, *self._endpoint]
        self.command(*mount, *self.mount_options, *options)

    def umount(self) -> None:
        """The barrier: everything is in S3 afterwards."""
        self.command("umount", self.mountpoint)

    def remount(self, *options: str | Path) -> None:
        self.umount()
        self.mount(*options)

    @property
    def tier(self) -> Path:
        """Of files being written and of cached ones."""
        return self.index.with_name(self.index.name + ".tier")

    def lose_machine(self) -> None:
        """What is left is the bucket, and the log for the test. Only while nothing is mounted."""
        for path in self.index.parent.glob(self.index.name + "*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.log_path:
                path.unlink()

    def recover(self, *options: str) -> None:
        """The index from the bucket."""
        self.command("recover", self.uri, "--index", self.index, *self._endpoint, *options)

    @property
    def pid(self) -> int:
        """Of the process that serves the mount."""
        found = re.search(r'"pid": (\d+)', self.command("status", self.mountpoint, "--json").stdout)
        assert found is not None
        return int(found[1])

    def kill(self) -> None:
        """SIGKILL, and free the mountpoint."""
        pid = self.pid
        self.kill_process(pid)
        self.bury(pid)

    def kill_process(self, pid: int) -> None:
        """SIGKILL alone: calls on the mount fail until it is buried."""
        os.kill(pid, signal.SIGKILL)

    def bury(self, pid: int) -> None:
        """Wait for the end of a process that is being killed, and free the mountpoint."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while is_running(pid):
            assert time.monotonic() < deadline, "the killed process does not end"
            time.sleep(0.01)
        subprocess.run(["umount", "-l", self.mountpoint], check=True, capture_output=True)

    @property
    def is_mounted(self) -> bool:
        return any(
            line.split(" ")[1] == str(self.mountpoint)
            for line in Path("/proc/mounts").read_text().splitlines()
        )

    # -- afterwards ----------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        return self.index.with_name(self.index.name + ".log")

    def unexpected_logs(self) -> list[str]:
        """Each with the traceback that follows it, if one does."""
        if not self.log_path.exists():
            return []
        return [
            entry
            for entry in LOG_ENTRY.split(self.log_path.read_text(errors="replace"))
            if LOG_LEVEL.search(entry)
            and not any(re.search(pattern, entry) for pattern in self.expected_logs)
        ]

    def check(self) -> None:
        """The index has no problem. Only while nothing is mounted."""

        async def problems() -> list[object]:
            db = Database.open(self.index, tracer=Tracer(), read_only=True)
            try:
                return list(await db.check())
            finally:
                await db.aclose()

        assert trio.run(problems) == []

    def finish(self) -> None:
        """Unmount in order, then look at the log and the index."""
        if self.is_mounted:
            self.umount()
        assert self.unexpected_logs() == []
        self.check()

    def log_text(self) -> str:
        """For whoever looks why something failed."""
        return self.log_path.read_text() if self.log_path.exists() else "no log"

    def abandon(self) -> None:
        """Leave nothing mounted after a failure."""
        process = process_behind(VolumePaths(self.index))
        if process is not None:
            process.end(0)  # not in order, which may wait for S3
        end_mount(VolumePaths(self.index), self.mountpoint)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@contextmanager
def mounted(volume: MountedVolume) -> Iterator[MountedVolume]:
    """mkfs, mount, and in the end :meth:`MountedVolume.finish`, or :meth:`MountedVolume.abandon`."""
    try:
        volume.mkfs()
        volume.mount()
        yield volume
        volume.finish()
    except BaseException:
        print(volume.log_text())
        raise
    finally:
        volume.abandon()
