"""Making a volume: its index on this machine and its description in the bucket."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.blobstore.open import prepare_store
from s3blobfs.config import S3Options, VolumeSettings
from s3blobfs.errors import ObjectStoreError, VolumeIndexError, VolumeMismatch
from s3blobfs.index import inodes, settings, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.trace import Tracer
from s3blobfs.types import DigestAlgorithm, Durability, Keying, StoreConfig
from s3blobfs.volume.descriptor import (
    DEFAULT_STORE_NAME,
    VolumeDescriptor,
    check_vacant,
    find_descriptor,
    object_key,
    put_new_descriptor,
)
from s3blobfs.volume.paths import VolumePaths, make_private_directory

logger = logging.getLogger(__name__)

ROOT_MODE = stat.S_IFDIR | 0o755
ROOT_LINKS = 2
CLEANUP_TIMEOUT_S = 30.0
"""For taking back what was begun, also after an interruption."""


@dataclass(frozen=True, slots=True)
class NewVolume:
    """What is asked for."""

    bucket: str
    prefix: str
    s3: S3Options
    keying: Keying = Keying.DIGEST
    digest_algorithm: DigestAlgorithm = DigestAlgorithm.MD5
    cached: bool = True
    durability: Durability = Durability.S3
    index_path: Path | None = None
    """``None``: in the state directory, named by the volume."""
    create_bucket: bool = False
    enable_versioning: bool = False


@dataclass(frozen=True, slots=True)
class MadeVolume:
    """What was made."""

    settings: VolumeSettings
    index_path: Path


async def make_volume_in(client: ObjectClient, new: NewVolume, tracer: Tracer) -> MadeVolume:
    """Make a volume in the bucket of ``client``. When it fails nothing is left, but for a bucket that was
    created.

    Raises :class:`~s3blobfs.errors.UsageError` for what the user can mend,
    :class:`~s3blobfs.errors.VolumeMismatch` where there is a volume, and what S3 and the index raise."""
    if await client.bucket_exists():
        await check_vacant(client, new.prefix)
    capabilities = await prepare_store(
        client,
        prefix=new.prefix,
        keying=new.keying,
        create_bucket=new.create_bucket,
        enable_versioning=new.enable_versioning,
    )
    if new.enable_versioning and not capabilities.versioning:
        await client.enable_versioning()
    volume = VolumeSettings(
        volume_id=uuid.uuid4().hex,
        bucket=new.bucket,
        prefix=new.prefix,
        durability=new.durability,
        created_ns=time.time_ns(),
    )
    paths = VolumePaths(new.index_path) if new.index_path else VolumePaths.default(volume.volume_id)
    make_private_directory(paths.index.parent)
    db = Database.create(paths.index, tracer=tracer)
    try:
        store = await db.write(
            lambda tx: _fill(tx, volume, new, conditional_put=capabilities.conditional_put), durable=True
        )
        await db.aclose()
        await _claim(client, VolumeDescriptor(volume, (store,)), conditional_put=capabilities.conditional_put)
    except BaseException:
        await _remove_index(db, paths, default=new.index_path is None)
        raise
    return MadeVolume(volume, paths.index)


def _fill(tx: Transaction, volume: VolumeSettings, new: NewVolume, *, conditional_put: bool) -> StoreConfig:
    settings.store(tx, volume)
    inodes.insert(
        tx, mode=ROOT_MODE, uid=os.geteuid(), gid=os.getegid(), nlink=ROOT_LINKS, now_ns=volume.created_ns
    )
    return stores.insert(
        tx,
        name=DEFAULT_STORE_NAME,
        bucket=new.bucket,
        prefix=new.prefix,
        keying=new.keying,
        digest_algorithm=new.digest_algorithm,
        cached=new.cached,
        conditional_put=conditional_put,
    )


async def _claim(client: ObjectClient, descriptor: VolumeDescriptor, *, conditional_put: bool) -> None:
    """Write the description; it makes the volume one."""
    try:
        await put_new_descriptor(client, descriptor, conditional_put=conditional_put)
    except VolumeMismatch:
        raise  # somebody else's
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEANUP_TIMEOUT_S):
            await _withdraw(client, descriptor)
        raise


async def _withdraw(client: ObjectClient, descriptor: VolumeDescriptor) -> None:
    """Remove a description whose PUT failed or was interrupted, and may have taken place."""
    volume = descriptor.settings
    try:
        found = await find_descriptor(client, volume.prefix)
        if found is not None and found.settings.volume_id == volume.volume_id:
            await client.delete(ObjectId(object_key(volume.prefix)))
    except (ObjectStoreError, VolumeMismatch) as error:
        key = object_key(volume.prefix)
        logger.warning("s3://%s/%s may be left, and is to be deleted: %s", volume.bucket, key, error)


async def _remove_index(db: Database, paths: VolumePaths, *, default: bool) -> None:
    try:
        await db.aclose()
    except VolumeIndexError as error:
        logger.debug("the index is given up: %s", error)
    for suffix in ("", "-wal", "-shm"):
        paths.index.with_name(paths.index.name + suffix).unlink(missing_ok=True)
    if default:
        # Made for this volume. Should anything else lie in it, it stays.
        with contextlib.suppress(OSError):
            paths.index.parent.rmdir()
