"""Rebuilding an index from nothing but the volume's objects, by what each says of itself.

The last resort: names are those that files had when they were stored, and what never was an object (empty
files, empty directories, symbolic links, extended attributes, hard links beyond the first name) does not come
back. Objects that this program did not write are read, since their digests are not known, and go to
``lost+found``; so does whatever has no place of its own.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.metadata import Stamp
from s3blobfs.blobstore.stamps import read_stamp
from s3blobfs.config import MIB, VolumeSettings
from s3blobfs.errors import DamagedContent, ObjectNotFound
from s3blobfs.index import blobs, dentries, inodes, settings, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.replica.placing import free_name, insert_file, place_of
from s3blobfs.replica.stored import StoredObject, as_stamped, for_each, list_store, stored_object
from s3blobfs.s3.protocol import ObjectClient, ObjectId, ObjectInfo
from s3blobfs.types import ContentDigests, StoreConfig

BATCH = 256
"""Objects taken at once: so many answers are in memory, and so many rows in a transaction."""
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

    async def run(self) -> Rebuilt:
        """Raises what S3 and the index raise."""
        await self._db.write(self._make_volume)
        for config in self._configs:
            client = self._client_of(config.bucket)
            batch: list[ObjectId] = []
            async for versions in list_store(client, config, self._configs):
                newest = versions[0]
                if not newest.is_latest or newest.is_delete_marker:
                    continue
                batch.append(ObjectId(newest.key, newest.version_id))
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

    async def _take(self, client: ObjectClient, config: StoreConfig, targets: list[ObjectId]) -> None:
        found = await for_each(targets, lambda target: self._look(client, config, target))

        def insert(tx: Transaction) -> None:
            for each in found:
                if each is not None:
                    self._insert(tx, each)

        await self._db.write(insert)
        self._progress(self._result.files, self._result.bytes)

    async def _look(self, client: ObjectClient, config: StoreConfig, target: ObjectId) -> StoredObject | None:
        try:
            info = await client.head(target.key, version_id=target.version_id)
            if info.size_bytes == 0:
                self._skip(target, "it is empty, and files without bytes have no object")
                return None
            stamp = await read_stamp(client, info)
            found = as_stamped(config, info, stamp)
            if found is None:
                digests = await self._read(client, target, info)
                found = self._as_read(config, info, stamp, digests)
        except (ObjectNotFound, DamagedContent) as error:
            self._skip(target, str(error))
            return None
        if found is None:
            self._skip(target, "it has no version, and could be overwritten")
        return found

    def _as_read(
        self, config: StoreConfig, info: ObjectInfo, stamp: Stamp, digests: ContentDigests
    ) -> StoredObject | None:
        """Of one whose tag is lost the stamp is right all the same, as far as it goes."""
        if stamp.in_tag and not stamp.has_digests:
            known = replace(stamp, size_bytes=digests.size_bytes, md5=digests.md5, sha256=digests.sha256)
            if (found := as_stamped(config, info, known)) is not None:
                return found
        return stored_object(config, info, digests, metadata.decode({}))

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

    def _insert(self, tx: Transaction, found: StoredObject) -> None:
        inode_id = insert_file(tx, found)
        parent, name, lost = place_of(tx, found)
        self._result.lost_and_found += lost
        self._give_name(tx, parent, name, inode_id, found)
        self._result.files += 1
        self._result.bytes += found.digests.size_bytes

    def _give_name(
        self, tx: Transaction, parent: int, name: bytes, inode_id: int, found: StoredObject
    ) -> None:
        """The newest keeps a name that several had."""
        taken = dentries.lookup(tx, parent, name)
        if taken is None:
            dentries.insert(tx, parent, name, inode_id)
            return
        self._result.conflicts += 1
        if stat.S_ISREG(taken.mode) and taken.mtime_ns < found.mtime_ns and taken.blob_id is not None:
            old_key = blobs.get(tx, taken.blob_id).location.object_key
            dentries.retarget(tx, parent, name, inode_id)
            dentries.insert(tx, parent, free_name(tx, parent, name, old_key.rpartition("/")[2]), taken.id)
        else:
            dentries.insert(tx, parent, free_name(tx, parent, name, found.name), inode_id)
