"""Rebuilding an index from nothing but the volume's objects, by what each says of itself.

The last resort: names are those that files had when they were stored, and what never was an object (empty
files, empty directories, symbolic links, extended attributes, hard links beyond the first name) does not come
back. Objects that this program did not write are read, since their digests are not known, and go to
``lost+found``; so does whatever has no place of its own.

Nothing in the metadata is trusted further than its form: anybody who may write to the bucket can have made
it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import trio

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.keys import (
    collision_name,
    digest_location,
    is_object_id,
    new_object_id,
    versioned_location,
)
from s3blobfs.blobstore.metadata import Stamp
from s3blobfs.config import MIB, NAME_MAX_BYTES, VOLUME_OBJECTS_PREFIX, VolumeSettings
from s3blobfs.errors import DamagedContent, FilesystemError, ObjectNotFound
from s3blobfs.index import blobs, dentries, inodes, settings, stores
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.s3.protocol import ObjectClient, ObjectId, ObjectInfo
from s3blobfs.types import BlobLocation, ContentDigests, Keying, StoreConfig, StoredContent

LOST_AND_FOUND = b"lost+found"
BATCH = 256
"""Objects taken at once: so many answers are in memory, and so many rows in a transaction."""
PARALLEL = 16
READ_BYTES = 8 * MIB


@dataclass(slots=True)
class Rebuilt:
    """What came of it."""

    files: int = 0
    bytes: int = 0
    conflicts: int = 0
    """Files that have another name than they had, because it was taken."""
    lost_and_found: int = 0
    read: int = 0
    """Objects whose content had to be read."""
    skipped: list[str] = field(default_factory=list)
    """Objects that could not be taken, with the reason."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An object that becomes a file."""

    store: StoreConfig
    stored: StoredContent
    digests: ContentDigests
    stamp: Stamp
    name: str
    """Behind the store's prefix."""
    modified_ns: int


class Rebuilder:
    """Fills an empty index."""

    def __init__(
        self,
        db: Database,
        volume: VolumeSettings,
        configs: Sequence[StoreConfig],
        client_of: Callable[[str], ObjectClient],
        progress: Callable[[int, int], None],
    ) -> None:
        """``progress`` is told of files and bytes so far: how many there will be is not known."""
        self._db = db
        self._volume = volume
        self._configs = configs
        self._client_of = client_of
        self._progress = progress
        self._result = Rebuilt()
        self._directories: dict[bytes, int] = {}

    async def run(self) -> Rebuilt:
        """Raises what S3 and the index raise."""
        await self._db.write(self._make_volume)
        for config in self._configs:
            client = self._client_of(config.bucket)
            batch: list[ObjectId] = []
            async for target in self._objects(client, config):
                batch.append(target)
                if len(batch) == BATCH:
                    await self._take(client, config, batch)
                    batch = []
            await self._take(client, config, batch)
        await self._db.commit()
        return self._result

    def _make_volume(self, tx: Transaction) -> None:
        settings.store(tx, self._volume)
        inodes.insert(
            tx,
            mode=stat.S_IFDIR | 0o755,
            uid=os.geteuid(),
            gid=os.getegid(),
            nlink=2,
            now_ns=self._volume.created_ns,
        )
        for config in self._configs:
            stores.insert(
                tx,
                name=config.name,
                bucket=config.bucket,
                prefix=config.prefix,
                keying=config.keying,
                digest_algorithm=config.digest_algorithm,
                cached=config.cached,
                conditional_put=config.conditional_put,
            )

    # -- looking ---------------------------------------------------------------------------------------

    async def _objects(self, client: ObjectClient, config: StoreConfig) -> AsyncIterator[ObjectId]:
        """Of each key the newest version, but for what is the volume's own or another store's."""
        others = [
            other.prefix
            for other in self._configs
            if other.bucket == config.bucket and len(other.prefix) > len(config.prefix)
        ]
        excluded = (*others, f"{config.prefix}{VOLUME_OBJECTS_PREFIX}", self._own_objects(config))
        if config.keying is Keying.DIGEST:
            async for info in client.list_objects(config.prefix):
                if not info.key.startswith(excluded):
                    yield ObjectId(info.key)
            return
        async for version in client.list_versions(config.prefix):
            if version.is_latest and not version.is_delete_marker and not version.key.startswith(excluded):
                yield ObjectId(version.key, version.version_id)

    def _own_objects(self, config: StoreConfig) -> str:
        prefix = self._volume.prefix if config.bucket == self._volume.bucket else config.prefix
        return f"{prefix}{VOLUME_OBJECTS_PREFIX}"

    async def _take(self, client: ObjectClient, config: StoreConfig, targets: list[ObjectId]) -> None:
        found: list[_Found | None] = [None] * len(targets)
        limiter = trio.CapacityLimiter(PARALLEL)

        async def look(at: int) -> None:
            async with limiter:
                found[at] = await self._look(client, config, targets[at])

        async with trio.open_nursery() as nursery:
            for at in range(len(targets)):
                nursery.start_soon(look, at)
        files = [each for each in found if each is not None]

        def insert(tx: Transaction) -> None:
            for each in files:
                self._insert(tx, each)

        await self._db.write(insert)
        self._progress(self._result.files, self._result.bytes)

    async def _look(self, client: ObjectClient, config: StoreConfig, target: ObjectId) -> _Found | None:
        name = target.key[len(config.prefix) :]
        try:
            info = await client.head(target.key, version_id=target.version_id)
            if config.keying is Keying.VERSIONED and target.version_id is None:
                self._skip(target, "it has no version, and could be overwritten")
                return None
            if info.size_bytes == 0:
                self._skip(target, "it is empty, and files without bytes have no object")
                return None
            stamp = metadata.decode(info.metadata)
            digests = _stamped(stamp, info)
            if digests is None or not _is_ours(config, name, digests):
                stamp = metadata.decode({})
                digests = await self._read(client, target, info)
        except (ObjectNotFound, DamagedContent) as error:
            self._skip(target, str(error))
            return None
        location = _location(config, name, target.version_id)
        stored = StoredContent(location, info.etag, existed=True)
        return _Found(config, stored, digests, stamp, name, info.last_modified_ns)

    def _skip(self, target: ObjectId, reason: str) -> None:
        self._result.skipped.append(f"{target.key}: {reason}")

    async def _read(self, client: ObjectClient, target: ObjectId, info: ObjectInfo) -> ContentDigests:
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for offset in range(0, info.size_bytes, READ_BYTES):
            length = min(READ_BYTES, info.size_bytes - offset)
            answer = await client.get(
                target.key, version_id=target.version_id, offset=offset, length=length, if_match=info.etag
            )
            md5.update(answer.data)
            sha256.update(answer.data)
        self._result.read += 1
        return ContentDigests(info.size_bytes, md5.digest(), sha256.digest(), checksums=b"")

    # -- inserting -------------------------------------------------------------------------------------

    def _insert(self, tx: Transaction, found: _Found) -> None:
        stamp, versioned = found.stamp, found.store.keying is Keying.VERSIONED
        now_ns = found.stamp.mtime_ns if found.stamp.mtime_ns is not None else found.modified_ns
        permissions = stat.S_IMODE(stamp.mode) if stamp.mode is not None else 0o600
        inode = inodes.insert(
            tx,
            mode=stat.S_IFREG | permissions,
            uid=stamp.uid if stamp.uid is not None else os.geteuid(),
            gid=stamp.gid if stamp.gid is not None else os.getegid(),
            nlink=1,
            now_ns=now_ns,
            store_id=found.store.id,
            object_id=_object_id(found.name) if versioned else None,
            size_bytes=found.digests.size_bytes,
        )
        blob = blobs.adopt(tx, found.store.id, found.stored, found.digests, found.modified_ns)
        inodes.update(tx, inode.id, blob_id=blob.id)
        self._name(tx, found, inode.id, now_ns)
        self._result.files += 1
        self._result.bytes += found.digests.size_bytes

    def _name(self, tx: Transaction, found: _Found, inode_id: int, mtime_ns: int) -> None:
        path = found.stamp.path
        parts = path.split(b"/") if path else []
        if not parts or any(len(part) > NAME_MAX_BYTES for part in parts):
            parts = [LOST_AND_FOUND, _short(quote(found.name, safe="").encode())]
        elif not found.stamp.path_is_whole or parts[0] == LOST_AND_FOUND:
            rest = [part for part in parts if part != LOST_AND_FOUND]
            parts = [LOST_AND_FOUND, *(rest or [_short(quote(found.name, safe="").encode())])]
        try:
            parent = self._directory(tx, b"/".join(parts[:-1]), mtime_ns)
        except FilesystemError:
            # A file has the name that this one's directory needs.
            parts = [LOST_AND_FOUND, parts[-1]]
            parent = self._directory(tx, LOST_AND_FOUND, mtime_ns)
        self._result.lost_and_found += parts[0] == LOST_AND_FOUND
        self._give_name(tx, parent, parts[-1], inode_id, found.name, mtime_ns)

    def _give_name(
        self, tx: Transaction, parent: int, name: bytes, inode_id: int, key: str, mtime_ns: int
    ) -> None:
        """The newest keeps a name that several had."""
        taken = dentries.lookup(tx, parent, name)
        if taken is None:
            dentries.insert(tx, parent, name, inode_id)
            return
        self._result.conflicts += 1
        if stat.S_ISREG(taken.mode) and taken.mtime_ns < mtime_ns and taken.blob_id is not None:
            old_key = blobs.get(tx, taken.blob_id).location.object_key
            dentries.retarget(tx, parent, name, inode_id)
            dentries.insert(tx, parent, _free(tx, parent, name, old_key.rpartition("/")[2]), taken.id)
        else:
            dentries.insert(tx, parent, _free(tx, parent, name, key), inode_id)

    def _directory(self, tx: Transaction, path: bytes, now_ns: int) -> int:
        """Raises :class:`FilesystemError` where a file is in the way."""
        parent = ROOT_INODE_ID
        for name in path.split(b"/") if path else ():
            row = dentries.lookup(tx, parent, name)
            if row is None:
                row = inodes.insert(
                    tx, mode=stat.S_IFDIR | 0o755, uid=os.geteuid(), gid=os.getegid(), nlink=2, now_ns=now_ns
                )
                dentries.insert(tx, parent, name, row.id)
                inodes.add_links(tx, parent, 1, now_ns)
            elif not stat.S_ISDIR(row.mode):
                raise FilesystemError(errno.ENOTDIR, repr(name))
            parent = row.id
        return parent


def _stamped(stamp: Stamp, info: ObjectInfo) -> ContentDigests | None:
    if stamp.md5 is None or stamp.sha256 is None or stamp.size_bytes != info.size_bytes:
        return None
    return ContentDigests(info.size_bytes, stamp.md5, stamp.sha256, checksums=b"")


def _is_ours(config: StoreConfig, name: str, digests: ContentDigests) -> bool:
    """Whether the object is where this content would have been put."""
    if config.keying is Keying.VERSIONED:
        return is_object_id(name)
    algorithm = config.digest_algorithm
    return name in (digests.key_digest(algorithm), collision_name(digests, algorithm))


def _location(config: StoreConfig, name: str, version_id: str | None) -> BlobLocation:
    plain = (
        versioned_location(config.prefix, name, version_id)
        if version_id
        else digest_location(config.prefix, name)
    )
    # A foreign key may hold anything, and the cache name becomes a file's.
    cache_name = (
        plain.cache_name if is_object_id(name) else hashlib.sha256(plain.cache_name.encode()).hexdigest()
    )
    return BlobLocation(plain.object_key, plain.version_id, cache_name)


def _object_id(name: str) -> str:
    """The file's key for what is written to it later: its own, if that can be one."""
    return name if is_object_id(name) else new_object_id()


def _short(name: bytes) -> bytes:
    """A name of at most NAME_MAX bytes; a longer one keeps its end, and what tells it from others."""
    if len(name) <= NAME_MAX_BYTES:
        return name
    mark = hashlib.sha256(name).hexdigest()[:16].encode() + b"~"
    return mark + name[len(mark) - NAME_MAX_BYTES :]


def _free(tx: Transaction, parent: int, name: bytes, key: str) -> bytes:
    """A name like this one that is free: with the object's key, and a number if need be."""
    mark = f"~{quote(key, safe='')[:32]}".encode()
    for number in range(1, 1_000_000):
        end = mark if number == 1 else mark + b".%d" % number
        candidate = name[: NAME_MAX_BYTES - len(end)] + end
        if dentries.find(tx, parent, candidate) is None:
            return candidate
    raise AssertionError("a million files of one name and one key")
