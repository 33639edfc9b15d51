"""The command ``s3blobfs`` as users run it: in processes of its own, with mounts that are cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3blobfs.demo.process import ProcessId
from s3blobfs.volume.paths import VolumePaths
from tests.support.commands import COMMAND, end_mount, process_behind, run_s3blobfs
from tests.support.servers import S3Server

__all__ = ["COMMAND", "CommandLine", "Outcome", "command_line", "run_command"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error, without the name of the program."""
        (line,) = self.err.splitlines()
        assert line.startswith("s3blobfs: "), line
        return line.removeprefix("s3blobfs: ")


def run_command(
    *arguments: str | Path, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run ``s3blobfs ARGUMENTS``; never a traceback, whatever happens."""
    done = run_s3blobfs(*arguments, environment={**os.environ, **(environment or {})}, cwd=cwd)
    return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass
class CommandLine:
    """A volume below ``directory`` on ``server``, handled by commands."""

    directory: Path
    server: S3Server
    uri: str
    endpoint_url: str = field(init=False)

    def __post_init__(self) -> None:
        self.endpoint_url = self.server.endpoint_url
        self.mountpoint = self.directory / "mnt"
        self.mountpoint.mkdir(parents=True)
        self.paths = VolumePaths(self.directory / "index.db")

    def run(self, *arguments: str | Path) -> Outcome:
        return run_command(*arguments, environment=self.server.environment)

    def ok(self, *arguments: str | Path) -> str:
        """The output of a command that must succeed."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, f"{arguments}: {outcome.err}\n{self.log()}"
        return outcome.out

    def refused(self, *arguments: str | Path) -> str:
        """The one line of a command that must fail."""
        outcome = self.run(*arguments)
        assert outcome.code == 1, f"{arguments}: {outcome}"
        return outcome.line

    @property
    def s3(self) -> tuple[str, ...]:
        """Options of mkfs and mount."""
        return ("--endpoint-url", self.endpoint_url, "--index", str(self.paths.index))

    def mkfs(self, *options: str) -> str:
        return self.ok("mkfs", self.uri, *self.s3, *options)

    def mount(self, *options: str) -> None:
        self.ok("mount", self.uri, self.mountpoint, *self.s3, *options)

    def umount(self) -> None:
        self.ok("umount", self.mountpoint)

    def status(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self.ok("status", self.mountpoint, "--json"))
        return description

    def daemon(self) -> ProcessId:
        """The process behind the mount."""
        process = process_behind(self.paths)
        assert process is not None, "nothing holds the volume"
        return process

    def log(self) -> str:
        return self.paths.log.read_text() if self.paths.log.exists() else ""

    def clean_up(self) -> None:
        end_mount(self.paths, self.mountpoint)


@contextlib.contextmanager
def command_line(directory: Path, server: S3Server, uri: str) -> Iterator[CommandLine]:
    volume = CommandLine(directory, server, uri)
    try:
        yield volume
    finally:
        volume.clean_up()
