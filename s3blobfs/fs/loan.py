"""A file of the cache that the kernel reads by itself: a record. What happens to it is in ``lending.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from s3blobfs.tier.cache import CacheEntry
from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import BlobContent


class BackingFiles(Protocol):
    """The kernel, as far as it reads local files by itself for those who open ours."""

    def register(self, fd: int) -> int:
        """Let it use an open file; answers the number to name that by. ``OSError`` when it refuses."""
        ...

    def forget(self, number: int) -> None:
        """The number is not named any more. Who reads the file goes on doing so."""
        ...


@dataclass(slots=True)
class Loan:
    """Of one inode, while handles of it are lent a file, and as long as mappings made by them may live.

    It begins as an entry of the cache, which does not change. Before the first change it becomes *live*: the
    same file, taken from the cache into the staging directory, from then on has what the inode has."""

    number: int
    """By which the kernel knows the file."""
    blob: BlobContent
    """What the inode had when it began."""
    entry: CacheEntry | None
    """Pinned; set until the loan is live."""
    live: StagedFile | None = None
    """Pinned; set from then on. It is the inode's staged file exactly while the content is ``DIRTY``."""
    handles: int = 0
    """That were answered with the number and are open."""
    mappable: bool = False
    """A handle could map the live file for writing: stores may come unseen, also when it is closed. From the
    beginning of that to the end of the loan the file has a journal row, so that a mount which is killed
    loses nothing that msync(2) brought to the disk."""
    pristine: bool = True
    """The file still has the bytes of ``blob``."""

    @property
    def fd(self) -> int:
        """Of the one open file that this process has of it."""
        if self.live is not None:
            return self.live.fd
        assert self.entry is not None
        return self.entry.fd
