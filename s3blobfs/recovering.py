"""The composition root of ``s3blobfs recover``: a volume's index from its bucket."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from s3blobfs.config import S3Options
from s3blobfs.errors import IndexDamaged, UsageError, VolumeMismatch
from s3blobfs.index import replica, settings, stores
from s3blobfs.index.check import Problem
from s3blobfs.index.database import Database
from s3blobfs.replica.fromobjects import Rebuilder, Rebuilt
from s3blobfs.replica.history import newest_tip
from s3blobfs.replica.reading import Reader
from s3blobfs.replica.recovery import (
    Recovered,
    Request,
    index_files,
    put_in_place,
    recover_index,
    remove_index,
    set_aside,
    tip_row,
)
from s3blobfs.s3.client import make_client_factory
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.trace import Tracer
from s3blobfs.volume.clients import BucketClients
from s3blobfs.volume.deriving import Stated, check_place, derive, find_volume_id
from s3blobfs.volume.descriptor import VolumeDescriptor, check_vacant, find_descriptor, put_new_descriptor
from s3blobfs.volume.lock import LockHolder, VolumeLock
from s3blobfs.volume.paths import VolumePaths, make_private_directory

Progress = Callable[[str, int, int | None], None]
"""Told of a phase, and how far it is, of how much if that is known: ``reading`` in bytes, ``comparing`` and
``looking`` in objects, ``rebuilding`` in files."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """What is asked for."""

    bucket: str
    prefix: str
    s3: S3Options
    index_path: Path | None = None
    """``None``: in the state directory, named by the volume."""
    request: Request = field(default_factory=Request)
    force: bool = False
    """Move what is there aside."""
    from_objects: bool = False
    stated: Stated = field(default_factory=Stated)
    """Of a volume whose description is lost; with ``from_objects``."""


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
    assumed: list[str] = field(default_factory=list)
    """Of a volume whose description was lost: what it was taken to be, and why."""
    described: bool = False
    """The description was written anew."""


async def recover_volume(options: RecoveryOptions, progress: Progress) -> RecoveredVolume:
    """Bring back the index of the volume at a prefix, and the volume's description if that is lost.

    Raises :class:`UsageError` when there is an index and ``force`` is not given, or when something has to be
    stated; :class:`IndexDamaged` when the state asked for cannot be reached,
    :class:`~s3blobfs.errors.VolumeMismatch` where there is no volume, and what S3 and the disk raise."""
    begun = time.monotonic()
    factory = await trio.to_thread.run_sync(make_client_factory, options.s3, Tracer())
    clients = BucketClients(factory)
    try:
        source = await _source(options, clients.of(options.bucket), progress)
        paths = (
            VolumePaths(options.index_path) if options.index_path else VolumePaths.default(source.volume_id)
        )
        make_private_directory(paths.index.parent)
        with VolumeLock(paths.lock, LockHolder.this_process("recover")):
            uri = f"s3://{options.bucket}/{options.prefix}"
            result = RecoveredVolume(source.volume_id, uri, paths.index, assumed=source.remarks)
            if paths.index.exists() and not options.force:
                raise UsageError(
                    f"there is an index at {paths.index}, which is never overwritten: mount it, or give"
                    " --force, which moves it aside, or another --index"
                )
            work = _Work(options, source, clients, paths, progress)
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
class _Source:
    """What is known of the volume before its index is there."""

    volume_id: str
    descriptor: VolumeDescriptor | None
    """``None``: the index will say."""
    is_lost: bool
    """The bucket has no description."""
    conditional_put: bool = True
    remarks: list[str] = field(default_factory=list)


async def _source(options: RecoveryOptions, client: ObjectClient, progress: Progress) -> _Source:
    descriptor = await find_descriptor(client, options.prefix)
    if descriptor is not None:
        if not options.stated.is_empty:
            raise UsageError(
                "the volume's settings are in the bucket, and count: leave out what you state of them"
            )
        return _Source(descriptor.settings.volume_id, descriptor, is_lost=False)
    if options.from_objects:
        derived = await derive(
            client, options.prefix, options.stated, lambda listed: progress("looking", listed, None)
        )
        volume_id = derived.descriptor.settings.volume_id
        return _Source(volume_id, derived.descriptor, True, derived.conditional_put, derived.remarks)
    found = await find_volume_id(client, options.prefix)
    if found is None:
        raise VolumeMismatch(
            f"there is neither a volume at s3://{options.bucket}/{options.prefix} nor a copy of an index. If"
            " both are lost, --from-objects rebuilds a tree from what the objects say of themselves"
        )
    return _Source(found, None, is_lost=True)


@dataclass(frozen=True, slots=True)
class _Work:
    options: RecoveryOptions
    source: _Source
    clients: BucketClients
    paths: VolumePaths
    progress: Progress

    async def recover(self, result: RecoveredVolume) -> None:
        options, target = self.options, self._building
        reader = Reader(
            self.clients.of(options.bucket),
            options.prefix,
            self.source.volume_id,
            progress=partial(self.progress, "reading"),
        )
        try:
            result.recovered = await recover_index(
                reader,
                target,
                self.clients.of,
                options.request,
                now_ns=time.time_ns,
                progress=partial(self.progress, "comparing"),
            )
            if self.source.is_lost:
                await self._describe(await _described(target), result)
            self._put_in_place(result)
        finally:
            remove_index(target)

    async def rebuild(self, result: RecoveredVolume) -> None:
        descriptor, target = self.source.descriptor, self._building
        assert descriptor is not None
        volume = descriptor.settings
        remove_index(target)
        try:
            db = Database.create(target, tracer=Tracer())
            try:
                result.rebuilt = await Rebuilder(
                    db,
                    volume,
                    descriptor.stores,
                    self.clients.of,
                    lambda files, size_bytes: self.progress("rebuilding", files, None),
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
            if self.source.is_lost:
                await self._describe(descriptor, result)
            self._put_in_place(result)
        finally:
            remove_index(target)

    async def _describe(self, descriptor: VolumeDescriptor, result: RecoveredVolume) -> None:
        """Without a description nothing can be mounted. Somebody else's, made meanwhile, is not
        overwritten. Raises :class:`VolumeMismatch`."""
        options = self.options
        check_place(descriptor, options.bucket, options.prefix)
        conditional = self.source.conditional_put
        if self.source.descriptor is None:
            conditional = descriptor.stores[0].conditional_put
        client = self.clients.of(options.bucket)
        await check_vacant(client, options.prefix)  # where the server does not know conditions
        await put_new_descriptor(client, descriptor, conditional_put=conditional)
        result.described = True

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


async def _described(index: Path) -> VolumeDescriptor:
    """As an index has it."""
    db = Database.open(index, tracer=Tracer(), read_only=True)
    try:
        return await db.read(lambda tx: VolumeDescriptor(settings.load(tx), tuple(stores.every(tx))))
    finally:
        await db.aclose()


def _listed(problems: list[Problem]) -> str:
    return (
        f"the rebuilt index has {len(problems)} problems: {'; '.join(each.detail for each in problems[:5])}"
    )
