"""What is in the uploader's queue, what bounds it, and what others are told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import trio

from s3blobfs.config import QueueOptions
from s3blobfs.index.inodes import InodeRow
from s3blobfs.tier.cache import CacheEntry
from s3blobfs.types import BlobContent
from s3blobfs.writeback.early import EarlyLimits
from s3blobfs.writeback.schedule import Backoff, ScheduleLimits
from s3blobfs.writeback.tickets import UploadTicket
from s3blobfs.writeback.transfer import Content


class UploadListener(Protocol):
    """Who wants to know that a content is in S3 now."""

    def stored(self, upload_id: int, inode: InodeRow, blob: BlobContent, entry: CacheEntry | None) -> None:
        """Called once per upload that became its inode's content, after the commit and before anyone who
        waits for it is told. ``entry`` is the staged file's place in the cache, if it has one."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much waits, and how much is under way."""

    queue: QueueOptions = field(default_factory=QueueOptions)
    schedule: ScheduleLimits = field(default_factory=ScheduleLimits)
    early: EarlyLimits = field(default_factory=EarlyLimits)
    transient: Backoff = field(default_factory=lambda: Backoff(first_s=1.0, longest_s=60.0))
    patient: bool = False
    """Nobody waits for uploads: small contents wait for others to go with."""
    permanent: Backoff = field(default_factory=lambda: Backoff(first_s=15.0, longest_s=600.0))


@dataclass(frozen=True, slots=True)
class PendingUploads:
    """What is not in S3 yet."""

    files: int
    bytes: int
    oldest_ns: int | None
    """When the one that waits longest was sealed."""
    in_flight: int
    last_error: str | None
    """Of the uploads that failed and wait for their next attempt, the latest error."""


@dataclass(eq=False, slots=True)
class Job(Content):
    """An upload in the queue."""

    tickets: list[UploadTicket] = field(default_factory=list)
    """Its own, and those of contents it took the place of."""
    failures: int = 0
    logged: str = ""
    forgotten: bool = False
    """Nobody wants the content any more; its journal row is gone."""
    giving_way: bool = False
    """All that is left to do is to look for what a PUT in doubt has left."""
    since: float = 0.0
    """On trio's clock: when it was sealed."""
    tried: trio.Event = field(default_factory=trio.Event)
    """It is over, or has once tried in vain to give way."""

    @property
    def what(self) -> str:
        return f"upload {self.upload.id} of inode {self.upload.inode_id}"
