"""A volume as the tools see it, over the in-memory S3: made and used by a rig, then opened without one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import apsw

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import ReadOptions, TierOptions, VolumeSettings
from s3blobfs.index import stores
from s3blobfs.index.database import Database
from s3blobfs.maintenance.target import Target
from s3blobfs.s3.fake import FakeBucket, FakeS3, FakeVersion
from s3blobfs.s3.faults import FaultScript
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Tracer
from s3blobfs.types import Durability
from s3blobfs.volume.clients import BucketClients
from s3blobfs.writeback.reaper import Reaper
from tests.support.rig import BUCKET, Rig, Setup

SETTINGS = VolumeSettings(
    volume_id="0" * 32, bucket=BUCKET, prefix="", durability=Durability.S3, created_ns=1
)
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


@asynccontextmanager
async def open_target(
    index: Path,
    directory: Path,
    server: FakeS3,
    *,
    script: FaultScript | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    **changes: object,
) -> AsyncIterator[Target]:
    """As the offline commands open a volume; ``changes`` of the target."""
    tracer = Tracer()
    db = Database.open(index, tracer=tracer, damaged=True)
    tier = Tier(TierOptions(directory, size_limit_bytes=2**40, min_free_bytes=0), ReadOptions(), tracer)
    await tier.start()
    clients = BucketClients((script or FaultScript()).wrap(server.factory(tracer)))
    opened: dict[int, BlobStore] = {
        config.id: open_store(config, clients.of(config.bucket), tracer)
        for config in await db.read(stores.every)
    }
    target = Target(
        settings=SETTINGS,
        db=db,
        tier=tier,
        stores=opened,
        clients=clients,
        reaper=Reaper(db, tier, opened, garbage_grace_s=3600.0, now_ns=now_ns),
        mounted=False,
        now_ns=now_ns,
    )
    try:
        yield replace(target, **changes)  # type: ignore[arg-type]
    finally:
        await tier.aclose()
        await db.aclose()


@asynccontextmanager
async def offline(setup: Setup, **changes: object) -> AsyncIterator[Target]:
    """The volume of a rig that is closed."""
    async with open_target(setup.index_path, setup.directory / "tier", setup.server, **changes) as target:  # type: ignore[arg-type]
        yield target


def live(rig: Rig) -> Target:
    """The volume of a rig that is open."""
    return Target(
        settings=SETTINGS,
        db=rig.db,
        tier=rig.tier,
        stores=rig.stores,
        clients=BucketClients(lambda bucket: rig.faults),
        reaper=rig.reaper,
        mounted=True,
        blob_changed=rig.fs.blob_changed,
        now_ns=rig.setup.now_ns,
    )


def damage(index: Path, sql: str) -> None:
    """Change an index behind its program's back, as no program may."""
    connection = apsw.Connection(str(index))
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute(sql)
    connection.close()


def contents(bucket: FakeBucket) -> dict[str, list[FakeVersion]]:
    """Everything in a bucket, to be compared."""
    return {key: list(versions) for key, versions in bucket.versions.items()}
