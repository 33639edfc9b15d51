"""An index, its shipper and an in-memory S3, on a clock that jumps."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from s3blobfs.config import IndexCopyOptions, VolumeSettings
from s3blobfs.index.database import Database
from s3blobfs.replica import names
from s3blobfs.replica.opening import open_shipper
from s3blobfs.replica.options import Limits
from s3blobfs.replica.reading import Reader, Reconstruction
from s3blobfs.replica.segment import Segment, decode
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultScript, FaultyObjectClient
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import ROOT, SETTINGS, add_file

BUCKET = "bucket"
START_NS = 1_700_000_000 * 10**9
CONFLICT_LOG = "another mount has gone on"
OUTAGE_LOG = "cannot be copied to the bucket"


def now_ns() -> int:
    """The test's clock."""
    return START_NS + round(trio.current_time() * 10**9)


@dataclass
class Site:
    """A bucket, and where the indexes lie that are copied into it."""

    directory: Path
    versioning: bool = False
    conditional: bool = True
    limits: Limits = field(default_factory=Limits)
    options: IndexCopyOptions = field(default_factory=IndexCopyOptions)
    faults: FaultScript = field(default_factory=FaultScript)
    settings: VolumeSettings = SETTINGS

    def __post_init__(self) -> None:
        self.server = FakeS3(clock_ns=now_ns)
        self.client = FaultyObjectClient(self.server.client(BUCKET), self.faults)

    async def make(self) -> None:
        await self.client.create_bucket()
        if self.versioning:
            await self.client.enable_versioning()

    # -- the bucket ------------------------------------------------------------------------------------

    def keys(self, prefix: str) -> list[str]:
        """Of current objects."""
        bucket = self.server.bucket(BUCKET)
        return [
            version.info.key
            for version, latest in bucket.newest_first(prefix)
            if latest and not version.is_delete_marker
        ]

    def every_version(self) -> int:
        return sum(len(history) for history in self.server.bucket(BUCKET).versions.values())

    def numbers(self) -> list[int]:
        """Of the segments."""
        found = [names.segment_number("", key) for key in self.keys(names.segments_prefix(""))]
        return [number for number in found if number is not None]

    def snapshots(self) -> list[int]:
        found = [names.snapshot_number("", key) for key in self.keys(names.snapshots_prefix(""))]
        return [number for number in found if number is not None]

    async def segment(self, number: int) -> Segment:
        key = names.segment_key("", number)
        return decode((await self.client.get(key)).data, key)[0]

    async def damage(self, key: str, at: int = -40) -> None:
        """Invert one byte of an object."""
        data = bytearray((await self.client.get(key)).data)
        data[at] ^= 0xFF
        await self.client.put(key, bytes(data))

    async def remove(self, key: str) -> None:
        self.server.bucket(BUCKET).versions.pop(key)

    # -- mounts ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def mount(
        self, name: str = "index", *, take_over: bool = False, kill: bool = False
    ) -> AsyncIterator[Mount]:
        """Open an index, made if it is not there, with its shipper. ``kill``: end without a barrier, as
        SIGKILL does; what was committed stays."""
        path = self.directory / f"{name}.db"
        if path.exists():
            db = Database.open(path, tracer=Tracer())
        else:
            db = volume.make(path)
            await db.write(volume.fill)
        fenced: list[str] = []
        try:
            shipper = await open_shipper(
                db,
                self.client,
                self.settings,
                options=replace(self.options, take_over=take_over),
                conditional=self.conditional,
                directory=self.directory / f"{name}.copy",
                on_fenced=fenced.append,
                limits=self.limits,
                now_ns=now_ns,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(db.run)
                await nursery.start(shipper.run)
                yield Mount(db, shipper, fenced)
                if not kill:
                    await shipper.barrier()
                nursery.cancel_scope.cancel()
        finally:
            await db.aclose()

    async def reconstruct(self, name: str = "recovered", at_ns: int | None = None) -> Reconstruction:
        reader = Reader(self.client, "", self.settings.volume_id)
        return await reader.reconstruct(self.directory / f"{name}.db", at_ns)


@dataclass
class Mount:
    db: Database
    shipper: Shipper
    fenced: list[str]

    async def add(self, *names_: bytes) -> None:
        for name in names_:
            await self.db.write(lambda tx, name=name: add_file(tx, ROOT, name))  # type: ignore[misc]

    async def settle(self) -> None:
        """Until everything is in the bucket."""
        await self.shipper.barrier()


NEVER = Limits(snapshot_segments=10**9, snapshot_bytes=2**62, look_s=math.inf, tidy_s=math.inf)
"""Nothing happens by itself."""
