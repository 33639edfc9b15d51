"""The composition root of the tools that work on a volume which nobody has mounted.

As a mount does, they hold the volume's lock, compare the index with the bucket's description of the volume,
and claim its local tier. Nothing is recovered and nothing uploaded: what is staged waits for the next mount.
"""

from __future__ import annotations

import enum
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from s3blobfs.blobstore.open import open_store
from s3blobfs.config import IndexCopyOptions, ReadOptions, S3Options, TierOptions
from s3blobfs.errors import ObjectStoreError, S3BlobFSError, UsageError, VolumeInUse
from s3blobfs.index import settings, stores, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.target import Target
from s3blobfs.replica.opening import open_shipper
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.client import make_client_factory
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Tracer
from s3blobfs.volume.clients import BucketClients
from s3blobfs.volume.descriptor import VolumeDescriptor, compare
from s3blobfs.volume.lock import LockHolder, VolumeLock, find_holder
from s3blobfs.volume.paths import VolumePaths
from s3blobfs.volume.tier_mark import claim_tier
from s3blobfs.writeback.reaper import Reaper

T = TypeVar("T")

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NO_LIMIT_BYTES = 2**62
"""Of the cache, which only a mount has reason to make smaller."""
_FOR_EVER_S = 2.0**32


class IndexCopy(enum.Enum):
    """What becomes of the copy of the index in the bucket."""

    IGNORED = "ignored"
    """For fsck: a damaged index is not to be sent. The next mount sees that it changed, and sends it all."""
    COMPARED = "compared"
    """Nothing is written; but an index that is behind the bucket would explain too little."""
    KEPT = "kept"
    """What is written is sent, as by a mount."""


@dataclass(frozen=True, slots=True)
class OfflineVolume:
    """What is to be opened."""

    descriptor: VolumeDescriptor
    """As the bucket has it."""
    index_path: Path
    tier_directory: Path
    s3: S3Options
    purpose: str
    """The command, for whoever meets the lock."""
    index_copy: IndexCopy


async def run_offline(volume: OfflineVolume, tool: Callable[[Target], Awaitable[T]]) -> T:
    """Open the volume and run ``tool`` on it. A signal cancels it; :class:`KeyboardInterrupt` is raised when
    everything is closed.

    Raises :class:`~s3blobfs.errors.VolumeInUse`, naming the mountpoint where there is one, and what opening
    and the tool raise."""
    paths = VolumePaths(volume.index_path)
    try:
        lock = VolumeLock(paths.lock, LockHolder.this_process(volume.purpose))
    except VolumeInUse:
        holder = find_holder(paths.lock)
        if holder is None or not holder.mountpoint:
            raise
        raise VolumeInUse(
            f"the volume is mounted at {holder.mountpoint}: s3blobfs {volume.purpose} {holder.mountpoint}"
        ) from None
    with lock:
        return await _interruptible(lambda: _run(volume, tool))


async def _interruptible(function: Callable[[], Awaitable[T]]) -> T:
    results: list[T] = []
    failures: list[S3BlobFSError] = []
    interrupted = False

    async def run(scope: trio.CancelScope) -> None:
        try:
            results.append(await function())
        except* S3BlobFSError as group:
            failures.append(_first(group))
        scope.cancel()

    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, nursery.cancel_scope)
            async for _ in signals:
                interrupted = True
                nursery.cancel_scope.cancel()
    if interrupted:
        # A failure beside it is what being cancelled brought about.
        raise KeyboardInterrupt from next(iter(failures), None)
    if failures:
        raise failures[0]
    return results[0]


def _first(group: BaseExceptionGroup[S3BlobFSError]) -> S3BlobFSError:
    """The rest is what the first one's end brought about."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _run(volume: OfflineVolume, tool: Callable[[Target], Awaitable[T]]) -> T:
    tracer = Tracer()
    async with AsyncExitStack() as stack:
        factory = await trio.to_thread.run_sync(make_client_factory, volume.s3, tracer)
        stack.push_async_callback(factory.aclose)
        clients = BucketClients(factory)
        stack.push_async_callback(clients.aclose)
        # Not looked over: fsck is for indexes that a mount would refuse.
        db = Database.open(volume.index_path, tracer=tracer, damaged=True)
        stack.push_async_callback(db.aclose)

        def read(tx: Transaction) -> VolumeDescriptor:
            return VolumeDescriptor(settings.load(tx), tuple(stores.every(tx)))

        described = await db.read(read)
        compare(volume.descriptor, described)
        staged = await db.read(uploads.pending)
        if staged.files and not volume.tier_directory.exists():
            raise UsageError(
                f"{staged.files} files are staged and not in S3 yet, but not in {volume.tier_directory}: give"
                " the --cache-dir that the mount had"
            )
        tier = Tier(
            TierOptions(volume.tier_directory, size_limit_bytes=_NO_LIMIT_BYTES, min_free_bytes=0),
            ReadOptions(),
            tracer,
        )
        stack.push_async_callback(tier.aclose)
        await tier.start()
        claim_tier(volume.tier_directory, described.settings.volume_id, staged.files)
        opened = {
            config.id: open_store(config, clients.of(config.bucket), tracer) for config in described.stores
        }
        shipper: Shipper | None = None
        if volume.index_copy is not IndexCopy.IGNORED:
            shipper = await open_shipper(
                db,
                clients.of(described.settings.bucket),
                described.settings,
                # Old segments are the mount's to remove: only that knows for how long they are kept.
                options=IndexCopyOptions(retention_s=_FOR_EVER_S),
                conditional=described.stores[0].conditional_put,
                directory=VolumePaths(volume.index_path).index_copy,
                on_fenced=_ignore,  # the index refuses to be written to, and that ends the tool
            )
        shipped = trio.lowlevel.checkpoint
        if shipper is not None and volume.index_copy is IndexCopy.KEPT:
            shipped = shipper.shipped
        target = Target(
            settings=described.settings,
            db=db,
            tier=tier,
            stores=opened,
            clients=clients,
            reaper=Reaper(
                db, tier, opened, garbage_grace_s=described.settings.garbage_grace_s, shipped=shipped
            ),
            mounted=False,
            shipped=shipped,
            index_copy=shipper if volume.index_copy is IndexCopy.KEPT else None,
        )
        async with trio.open_nursery() as background:
            await background.start(db.run)
            await background.start(tier.run)
            if shipper is not None and volume.index_copy is IndexCopy.KEPT:
                await background.start(shipper.run)
            result = await tool(target)
            await _ship(shipped)
            background.cancel_scope.cancel()
        return result


async def _ship(shipped: Callable[[], Awaitable[None]]) -> None:
    try:
        await shipped()
    except ObjectStoreError as error:
        logger.warning("the next mount brings the bucket's copy of the index up to date: %s", error)


def _ignore(reason: str) -> None:
    pass
