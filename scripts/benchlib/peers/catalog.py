"""The systems that are compared, by name: what they need, and how a turn of each begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchlib.peers.disk import Disk
from benchlib.peers.juicefs import JuiceFS
from benchlib.peers.ours import OurVolume
from benchlib.peers.raw import Obstore, S5cmd
from benchlib.peers.rclone import Rclone
from benchlib.peers.s3fs import S3fs
from benchlib.peers.system import Server, System
from benchlib.peers.tools import JUICEFS, RCLONE, REDIS, S3FS, S5CMD, WEED, Tool
from benchlib.peers.weed import WeedMount
from benchlib.place import Scale
from benchlib.volume import MODES

Raw = Obstore | S5cmd
Contender = System | Raw | Disk


@dataclass(frozen=True, slots=True)
class Entry:
    """A system in one table."""

    name: str
    make: Callable[[str, Path, Server, str, Scale], Contender]
    """Called with name, directory (which does not exist), server, name of the bucket, sizes."""
    tools: tuple[Tool, ...] = ()
    ours: bool = False
    limit: bool = False
    """Not compared with, but measured against: no filesystem, or none over S3."""
    speaks_s3: bool = True
    """Others cannot be held up by a proxy of S3 requests."""
    names_lag: bool = False
    """What it stored is on the disk of its database some time after it said so: a power failure may take it,
    objects or not."""

    def missing(self) -> list[Tool]:
        return [tool for tool in self.tools if tool.find() is None]


def _ours(mode: str, name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return OurVolume(name, MODES[mode], directory, server, bucket)


def _juicefs(
    redis: bool, writeback: bool, name: str, directory: Path, server: Server, bucket: str, scale: Scale
) -> Contender:
    return JuiceFS(name, directory, server, bucket, redis=redis, writeback=writeback)


def _rclone(behind: bool, name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return Rclone(name, directory, server, bucket, behind=behind)


def _s3fs(name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return S3fs(name, directory, server, bucket)


def _weed(name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return WeedMount(name, directory, server, bucket)


def _disk(name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    directory.mkdir()
    return Disk(name, directory)


def _obstore(name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return Obstore(server, bucket, scale)


def _s5cmd(name: str, directory: Path, server: Server, bucket: str, scale: Scale) -> Contender:
    return S5cmd(directory, server, bucket, scale)


_JUICEFS_REDIS = (JUICEFS, REDIS)
_ENTRIES = (
    Entry("s3blobfs-digest", partial(_ours, "digest"), ours=True),
    Entry("s3blobfs-versioned", partial(_ours, "versioned"), ours=True),
    Entry("s3blobfs-digest-disk", partial(_ours, "digest-disk"), ours=True),
    Entry("s3blobfs-versioned-disk", partial(_ours, "versioned-disk"), ours=True),
    Entry("juicefs-sqlite", partial(_juicefs, False, False), (JUICEFS,), names_lag=True),
    Entry("juicefs-redis", partial(_juicefs, True, False), _JUICEFS_REDIS, names_lag=True),
    Entry("rclone", partial(_rclone, False), (RCLONE,)),
    Entry("s3fs", _s3fs, (S3FS,)),
    Entry("weed-mount", _weed, (WEED,), speaks_s3=False),
    Entry("disk", _disk, limit=True),
    Entry("obstore", _obstore, limit=True),
    Entry("s5cmd", _s5cmd, (S5CMD,), limit=True),
)
STORED: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""Rows that write end when the data is in S3."""

BEHIND: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        STORED["s3blobfs-digest-disk"],
        STORED["s3blobfs-versioned-disk"],
        Entry("juicefs-sqlite-writeback", partial(_juicefs, False, True), (JUICEFS,), names_lag=True),
        Entry("juicefs-redis-writeback", partial(_juicefs, True, True), _JUICEFS_REDIS, names_lag=True),
        Entry("rclone-default", partial(_rclone, True), (RCLONE,)),
        STORED["disk"],
    )
}
"""Rows that write end when close(2) returns, and the upload runs behind."""
