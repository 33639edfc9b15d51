"""What other systems have in common: a program in the foreground that serves a mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchlib.aside import put_aside
from benchlib.content import drop_pages
from benchlib.peers.bucket import Bucket
from benchlib.peers.system import Server, System
from benchlib.peers.tools import FUSERMOUNT
from benchlib.usage import Tree, Usage
from benchlib.volume import CommandFailed
from s3blobfs.demo.process import ProcessId
from s3blobfs.volume.mountpoint import find_mount

_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 120.0
_POLL_S = 0.01


class Peer(System):
    """Subclasses say which program with which arguments."""

    def __init__(self, name: str, directory: Path, server: Server, bucket: str) -> None:
        self.name = name
        self.bucket = Bucket(bucket, server)
        self.server = server
        self.base = directory
        self.directory = directory / "mnt"
        self.cache = directory / "cache"
        self._log = directory / "log"
        self._processes: list[subprocess.Popen[bytes]] = []
        """That of the mount last, those that it needs before."""
        self.directory.mkdir(parents=True)
        self.cache.mkdir()

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Serves the mount in the foreground."""

    def environment(self) -> dict[str, str]:
        """Added to ours."""
        return {}

    # -- life ------------------------------------------------------------------------------------------

    def make(self) -> None:
        self.bucket.make()

    def mount(self) -> None:
        process = self.start(self.command())
        self.wait_for(lambda: find_mount(self.directory) is not None, process)

    def umount(self) -> None:
        self.run([FUSERMOUNT.path, "-u", self.directory])
        process = self._processes.pop()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self._processes.append(process)
            raise CommandFailed(
                f"{self.name} still runs {_END_TIMEOUT_S:.0f} s after it was unmounted"
            ) from error

    def kill(self) -> None:
        for process in reversed(self._processes):
            end_tree(process.pid)

    def abandon(self) -> None:
        if find_mount(self.directory) is not None:
            with contextlib.suppress(CommandFailed):
                self.umount()
        self.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()
        if find_mount(self.directory) is not None:
            detach(self.directory)

    def remove(self) -> None:
        self.bucket.remove()
        put_aside(self.base)

    # -- processes -------------------------------------------------------------------------------------

    def start(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """In the background, and ended by :meth:`abandon` at the latest."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._environment,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        self._processes.append(process)
        return process

    def run(self, command: Sequence[str | Path]) -> str:
        """Until it ends; what it printed. Raises :class:`CommandFailed`."""
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{self.name}: {error}") from error
        if done.returncode:
            raise CommandFailed(f"{self.name}: {Path(command[0]).name}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def wait_for(self, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Raises :class:`CommandFailed` when it ends, or does not get there."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-1000:]
                raise CommandFailed(f"{self.name} did not start: {said}")
            time.sleep(_POLL_S)

    @property
    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {**ours, "HOME": str(self.base), "TMPDIR": str(self.base), **self.environment()}

    @property
    def tree(self) -> Tree:
        """Of the mount: what it needs beside, like a database server, is not counted."""
        return Tree(self._processes[-1].pid)

    # -- as a target -----------------------------------------------------------------------------------

    def wait_until_stored(self) -> None:
        """close(2) has said so."""

    def settle(self) -> None:
        self.wait_until_stored()

    def shows(self, paths: Sequence[Path]) -> bool:
        """Files are objects, named by their paths."""
        return self.bucket.has({str(path.relative_to(self.directory)): path.stat().st_size for path in paths})

    def forget_everything(self, paths: Iterable[Path]) -> None:
        """A mount of its own with an empty cache: the kernel's pages and names go with the mount before."""
        self.settle()
        self.umount()
        put_aside(self.cache)
        self.cache.mkdir()
        self.mount()

    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        drop_pages(paths)
        drop_cached_pages(self.cache)

    def usage(self) -> Usage:
        return Usage(self.tree.cpu_s())

    def forget_peak_memory(self) -> None:
        self.tree.forget_peak_memory()

    def peak_memory_bytes(self) -> int | None:
        return self.tree.peak_memory_bytes()


def files_below(directory: Path) -> list[Path]:
    return [Path(parent) / name for parent, _, names in os.walk(directory) for name in names]


def drop_cached_pages(cache: Path) -> None:
    """Of what a system has in its cache, so that it is read from the disk; it may remove files meanwhile."""
    for path in files_below(cache):
        with contextlib.suppress(FileNotFoundError):
            drop_pages([path], written=True)


def end_tree(pid: int) -> None:
    """At once, parents first, who would start their children again."""
    for each in Tree(pid).pids():
        if (running := ProcessId.of(each)) is not None:
            running.end(0.0)


def detach(mountpoint: Path) -> None:
    """Whatever hangs in it; its process is gone."""
    command = ["umount", "-l"] if os.geteuid() == 0 else [FUSERMOUNT.path, "-uz"]
    subprocess.run([*command, mountpoint], check=False, timeout=_COMMAND_TIMEOUT_S)
