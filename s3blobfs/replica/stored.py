"""Objects of a store as its bucket shows them, and what each says of itself.

Nothing in an object's metadata is trusted further than its form: anybody who may write to the bucket can have
made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3blobfs.blobstore.keys import (
    collision_name,
    digest_location,
    is_object_id,
    new_object_id,
    versioned_location,
)
from s3blobfs.blobstore.metadata import Stamp
from s3blobfs.config import VOLUME_OBJECTS_PREFIX
from s3blobfs.errors import S3BlobFSError
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo, ObjectVersionInfo
from s3blobfs.types import BlobLocation, ContentDigests, Keying, StoreConfig, StoredContent

PARALLEL = 16
"""Objects asked at a time."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that can be a file's content."""

    store: StoreConfig
    stored: StoredContent
    digests: ContentDigests
    stamp: Stamp
    name: str
    """Behind the store's prefix."""
    modified_ns: int
    """By S3's clock."""

    @property
    def mtime_ns(self) -> int:
        """The file's, as far as anybody knows."""
        return self.stamp.mtime_ns if self.stamp.mtime_ns is not None else self.modified_ns

    @property
    def object_id(self) -> str | None:
        """The file's key for what is written to it later: this one, if that can be one; ``None`` in a
        ``digest`` store."""
        if self.store.keying is Keying.DIGEST:
            return None
        return self.name if is_object_id(self.name) else new_object_id()


async def list_store(
    client: ObjectClient, config: StoreConfig, configs: Iterable[StoreConfig]
) -> AsyncIterator[list[ObjectVersionInfo]]:
    """What is below a store's prefix, key by key: of a ``versioned`` store the versions and delete markers
    of each, the latest first, of a ``digest`` store the current object alone. Left out is what the volume
    keeps for itself, and what belongs to another store, or to another volume below. Raises what S3 does."""
    within = [
        other.prefix
        for other in configs
        if other.bucket == config.bucket and other.prefix != config.prefix
        if other.prefix.startswith(config.prefix)
    ]
    excluded = (*within, f"{config.prefix}{VOLUME_OBJECTS_PREFIX}")
    group: list[ObjectVersionInfo] = []
    async for entry in _entries(client, config):
        if entry.key.startswith(excluded):
            continue
        below, mark, _ = entry.key.removeprefix(config.prefix).partition(f"/{VOLUME_OBJECTS_PREFIX}")
        if mark:
            # Listed before the rest of that volume: of what a key may begin with, '.' comes early.
            excluded = (*excluded, f"{config.prefix}{below}/")
            continue
        if group and group[0].key != entry.key:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


async def _entries(client: ObjectClient, config: StoreConfig) -> AsyncIterator[ObjectVersionInfo]:
    if config.keying is Keying.VERSIONED:
        async for version in client.list_versions(config.prefix):
            yield version
    else:
        async for info in client.list_objects(config.prefix):
            yield ObjectVersionInfo(
                key=info.key,
                version_id=None,
                is_delete_marker=False,
                is_latest=True,
                size_bytes=info.size_bytes,
                etag=info.etag,
                last_modified_ns=info.last_modified_ns,
            )


def as_stamped(config: StoreConfig, info: ObjectInfo, stamp: Stamp) -> StoredObject | None:
    """What HEAD (of a version, in a ``versioned`` store) told, if the object has our stamp and is where its
    content would have been put."""
    name = info.key.removeprefix(config.prefix)
    if stamp.md5 is None or stamp.sha256 is None:
        return None
    if info.size_bytes == 0 or stamp.size_bytes != info.size_bytes:
        return None
    digests = ContentDigests(info.size_bytes, stamp.md5, stamp.sha256, checksums=b"")
    if not _has_its_place(config, name, digests):
        return None
    return stored_object(config, info, digests, stamp)


def stored_object(
    config: StoreConfig, info: ObjectInfo, digests: ContentDigests, stamp: Stamp
) -> StoredObject | None:
    """``None`` in a ``versioned`` store for what has no version: it could be overwritten."""
    name = info.key.removeprefix(config.prefix)
    if config.keying is Keying.VERSIONED:
        if info.version_id is None:
            return None
        plain = versioned_location(config.prefix, name, info.version_id)
    else:
        plain = digest_location(config.prefix, name)
    # A foreign key may hold anything, and the cache name becomes a file's.
    cache_name = (
        plain.cache_name if is_object_id(name) else hashlib.sha256(plain.cache_name.encode()).hexdigest()
    )
    location = BlobLocation(plain.object_key, plain.version_id, cache_name)
    stored = StoredContent(location, info.etag, existed=True)
    return StoredObject(config, stored, digests, stamp, name, info.last_modified_ns)


def _has_its_place(config: StoreConfig, name: str, digests: ContentDigests) -> bool:
    if config.keying is Keying.VERSIONED:
        return is_object_id(name)
    algorithm = config.digest_algorithm
    return name in (digests.key_digest(algorithm), collision_name(digests, algorithm))


async def for_each(items: Sequence[Item], ask: Callable[[Item], Awaitable[Answer]]) -> list[Answer]:
    """``ask`` of each item, ``PARALLEL`` at a time; the answers in the items' order. The first error of ours
    is raised by itself, not in a group."""
    answers: dict[int, Answer] = {}
    limiter = trio.CapacityLimiter(PARALLEL)
    failures: list[S3BlobFSError] = []

    async def one(at: int, scope: trio.CancelScope) -> None:
        try:
            async with limiter:
                answers[at] = await ask(items[at])
        except S3BlobFSError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for at in range(len(items)):
            nursery.start_soon(one, at, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return [answers[at] for at in range(len(items))]
