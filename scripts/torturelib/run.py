"""One volume under torture: load, faults and kills for a time, then the comparison."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from s3blobfs.control.client import MountedVolume as Control
from tests.crash.kit import blobs_of, objects_of
from tests.support.mounted import MountedVolume
from tests.support.proxy import RecordingProxy
from tests.support.servers import S3Server
from torturelib.faults import Storm
from torturelib.ledger import Ledger
from torturelib.load import Gate, Worker

WORKERS = 4
KILL_EVERY_S = (6.0, 14.0)
AWAY_S = 3.0

MODES = {
    "versioned, cached, durability s3": ("--mode", "versioned", "--cache", "--durability", "s3"),
    "digest, uncached, durability disk": ("--mode", "digest", "--no-cache", "--durability", "disk"),
    "digest, cached, durability s3": ("--mode", "digest", "--cache", "--durability", "s3"),
    "versioned, uncached, durability disk": ("--mode", "versioned", "--no-cache", "--durability", "disk"),
}


@dataclass
class Figures:
    """Of one volume, or of all of them."""

    kills: int = 0
    seconds: float = 0.0
    bytes_written: int = 0
    bytes_compared: int = 0
    files_compared: int = 0
    versions: int = 0
    strays: int = 0
    """Objects that no row of the index names."""
    missing: int = 0
    """Rows of the index that name no object."""
    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Errors that programs saw and should not have."""

    def add(self, other: Figures) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def torture(
    server: S3Server, mode: str, bucket: str, seconds: float, seed: int, say: Callable[[str], None]
) -> Figures:
    """Make a volume, and see what of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-torture-"))
    with RecordingProxy(server.endpoint_url) as proxy:
        storm = Storm(seed)
        storm.calm.set()
        proxy.add_rule(storm)
        volume = MountedVolume(
            server,
            bucket,
            directory,
            mkfs_options=MODES[mode],
            mount_options=("--request-timeout=2", "--total-timeout=8"),
            endpoint_url=proxy.url,
        )
        try:
            volume.mkfs()
            volume.mount()
            return _Torture(volume, storm, seed, say).run(seconds)
        finally:
            volume.abandon()
            shutil.rmtree(directory)


class _Torture:
    def __init__(self, volume: MountedVolume, storm: Storm, seed: int, say: Callable[[str], None]) -> None:
        self._volume = volume
        self._storm = storm
        self._say = say
        self._random = random.Random(seed)
        self._ledger = Ledger(volume.mountpoint)
        self._gate = Gate()
        root = volume.mountpoint
        self._workers = [
            Worker(number, seed + number, root, self._ledger, self._gate) for number in range(WORKERS)
        ]
        self._figures = Figures()

    def run(self, seconds: float) -> Figures:
        started = time.monotonic()
        for number in range(WORKERS):
            (self._volume.mountpoint / f"w{number}").mkdir()
        Control.of(self._volume.mountpoint).call("sync", inode=None)
        self._storm.calm.clear()
        for worker in self._workers:
            worker.start()
        try:
            while time.monotonic() - started < seconds:
                self._bad_luck()
        finally:
            for worker in self._workers:
                worker.stop()
            self._gate.open()
        for worker in self._workers:
            worker.join()
        self._compare_in_the_end()
        return self._sum_up(time.monotonic() - started)

    def _bad_luck(self) -> None:
        time.sleep(self._random.uniform(*KILL_EVERY_S))
        if self._random.random() < 0.3:
            self._storm.away.set()
            time.sleep(AWAY_S)
            self._storm.away.clear()
        pid = Control.of(self._volume.mountpoint).call("status")["mount"]["pid"]
        self._gate.shut()
        self._volume.kill_process(pid)
        self._gate.close()
        self._volume.bury(pid)
        self._figures.kills += 1
        self._volume.check()
        self._storm.calm.set()
        self._volume.mount()
        self._ledger.compare()
        self._say(f"kill {self._figures.kills}: {len(self._ledger.allowed)} files compared")
        self._storm.calm.clear()
        self._gate.open()

    def _compare_in_the_end(self) -> None:
        volume = self._volume
        self._storm.calm.set()
        self._ledger.compare()
        volume.umount()
        shutil.rmtree(volume.directory / "index.db.tier")
        volume.mount()
        self._ledger.compare()  # by bytes that come from S3
        volume.umount()
        volume.check()
        explained, needed = blobs_of(volume)
        found = objects_of(volume)
        self._figures.versions = len(found)
        self._figures.missing = len(needed - found)
        self._figures.strays = len(found - explained)

    def _sum_up(self, seconds: float) -> Figures:
        figures, ledger = self._figures, self._ledger
        figures.seconds = seconds
        figures.bytes_compared = ledger.bytes_compared
        figures.files_compared = ledger.files_compared
        figures.losses = ledger.losses
        figures.faults = self._storm.counts
        for worker in self._workers:
            figures.bytes_written += worker.bytes_written
            figures.calls += worker.counts
            figures.unexpected += worker.unexpected
        return figures
