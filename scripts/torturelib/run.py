"""One volume under torture: load, faults and kills for a time, then the comparison."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from s3blobfs.control.client import MountedVolume as Control
from tests.support.bucket import sweep
from tests.support.mounted import MountedVolume
from tests.support.proxy import RecordingProxy
from tests.support.servers import S3Server
from torturelib.faults import Storm
from torturelib.ledger import Ledger, Loss, Promise
from torturelib.load import OTHER, Gate, Worker
from torturelib.witness import Witness

WORKERS = 4
AWAY_S = 3.0
AWAY_ONE_IN = 3
"""Before so many kills the server is away for a while."""
AGAIN_ONE_IN = 3
"""After so many kills the next mount is killed at once, with what it has just recovered."""

MODES = {
    "versioned, cached, durability s3": ("versioned", "--cache", "s3"),
    "digest, uncached, durability disk": ("digest", "--no-cache", "disk"),
    "digest, cached, durability s3": ("digest", "--cache", "s3"),
    "versioned, uncached, durability disk": ("versioned", "--no-cache", "disk"),
}
EXPECTED_LOGS = ("is tried again", "stay in the bucket for now", "is not the stored one")
"""What the mount may say of faults at WARNING and above."""


@dataclass
class Figures:
    """Of one volume, or of all of them."""

    kills: int = 0
    seconds: float = 0.0
    bytes_written: int = 0
    bytes_compared: int = 0
    files_compared: int = 0
    asked: int = 0
    """How often another client looked for an object that a call promised."""
    versions: int = 0
    """In the buckets in the end, each named by the index."""
    longest_call_s: float = 0.0
    swept: Counter[str] = field(default_factory=Counter)
    """What gc deleted, by kind."""
    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[Promise] = field(default_factory=Counter)
    losses: list[Loss] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Errors that programs saw, or lines in a mount's log, that should not have been."""

    def add(self, other: Figures) -> None:
        for name in self.__dataclass_fields__:
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, others) if name == "longest_call_s" else mine + others)


def torture(
    server: S3Server,
    mode: str,
    bucket: str,
    seconds: float,
    kill_every_s: float,
    seed: int,
    say: Callable[[str], None],
) -> Figures:
    """Make a volume, and see what of it is left. Raises ``AssertionError`` when index and bucket do not
    agree, or the index is not whole."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-torture-"))
    keying, cache, durability = MODES[mode]
    with RecordingProxy(server.endpoint_url) as proxy:
        storm = Storm(seed)
        storm.calm.set()
        proxy.add_rule(storm)
        volume = MountedVolume(
            server,
            bucket,
            directory,
            mkfs_options=("--mode", keying, cache, "--durability", durability),
            mount_options=("--request-timeout=2", "--total-timeout=8"),
            endpoint_url=proxy.url,
            expected_logs=list(EXPECTED_LOGS),
        )
        try:
            volume.mkfs()
            volume.mount()
            return _Torture(volume, durability, storm, seed, say).run(seconds, kill_every_s)
        except BaseException:
            print(volume.log_text(), file=sys.stderr)
            raise
        finally:
            volume.abandon()
            shutil.rmtree(directory)


class _Torture:
    def __init__(
        self, volume: MountedVolume, durability: str, storm: Storm, seed: int, say: Callable[[str], None]
    ) -> None:
        self._volume = volume
        self._storm = storm
        self._say = say
        self._random = random.Random(seed)
        self._ledger = Ledger(volume.mountpoint, durability)
        self._gate = Gate()
        self._witness = Witness(volume)
        root = volume.mountpoint
        self._workers = [
            Worker(number, seed + number, root, self._ledger, self._gate, self._witness)
            for number in range(WORKERS)
        ]
        self._figures = Figures()

    def run(self, seconds: float, kill_every_s: float) -> Figures:
        self._make_directories()
        started = time.monotonic()
        ends = started + seconds
        self._storm.calm.clear()
        for worker in self._workers:
            worker.start()
        try:
            while (left_s := ends - time.monotonic()) > 0:
                pause_s = self._random.uniform(0.2, 1.8) * kill_every_s
                time.sleep(min(pause_s, left_s))
                self._bad_luck()
        finally:
            for worker in self._workers:
                worker.stop()
            self._gate.open()
        for worker in self._workers:
            worker.join()
        self._figures.seconds = time.monotonic() - started
        self._compare_in_the_end()
        return self._sum_up()

    def _make_directories(self) -> None:
        """Of each thread one in the first store, and below it one in the second."""
        volume, root = self._volume, self._volume.mountpoint
        for worker in self._workers:
            (root / worker.directory / OTHER).mkdir(parents=True)
        first, *others = (root / worker.directory / OTHER for worker in self._workers)
        keying, cache = volume.mkfs_options[1], volume.mkfs_options[2]
        where = f"{volume.uri}/{OTHER}"
        volume.command("store", "add", root, OTHER, where, "--mode", keying, cache, "--at", first)
        for directory in others:
            volume.command("store", "bind", directory, OTHER)
        Control.of(root).call("sync", inode=None)

    def _bad_luck(self) -> None:
        if self._random.randrange(AWAY_ONE_IN) == 0:
            self._storm.away.set()
            time.sleep(AWAY_S)
            self._storm.away.clear()
        self._kill()
        if self._random.randrange(AGAIN_ONE_IN) == 0:
            self._mount_calmly()
            self._storm.calm.clear()
            time.sleep(self._random.uniform(0.0, 1.0))
            self._kill()
        self._mount_calmly()
        self._ledger.compare()
        self._say(f"kill {self._figures.kills}: {len(self._ledger.allowed)} files compared")
        self._storm.calm.clear()
        self._gate.open()

    def _kill(self) -> None:
        pid = Control.of(self._volume.mountpoint).call("status")["mount"]["pid"]
        self._gate.shut()
        self._volume.kill_process(pid)
        self._gate.close()
        self._volume.bury(pid)
        self._figures.kills += 1
        self._volume.check()

    def _mount_calmly(self) -> None:
        self._storm.calm.set()
        self._volume.mount()

    def _compare_in_the_end(self) -> None:
        volume = self._volume
        self._storm.calm.set()
        self._ledger.compare()
        volume.umount()
        shutil.rmtree(volume.directory / "index.db.tier")
        volume.mount()
        self._ledger.compare()  # by bytes that come from S3
        volume.umount()
        volume.tool("fsck")
        swept = sweep(volume)
        self._figures.versions = swept.versions
        self._figures.swept = Counter(swept.deleted)

    def _sum_up(self) -> Figures:
        figures, ledger = self._figures, self._ledger
        figures.bytes_compared = ledger.bytes_compared
        figures.files_compared = ledger.files_compared
        figures.acknowledged = ledger.acknowledged
        figures.losses = ledger.losses
        figures.faults = self._storm.counts
        figures.asked = self._witness.asked
        self._witness.close()
        for worker in self._workers:
            figures.bytes_written += worker.bytes_written
            figures.calls += worker.counts
            figures.unexpected += worker.unexpected
            figures.longest_call_s = max(figures.longest_call_s, worker.longest_s)
        figures.unexpected += self._volume.unexpected_logs()
        return figures
