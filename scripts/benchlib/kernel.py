"""How settings of the kernel's side of FUSE change the speed: the grounds for those that are shipped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchlib.place import Place, Scale
from benchlib.results import Results
from benchlib.row import Row
from benchlib.run import measure_round
from benchlib.server import s3_server
from benchlib.volume import CommandFailed, Mode, Volume, mounted
from s3blobfs.types import Durability, Keying
from s3blobfs.volume.mountpoint import State, state_of

_START_TIMEOUT_S = 30.0
_POLL_S = 0.02

KERNEL_ROWS = (
    *("large-write", "large-write-pieces", "large-read-cold", "large-read-local", "large-read-kernel"),
    *("random-read-local", "append", "small-write", "small-read-local", "small-read-kernel"),
    *("list-hot", "rename-tree"),
)
"""Those that a setting can change."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from a mount as it is shipped; ``None``: nothing."""

    writeback_cache: bool = False
    """Writes end in the kernel's cache, and reach the filesystem when the file is closed."""
    timeout_s: float | None = None
    """How long names and attributes are good."""
    keep_cache: bool | None = None
    """Whether an open file keeps the pages of its last use, whatever has become of it."""
    read_ahead_kib: int | None = None
    options: tuple[str, ...] = ()
    """Of the command ``mount``."""


SETTINGS = {
    "as-shipped": Setting(),
    "writeback-cache": Setting(writeback_cache=True),
    "timeouts-0": Setting(timeout_s=0),
    "timeouts-1": Setting(timeout_s=1),
    "keep-cache-never": Setting(keep_cache=False),
    "keep-cache-always": Setting(keep_cache=True),
    "no-extension": Setting(options=("--fuse-extension=off",)),
    "timeouts-0-no-extension": Setting(timeout_s=0, options=("--fuse-extension=off",)),
    "read-ahead-128k": Setting(read_ahead_kib=128),
    "read-ahead-1m": Setting(read_ahead_kib=1024),
    "read-ahead-4m": Setting(read_ahead_kib=4096),
}
"""The first is what the others are compared with."""


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    device = mountpoint.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    path.write_text(str(kib))


class TriedVolume(Volume):
    """A volume that is mounted with a setting."""

    def __init__(self, name: str, directory: Path, endpoint_url: str) -> None:
        super().__init__(
            Mode(Keying.DIGEST, True, Durability.DISK), directory, endpoint_url, bucket=f"bench-{name}"
        )
        self.name = name
        self._setting = SETTINGS[name]
        self._log = directory / "log"
        self._served_by: subprocess.Popen[bytes] | None = None

    def _start(self, arguments: list[str]) -> None:
        """In the foreground of a process in the background: it is another program."""
        command = [sys.executable, "-m", "benchlib.tried_mount", self.name, "mount", "--foreground"]
        scripts = str(Path(__file__).parent.parent)
        with self._log.open("ab") as log:
            process = self._served_by = subprocess.Popen(
                [*command, *self._setting.options, *arguments],
                env={**self._environment, "PYTHONPATH": scripts},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_mounted(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if self._setting.read_ahead_kib is not None:
            set_read_ahead(self.directory, self._setting.read_ahead_kib)

    def _wait_until_mounted(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while state_of(self.directory) is not State.MOUNTED:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"mounting for {self.name} failed; {self._log.read_text()[-2000:]}")
            time.sleep(_POLL_S)

    def umount(self) -> None:
        super().umount()
        if self._served_by is not None:
            self._served_by.wait(_START_TIMEOUT_S)


def run_settings(
    directory: Path,
    settings: Sequence[str],
    rows: Sequence[Row],
    scale: Scale,
    rounds: int,
    say: Callable[[str], None],
) -> Results:
    """Measure every setting on a volume of its own, with durability ``disk``: S3 is not asked about."""
    results = Results({row.name: row.unit for row in rows})
    with ExitStack() as stack:
        server = stack.enter_context(s3_server(directory / "server"))
        volumes = [
            stack.enter_context(mounted(TriedVolume(name, directory / name, server.endpoint_url)))
            for name in settings
        ]
        for number in range(rounds):
            places = [Place(volume, scale, number) for volume in volumes]
            measure_round(results, places, rows, number, say)
    return results
