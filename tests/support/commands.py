"""Running ``s3blobfs`` as users do, in a process of its own, and ending what it left mounted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from s3blobfs.demo.process import ProcessId
from s3blobfs.volume.lock import find_holder
from s3blobfs.volume.mountpoint import State, state_of
from s3blobfs.volume.paths import VolumePaths

COMMAND = (sys.executable, "-P", "-m", "s3blobfs")
COMMAND_TIMEOUT_S = 90.0
END_TIMEOUT_S = 30.0


def run_s3blobfs(
    *arguments: str | Path, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``s3blobfs ARGUMENTS``; never a traceback, whatever happens. Output that is no UTF-8 is decoded as
    names of files are."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment,
        cwd=cwd,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def process_behind(paths: VolumePaths) -> ProcessId | None:
    """Of the mount that holds the volume."""
    holder = find_holder(paths.lock)
    return ProcessId.of(holder.pid) if holder is not None else None


def end_mount(paths: VolumePaths, mountpoint: Path) -> None:
    """Nothing stays mounted and nothing runs, whatever a test left."""
    process = process_behind(paths)
    if process is not None:
        process.end(END_TIMEOUT_S)
    if state_of(mountpoint) is not State.FREE:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)
