"""A whole filesystem over the in-memory S3, without FUSE: for tests that call its operations directly.

Every rig that closes in order has its index checked: ``check()`` must find nothing.
"""

from __future__ import annotations

import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import MIB, AccessTimes, QueueOptions, ReadOptions, TierOptions
from s3blobfs.fs.attributes import Attributes, Caller
from s3blobfs.fs.facade import Filesystem
from s3blobfs.index import inodes, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultyObjectClient
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Tracer
from s3blobfs.types import DigestAlgorithm, Durability, Keying
from s3blobfs.writeback.early import EarlyLimits
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.recovery import recover
from s3blobfs.writeback.uploader import Limits, Uploader

BUCKET = "bucket"
ROOT = inodes.ROOT_INODE_ID
USER = Caller(uid=1000, gid=1000)


@dataclass(frozen=True)
class Setup:
    """What a rig is made from; the same setup opened again is a remount."""

    directory: Path
    keying: Keying = Keying.DIGEST
    cached: bool = True
    durability: Durability = Durability.S3
    cache_bytes: int = 256 * MIB
    queue: QueueOptions = field(default_factory=QueueOptions)
    early: EarlyLimits = field(default_factory=EarlyLimits)
    read: ReadOptions = field(default_factory=ReadOptions)
    server: FakeS3 = field(default_factory=FakeS3)
    grace_s: float = 3600.0
    access_times: AccessTimes = field(default_factory=AccessTimes)
    now_ns: Callable[[], int] = time.time_ns

    @property
    def index_path(self) -> Path:
        return self.directory / "index.db"


@dataclass
class Rig:
    setup: Setup
    fs: Filesystem
    db: Database
    tier: Tier
    tracer: Tracer
    reaper: Reaper
    faults: FaultyObjectClient
    stores: dict[int, BlobStore]

    # -- conveniences for tests ------------------------------------------------------------------------

    async def write_file(self, name: bytes, data: bytes, parent: int = ROOT) -> Attributes:
        """Create or overwrite, write, close."""
        found = await self.fs.lookup(parent, name)
        if found is None:
            opened, found = await self.fs.create(parent, name, 0o644, 0o1 | 0o100, USER)
        else:
            opened = await self.fs.open(found.inode_id, 0o1 | 0o1000)
        if data:
            await self.fs.write(opened.handle, 0, data)
        await self.fs.flush(opened.handle)
        await self.fs.release(opened.handle)
        return await self.fs.getattr(found.inode_id)

    async def read_file(self, name: bytes, parent: int = ROOT) -> bytes:
        found = await self.fs.lookup(parent, name)
        assert found is not None, name
        opened = await self.fs.open(found.inode_id, 0)
        try:
            return bytes(await self.fs.read(opened.handle, 0, found.size_bytes + 1))
        finally:
            await self.fs.flush(opened.handle)
            await self.fs.release(opened.handle)

    async def check(self) -> None:
        assert await self.db.check(self.tier.staging.names()) == []

    def object_keys(self) -> list[str]:
        """Current objects in the bucket."""
        bucket = self.setup.server.bucket(BUCKET)
        return sorted({version.info.key for version, latest in bucket.newest_first("") if latest})


async def make(setup: Setup, tracer: Tracer) -> None:
    """Bucket, index, root directory and the store ``default``."""
    client = setup.server.client(BUCKET)
    await client.create_bucket()
    if setup.keying is Keying.VERSIONED:
        await client.enable_versioning()
    db = Database.create(setup.index_path, tracer=tracer)

    def transaction(tx: Transaction) -> None:
        inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, nlink=2, now_ns=1)
        stores.insert(
            tx,
            name="default",
            bucket=BUCKET,
            prefix="",
            keying=setup.keying,
            digest_algorithm=DigestAlgorithm.MD5,
            cached=setup.cached,
            conditional_put=True,
        )

    await db.write(transaction)
    await db.aclose()


@asynccontextmanager
async def open_rig(setup: Setup, *, check: bool = True) -> AsyncIterator[Rig]:
    """Open the volume, made if it is not there; close it in order at the end, and check its index."""
    tracer = Tracer()
    setup.directory.mkdir(exist_ok=True)
    if not setup.index_path.exists():
        await make(setup, tracer)
    tracer.counts.clear()
    db = Database.open(setup.index_path, tracer=tracer)
    faults = FaultyObjectClient(setup.server.client(BUCKET, tracer))
    configs = await db.read(stores.every)
    opened: dict[int, BlobStore] = {config.id: open_store(config, faults, tracer) for config in configs}
    tier = Tier(
        TierOptions(setup.directory / "tier", size_limit_bytes=setup.cache_bytes, min_free_bytes=0),
        setup.read,
        tracer,
    )
    await tier.start()
    async with trio.open_nursery() as nursery:
        reaper = Reaper(db, tier, opened, garbage_grace_s=setup.grace_s, now_ns=setup.now_ns)
        fs = Filesystem(
            db=db,
            tier=tier,
            stores=opened,
            make_uploader=lambda listener: Uploader(
                db,
                tier,
                opened,
                reaper,
                listener,
                limits=Limits(queue=setup.queue, early=setup.early),
                now_ns=setup.now_ns,
            ),
            reaper=reaper,
            tracer=tracer,
            durability=setup.durability,
            access_times=setup.access_times,
            now_ns=setup.now_ns,
        )
        await nursery.start(db.run)
        await nursery.start(tier.run)
        report = await recover(db, tier, opened, fs.uploader, reaper, now_ns=setup.now_ns)
        await fs.resume(report.contents)
        await nursery.start(fs.uploader.run)
        await nursery.start(reaper.run)
        tracer.counts.clear()
        yield Rig(setup, fs, db, tier, tracer, reaper, faults, opened)
        await fs.close()
        if check:
            assert await db.check(tier.staging.names()) == []
        nursery.cancel_scope.cancel()
    await tier.aclose()
    await db.aclose()


async def add_store(rig: Rig, name: str, prefix: str, **changes: object) -> BlobStore:
    """A second store in the same bucket, with the keying and caching of the first unless told otherwise."""
    config = rig.stores[1].config
    wanted = replace(config, name=name, prefix=prefix, **changes)  # type: ignore[arg-type]
    row = await rig.db.write(
        lambda tx: stores.insert(
            tx,
            name=wanted.name,
            bucket=wanted.bucket,
            prefix=wanted.prefix,
            keying=wanted.keying,
            digest_algorithm=wanted.digest_algorithm,
            cached=wanted.cached,
            conditional_put=wanted.conditional_put,
        )
    )
    store = rig.stores[row.id] = open_store(row, rig.faults, rig.tracer)
    return store
