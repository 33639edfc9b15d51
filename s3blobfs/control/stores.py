"""The requests about a mounted volume's stores."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from s3blobfs.blobstore.open import open_store, prepare_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import VolumeSettings, parse_s3_uri
from s3blobfs.control.messages import Json, MalformedMessage, argument
from s3blobfs.control.server import Call, Handler
from s3blobfs.errors import ObjectStoreError, UsageError, VolumeMismatch
from s3blobfs.fs.facade import Filesystem
from s3blobfs.index import dentries, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from s3blobfs.types import DigestAlgorithm, Keying
from s3blobfs.volume.clients import BucketClients
from s3blobfs.volume.descriptor import (
    VolumeDescriptor,
    find_descriptor,
    replace_descriptor,
    store_to_json,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreRequests:
    """Looks at stores, adds one, and lets a directory use one."""

    filesystem: Filesystem
    db: Database
    clients: BucketClients
    blob_stores: dict[int, BlobStore]
    """By id; the mapping that the filesystem looks into."""
    settings: VolumeSettings
    tracer: Tracer

    def handlers(self) -> dict[str, Handler]:
        return {"store.list": self.list_stores, "store.add": self.add, "store.bind": self.bind}

    async def list_stores(self, _: Call) -> Json:
        def transaction(tx: Transaction) -> list[Json]:
            directories: dict[int, list[str]] = {}
            for inode_id, store_id in stores.bindings(tx).items():
                path = dentries.path_of(tx, inode_id)
                if path is not None:
                    directories.setdefault(store_id, []).append(f"/{os.fsdecode(path)}")
            return [
                store_to_json(store) | {"directories": sorted(directories.get(store.id, []))}
                for store in stores.every(tx)
            ]

        return {"stores": await self.db.read(transaction)}

    async def add(self, call: Call) -> Json:
        """``name``, ``uri``, ``keying``, ``digest``, ``cached``, ``create_bucket``, ``versioning``."""
        arguments = call.arguments
        name = argument(arguments, "name", str)
        bucket, prefix = parse_s3_uri(argument(arguments, "uri", str))
        try:
            keying = Keying(arguments.get("keying"))
            algorithm = DigestAlgorithm(arguments.get("digest"))
        except ValueError as error:
            raise MalformedMessage(str(error)) from error
        if await self.db.read(lambda tx: stores.find(tx, name)) is not None:
            raise UsageError(f"the volume has a store {name!r} already; choose another name")
        client = self.clients.of(bucket)
        capabilities = await prepare_store(
            client,
            prefix=prefix,
            keying=keying,
            create_bucket=argument(arguments, "create_bucket", bool),
            enable_versioning=argument(arguments, "versioning", bool),
        )
        other = await find_descriptor(client, prefix)
        if other is not None and other.settings.volume_id != self.settings.volume_id:
            raise VolumeMismatch(f"{other.settings.uri} belongs to {other.title}; choose another prefix")
        cached = argument(arguments, "cached", bool)
        config = await self.db.write(
            lambda tx: stores.insert(
                tx,
                name=name,
                bucket=bucket,
                prefix=prefix,
                keying=keying,
                digest_algorithm=algorithm,
                cached=cached,
                conditional_put=capabilities.conditional_put,
            ),
            durable=True,
        )
        self.blob_stores[config.id] = open_store(config, client, self.tracer)
        await self._update_descriptor()
        return {"store": store_to_json(config)}

    async def _update_descriptor(self) -> None:
        every = await self.db.read(stores.every)
        try:
            await replace_descriptor(
                self.clients.of(self.settings.bucket), VolumeDescriptor(self.settings, tuple(every))
            )
        except ObjectStoreError as error:
            # The index counts; the next mount finds the description behind and brings it up to date.
            logger.warning("the volume's description in the bucket lacks the new store for now: %s", error)

    async def bind(self, call: Call) -> Json:
        """``directory``: an inode; ``name``: of the store."""
        name = argument(call.arguments, "name", str)
        store = await self.db.read(lambda tx: stores.find(tx, name))
        if store is None:
            raise UsageError(f"the volume has no store {name!r}; see: s3blobfs store list MOUNTPOINT")
        await self.filesystem.bind_store(argument(call.arguments, "directory", int), store.id)
        return {"store": store_to_json(store)}
