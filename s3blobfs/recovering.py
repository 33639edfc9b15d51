"""The composition root of ``s3blobfs recover``: a volume's index from its bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import S3Options
from s3blobfs.errors import IndexDamaged, UsageError
from s3blobfs.index import replica, stores
from s3blobfs.index.check import Problem
from s3blobfs.index.database import Database
from s3blobfs.replica.fromobjects import Rebuilder, Rebuilt
from s3blobfs.replica.history import newest_tip
from s3blobfs.replica.reading import Reader
from s3blobfs.replica.recovery import (
    Recovered,
    index_files,
    put_in_place,
    recover_index,
    remove_index,
    set_aside,
    tip_row,
)
from s3blobfs.s3.client import make_client_factory
from s3blobfs.trace import Tracer
from s3blobfs.volume.clients import BucketClients
from s3blobfs.volume.descriptor import VolumeDescriptor, get_descriptor
from s3blobfs.volume.lock import LockHolder, VolumeLock
from s3blobfs.volume.paths import VolumePaths, make_private_directory


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """What is asked for."""

    bucket: str
    prefix: str
    s3: S3Options
    index_path: Path | None = None
    """``None``: in the state directory, named by the volume."""
    at_ns: int | None = None
    """``None``: the newest state."""
    partial: bool = False
    """Be content with an earlier state where the one asked for cannot be reached."""
    force: bool = False
    """Move what is there aside."""
    from_objects: bool = False


@dataclass(slots=True)
class RecoveredVolume:
    """What came of it."""

    volume_id: str
    uri: str
    index: Path
    duration_s: float = 0.0
    set_aside: list[Path] = field(default_factory=list)
    recovered: Recovered | None = None
    rebuilt: Rebuilt | None = None


async def recover_volume(options: RecoveryOptions, progress: Callable[[int, int], None]) -> RecoveredVolume:
    """Bring back the index of the volume at a prefix. ``progress`` is told of bytes done and to be done, or
    with ``from_objects`` of files and bytes so far.

    Raises :class:`UsageError` when there is an index and ``force`` is not given, :class:`IndexDamaged` when
    the state asked for cannot be reached, :class:`~s3blobfs.errors.VolumeMismatch` where there is no volume,
    and what S3 and the disk raise."""
    begun = time.monotonic()
    factory = await trio.to_thread.run_sync(make_client_factory, options.s3, Tracer())
    clients = BucketClients(factory)
    try:
        descriptor = await get_descriptor(clients.of(options.bucket), options.prefix)
        volume = descriptor.settings
        paths = (
            VolumePaths(options.index_path) if options.index_path else VolumePaths.default(volume.volume_id)
        )
        make_private_directory(paths.index.parent)
        with VolumeLock(paths.lock, LockHolder.this_process("recover")):
            result = RecoveredVolume(volume.volume_id, volume.uri, paths.index)
            if paths.index.exists() and not options.force:
                raise UsageError(
                    f"there is an index at {paths.index}, which is never overwritten: mount it, or give"
                    " --force, which moves it aside, or another --index"
                )
            work = _Work(options, descriptor, clients, paths, progress)
            try:
                await (work.rebuild(result) if options.from_objects else work.recover(result))
            except OSError as error:
                raise UsageError(f"cannot write {paths.index}: {error.strerror}") from error
            result.duration_s = time.monotonic() - begun
            return result
    finally:
        await clients.aclose()
        await factory.aclose()


@dataclass(frozen=True, slots=True)
class _Work:
    options: RecoveryOptions
    descriptor: VolumeDescriptor
    clients: BucketClients
    paths: VolumePaths
    progress: Callable[[int, int], None]

    async def recover(self, result: RecoveredVolume) -> None:
        volume, target = self.descriptor.settings, self._building
        reader = Reader(
            self.clients.of(volume.bucket), volume.prefix, volume.volume_id, progress=self.progress
        )
        try:
            result.recovered = await recover_index(
                reader,
                target,
                self._open_stores,
                at_ns=self.options.at_ns,
                partial=self.options.partial,
                now_ns=time.time_ns,
            )
            self._put_in_place(result)
        finally:
            remove_index(target)

    async def rebuild(self, result: RecoveredVolume) -> None:
        volume, target = self.descriptor.settings, self._building
        remove_index(target)
        try:
            db = Database.create(target, tracer=Tracer())
            try:
                result.rebuilt = await Rebuilder(
                    db, volume, self.descriptor.stores, self.clients.of, self.progress
                ).run()
                problems = await db.check()
                tip = await newest_tip(self.clients.of(volume.bucket), volume.prefix, volume.volume_id)
                if tip.number:
                    row = tip_row(tip, sequence=-1, schema_version=db.schema_version)
                    await db.note(lambda tx: replica.store(tx, row))
            finally:
                await db.aclose()
            if problems:
                raise IndexDamaged(_listed(problems))
            self._put_in_place(result)
        finally:
            remove_index(target)

    @property
    def _building(self) -> Path:
        return self.paths.index.with_name(f"{self.paths.index.name}.recovered")

    def _put_in_place(self, result: RecoveredVolume) -> None:
        """Only now what was there before is moved, staged files and cache included: they are of another
        history of the volume."""
        before = [*index_files(self.paths.index), self.paths.tier]
        if self.paths.index.exists():
            result.set_aside = set_aside(before, time.time_ns())
        put_in_place(self._building, self.paths.index)

    async def _open_stores(self, db: Database) -> Mapping[int, BlobStore]:
        tracer = Tracer()
        configs = await db.read(stores.every)
        return {config.id: open_store(config, self.clients.of(config.bucket), tracer) for config in configs}


def _listed(problems: list[Problem]) -> str:
    return (
        f"the rebuilt index has {len(problems)} problems: {'; '.join(each.detail for each in problems[:5])}"
    )
