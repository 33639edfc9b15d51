"""A volume, made, mounted and unmounted by the commands that a user types."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.aside import put_aside
from benchlib.content import drop_pages
from benchlib.targets import DirectoryTarget
from benchlib.usage import Tree, Usage
from benchlib.waiting import wait_until
from s3blobfs.control.client import MountedVolume
from s3blobfs.demo.process import ProcessId
from s3blobfs.types import Durability, Keying
from s3blobfs.volume.mountpoint import State, state_of

_COMMAND_TIMEOUT_S = 300.0
_STOP_S = 1.0
_POLL_S = 0.02
"""An answer takes processor time, which is counted."""


class CommandFailed(Exception):
    """A command of ours failed; the message is its own."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A kind of volume."""

    keying: Keying
    cached: bool
    durability: Durability

    @property
    def name(self) -> str:
        """As ``--modes`` takes it."""
        parts = [self.keying.value]
        if not self.cached:
            parts.append("uncached")
        if self.durability is Durability.DISK:
            parts.append("disk")
        return "-".join(parts)


MODES = {
    mode.name: mode
    for mode in (
        Mode(keying, cached, durability)
        for cached in (True, False)
        for durability in Durability
        for keying in Keying
    )
}


class Volume(DirectoryTarget):
    """A mounted volume; its state is in ``directory``."""

    def __init__(self, mode: Mode, directory: Path, endpoint_url: str, bucket: str | None = None) -> None:
        self.name = mode.name
        self.mode = mode
        self.directory = directory / "mnt"
        self._index = directory / "index.db"
        self._cache = directory / "cache"
        self._endpoint = f"--endpoint-url={endpoint_url}"
        self._environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
        self._uri = f"s3://{bucket or f'bench-{mode.name}'}"
        self._process: ProcessId | None = None
        self.directory.mkdir(parents=True)

    # -- commands --------------------------------------------------------------------------------------

    def run(self, *arguments: str | Path) -> None:
        """``s3blobfs ARGUMENTS``. Raises :class:`CommandFailed`.

        Interrupted, it lets the command end first: a mount that is being made would come to be when nobody
        looks for it any more."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "s3blobfs", *map(str, arguments)],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        try:
            _, errors = process.communicate(timeout=_COMMAND_TIMEOUT_S)
        except KeyboardInterrupt:
            process.communicate(timeout=_COMMAND_TIMEOUT_S)
            raise
        if process.returncode:
            raise CommandFailed(f"s3blobfs {arguments[0]}: {errors.strip()}")

    def make(self) -> None:
        mode = self.mode
        self.run(
            "mkfs",
            self._uri,
            "--create-bucket",
            f"--index={self._index}",
            f"--mode={mode.keying.value}",
            f"--durability={mode.durability.value}",
            "--cache" if mode.cached else "--no-cache",
            self._endpoint,
        )

    def mount(self) -> None:
        self._start(
            [
                self._uri,
                str(self.directory),
                f"--index={self._index}",
                f"--cache-dir={self._cache}",
                self._endpoint,
            ]
        )
        self._process = ProcessId.of(self._status()["mount"]["pid"])

    def _start(self, arguments: list[str]) -> None:
        self.run("mount", *arguments)

    def umount(self) -> None:
        """Returns when everything is in S3."""
        self.run("umount", self.directory)
        self._process = None

    @property
    def pid(self) -> int:
        """Of the process that serves the mount."""
        assert self._process is not None, "not mounted"
        return self._process.pid

    def abandon(self) -> None:
        """Leave nothing mounted and no process, whatever happened."""
        if state_of(self.directory) is State.MOUNTED:
            with contextlib.suppress(CommandFailed, subprocess.TimeoutExpired):
                self.umount()
        if self._process is not None:
            self._process.end(_STOP_S)
        if state_of(self.directory) is not State.FREE:
            command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*command, self.directory], check=False)

    # -- as a target -----------------------------------------------------------------------------------

    def forget_everything(self, paths: Iterable[Path]) -> None:
        """A mount of its own with an empty cache: the kernel's pages go with the mount before."""
        self.umount()
        put_aside(self._cache)
        self.mount()

    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        drop_pages(paths)

    def sync(self) -> None:
        """Returns when everything is in S3."""
        self._control.call("sync", inode=None)

    def settle(self) -> None:
        """Also what was read for the first time is in the cache, which it is not before the digest of the
        whole has been computed. Raises :class:`CommandFailed`."""
        self.sync()
        if not wait_until(self._has_filled, _COMMAND_TIMEOUT_S, _POLL_S):
            raise CommandFailed(f"{self.name}: files do not get into the cache")

    def _has_filled(self) -> bool:
        return not self._status()["tier"]["filling_files"]

    def usage(self) -> Usage:
        counts: Mapping[str, int] = self._status()["counts"]
        requests = {
            name.removeprefix("s3."): count for name, count in counts.items() if name.startswith("s3.")
        }
        return Usage(self._tree.cpu_s(), requests)

    def forget_peak_memory(self) -> None:
        self._tree.forget_peak_memory()

    def peak_memory_bytes(self) -> int | None:
        return self._tree.peak_memory_bytes()

    @property
    def _tree(self) -> Tree:
        assert self._process is not None, "not mounted"
        return Tree(self._process.pid)

    @property
    def _control(self) -> MountedVolume:
        return MountedVolume.of(self.directory)

    def _status(self) -> dict[str, Any]:
        """What ``s3blobfs status --json`` prints, without the start of a process."""
        return self._control.call("status")


@contextlib.contextmanager
def mounted(volume: Volume) -> Iterator[Volume]:
    """Make and mount it; behind the context nothing of it is mounted and no process is left."""
    try:
        volume.make()
        volume.mount()
        yield volume
        volume.umount()
    finally:
        volume.abandon()
