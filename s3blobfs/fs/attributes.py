"""What the filesystem answers about an inode, who asks, and what a caller may change."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 512
"""The unit of ``st_blocks`` (stat(2))."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: the effective ids the kernel tells with each request."""

    uid: int
    gid: int
    pid: int = 0
    groups: frozenset[int] = frozenset()
    """Supplementary groups, where the call needs them."""
    umask: int = 0
    """For calls that make something: it counts where no default ACL is inherited."""

    @property
    def privileged(self) -> bool:
        return self.uid == 0

    def in_group(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


class Attributes(NamedTuple):
    """The answer of getattr: stat(2) less what the FUSE layer adds (timeouts)."""

    inode_id: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int
    """Of ``BLOCK_BYTES``."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """The fields a setattr asks to change; ``None`` leaves one as it is. Times are in nanoseconds."""

    mode: int | None = None
    """Permission bits only."""
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    drops_set_id: bool = False
    """Set-user-ID and set-group-ID bits go, where the file is no directory and no mode is given."""

    @property
    def touches_row(self) -> bool:
        """Whether anything but the size is to change, set-id bits apart."""
        return any(
            value is not None
            for value in (self.mode, self.uid, self.gid, self.atime_ns, self.mtime_ns, self.ctime_ns)
        )


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    """The answer of statfs, in bytes and inodes."""

    used_bytes: int
    used_inodes: int
    free_bytes: int
    free_inodes: int
