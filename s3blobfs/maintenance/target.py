"""What the tools work on: the parts of one volume, whoever opened them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio.lowlevel

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import VolumeSettings
from s3blobfs.errors import UsageError, VolumeIndexError
from s3blobfs.index.database import Database
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.tier.tier import Tier
from s3blobfs.types import BlobContent
from s3blobfs.volume.clients import BucketClients
from s3blobfs.writeback.reaper import Reaper

Json = dict[str, Any]
Progress = Callable[[Json], None]
"""Told how far a tool is; called often, and must not block."""
Lister = Callable[[Json], Awaitable[None]]
"""Takes one entry of a list that may be long."""


def silent(_: Json) -> None:
    """Nobody wants to know."""


def ignore_blob(_: BlobContent) -> None:
    """Nobody has a copy of what the index says."""


@dataclass(frozen=True, slots=True)
class Target:
    """An open volume. Nobody else writes to it: either this process has it mounted, or it holds the lock."""

    settings: VolumeSettings
    db: Database
    tier: Tier
    stores: Mapping[int, BlobStore]
    clients: BucketClients
    reaper: Reaper
    mounted: bool
    """Whether it is in use meanwhile."""
    read_only: bool = False
    blob_changed: Callable[[BlobContent], None] = ignore_blob
    """Told of a blob whose object was made anew, perhaps elsewhere: who keeps a copy of the row has to take
    this one."""
    shipped: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    """Returns when the bucket's copy of the index has everything that was written; raises
    :class:`~s3blobfs.errors.IndexFenced` when another mount has gone on with the volume."""
    sent_early: Callable[[], frozenset[tuple[int, str]]] = frozenset
    """Objects to be that have no journal row yet, though parts of them are sent: store id, and the key
    without the store's prefix."""
    index_copy: Shipper | None = None
    """Keeps the copy of the index in the bucket; ``None`` where nobody does."""
    now_ns: Callable[[], int] = time.time_ns
    """The clock of the index."""

    def client_of(self, store_id: int) -> ObjectClient:
        """Of the bucket that a store is in. Raises :class:`~s3blobfs.errors.VolumeIndexError` for a store
        that the index does not know."""
        store = self.stores.get(store_id)
        if store is None:
            raise VolumeIndexError(
                f"contents are in store {store_id}, which the index does not know: run fsck"
            )
        return self.clients.of(store.config.bucket)

    def refuse_if_read_only(self, what: str) -> None:
        if self.read_only:
            raise UsageError(
                f"{what} needs to write to the index, and the mount is read-only: mount without it"
            )
