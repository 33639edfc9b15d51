"""Healing a damaged object from whatever still has its content: *object first, row second*.

Tried in this order, each verified before it is used:

1. *itself*: the bytes are right, and only what is said of them is not (read whole to be sure);
2. *cache*: the local copy, of this blob or of a twin (its digests are computed);
3. *twin*: a blob with the same SHA-256 elsewhere, copied by S3;
4. *version*: an older version of the object in the bucket, copied by S3.

An object under our key that says of itself that it is another's is not overwritten: in a ``digest`` store
the content then goes under its collision name. In a ``versioned`` store every healing makes a new version,
and the row names that from then on.

In a ``digest`` store the content is claimed meanwhile (:mod:`s3blobfs.writeback.claims`), so the reaper does
not delete what is just being made.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from s3blobfs.blobstore import metadata
from s3blobfs.errors import (
    DamagedContent,
    PermanentS3Error,
    TierError,
)
from s3blobfs.index import blobs, dentries, inodes, scrubs
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.inspection import Damage, DamageKind, Inspector, has_digests
from s3blobfs.maintenance.target import Target
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo
from s3blobfs.types import BlobContent, BlobLocation, Keying, ObjectHint, StoredContent

logger = logging.getLogger(__name__)

VERSIONS_MAX = 16
"""Older versions of an object that are asked what they are."""
_UNKNOWN_MODE = stat.S_IFREG | 0o600


class Source(enum.Enum):
    """What an object was healed from."""

    ITSELF = "itself"
    CACHE = "cache"
    TWIN = "twin"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class _Case:
    """One damaged object."""

    row: BlobRow
    """With checksums."""
    damage: Damage
    hint: ObjectHint

    @property
    def replace(self) -> bool:
        """Whether what is there is our own object, damaged, and so may be overwritten."""
        found = self.damage.found
        return found is not None and metadata.decode(found.metadata).sha256 == self.row.digests.sha256

    def content(self, location: BlobLocation, etag: str) -> BlobContent:
        return BlobContent(self.row.id, self.row.store_id, location, etag, self.row.digests)


class Healer:
    """Heals one object at a time; several at once are no harm."""

    def __init__(self, target: Target, inspector: Inspector, *, read: bool) -> None:
        """With ``read`` no copy in S3 is taken at its word."""
        self._target = target
        self._inspector = inspector
        self._read = read

    async def heal(self, row: BlobRow, damage: Damage) -> Source | None:
        """Answers what it was healed from; ``None`` when nothing has the content any more, which is logged.

        Raises :class:`~s3blobfs.errors.TransientS3Error` (try again later) and what the index does."""
        async with self._claim(row):
            case = _Case(row, damage, await self._hint(row, damage))
            for source, attempt in self._attempts(damage):
                try:
                    healed = await attempt(case)
                    if healed is not None:
                        await self._commit(row, healed, source)
                        return source
                except (PermanentS3Error, DamagedContent, TierError, OSError) as error:
                    logger.info("%s cannot be healed from %s: %s", _name(row), source.value, error)
        return None

    def _attempts(
        self, damage: Damage
    ) -> list[tuple[Source, Callable[[_Case], Awaitable[StoredContent | None]]]]:
        itself = damage.kind in (DamageKind.METADATA, DamageKind.ETAG, DamageKind.CHECKSUMS)
        return [
            *([(Source.ITSELF, self._from_itself)] if itself else []),
            (Source.CACHE, self._from_cache),
            (Source.TWIN, self._from_twin),
            (Source.VERSION, self._from_version),
        ]

    # -- sources ---------------------------------------------------------------------------------------

    async def _from_itself(self, case: _Case) -> StoredContent | None:
        row, info = case.row, case.damage.found
        assert info is not None
        digests = await self._inspector.digests(self._target.client_of(row.store_id), row.location, info)
        if digests is None or not has_digests(digests, row.digests):
            return None
        if row.digests.checksums not in (b"", digests.checksums):
            await self._target.db.write(lambda tx: blobs.set_checksums(tx, row.id, digests.checksums))
        if case.damage.kind is not DamageKind.METADATA:
            return StoredContent(row.location, info.etag, existed=True)
        return await self._copy(case, case.content(row.location, info.etag), replace_=True)

    async def _from_cache(self, case: _Case) -> StoredContent | None:
        row = case.row
        for each in (row, *await self._twins(row)):
            if not self._target.stores[each.store_id].config.cached:
                continue
            stored = await self._from_entry(case, each)
            if stored is not None:
                return stored
        return None

    async def _from_entry(self, case: _Case, cached: BlobRow) -> StoredContent | None:
        cache, digests = self._target.tier.cache, case.row.digests
        entry = cache.get(cached.store_id, cached.location.cache_name, digests.size_bytes)
        if entry is None:
            return None
        try:
            verified = await cache.verify(entry, digests)
            if entry.is_withdrawn():
                return None  # somebody writes to its file
            if not verified:
                logger.warning("cached file %s is damaged and is not used to heal", entry.path)
                return None
            await self._inspector.requests.take()
            stored = await self._target.stores[case.row.store_id].put(
                entry.path,
                digests,
                object_id=self._object_id(case.row),
                write_id=uuid.uuid4().hex,
                hint=case.hint,
                replace=case.replace,
            )
            return None if entry.is_withdrawn() else stored  # other bytes may have been sent
        finally:
            entry.unpin()

    async def _from_twin(self, case: _Case) -> StoredContent | None:
        for twin in await self._twins(case.row):
            if (
                await self._inspector.inspect(self._target.client_of(twin.store_id), twin, read=self._read)
                is None
            ):
                return await self._copy(case, twin.content())
        return None

    async def _from_version(self, case: _Case) -> StoredContent | None:
        row = case.row
        client, key = self._target.client_of(row.store_id), row.location.object_key
        damaged = case.damage.found.version_id if case.damage.found is not None else row.location.version_id
        await self._inspector.requests.take()
        candidates = [
            version.version_id
            async for version in client.list_versions(key)
            if version.key == key
            and version.version_id not in (None, damaged)
            and not version.is_delete_marker
            and version.size_bytes == row.digests.size_bytes
        ]
        for version_id in candidates[:VERSIONS_MAX]:
            location = replace(row.location, version_id=version_id)
            info = await self._inspector.head(client, location)
            if info is not None and await self._is_content(client, location, info, row):
                return await self._copy(case, case.content(location, info.etag))
        return None

    async def _is_content(
        self, client: ObjectClient, location: BlobLocation, info: ObjectInfo, row: BlobRow
    ) -> bool:
        if await self._inspector.judge(client, info, None, row.digests) is not None:
            return False
        if not self._read:
            return True
        return has_digests(await self._inspector.digests(client, location, info), row.digests)

    async def _copy(self, case: _Case, source: BlobContent, *, replace_: bool | None = None) -> StoredContent:
        await self._inspector.requests.take()
        return await self._target.stores[case.row.store_id].copy_from(
            self._target.stores[source.store_id],
            source,
            object_id=self._object_id(case.row),
            write_id=uuid.uuid4().hex,
            hint=case.hint,
            replace=case.replace if replace_ is None else replace_,
        )

    # -- the index -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _claim(self, row: BlobRow) -> AsyncIterator[None]:
        if self._target.stores[row.store_id].config.keying is Keying.DIGEST:
            async with self._target.reaper.claims.storing(row.store_id, row.digests.sha256):
                yield
        else:
            yield  # a new version shares nothing with what is being deleted

    async def _twins(self, row: BlobRow) -> list[BlobRow]:
        """Other blobs of the same content that nobody is about to delete."""
        digests = row.digests
        rows = await self._target.db.read(
            lambda tx: blobs.find_by_digest(tx, digests.sha256, digests.size_bytes)
        )
        usable = (BlobState.LIVE, BlobState.SUPERSEDED)
        return [each for each in rows if each.id != row.id and each.state in usable]

    async def _hint(self, row: BlobRow, damage: Damage) -> ObjectHint:
        """Of a file that has the content; else what the object itself says."""

        def read(tx: Transaction) -> ObjectHint | None:
            inode = inodes.find_with_blob(tx, row.id)
            if inode is None:
                return None
            path = dentries.path_of(tx, inode.id) or b""
            return ObjectHint(inode.id, path, inode.mode, inode.uid, inode.gid, inode.mtime_ns)

        hint = await self._target.db.read(read)
        if hint is not None:
            return hint
        stamp = metadata.decode(damage.found.metadata if damage.found is not None else {})
        mode = stamp.mode if stamp.mode is not None else _UNKNOWN_MODE
        return ObjectHint(
            stamp.inode_id or 0, stamp.path or b"", mode, stamp.uid or 0, stamp.gid or 0, stamp.mtime_ns or 0
        )

    def _object_id(self, row: BlobRow) -> str | None:
        config = self._target.stores[row.store_id].config
        if config.keying is Keying.DIGEST:
            return None
        return row.location.object_key.removeprefix(config.prefix)

    async def _commit(self, row: BlobRow, stored: StoredContent, source: Source) -> None:
        now_ns = self._target.now_ns()

        def transaction(tx: Transaction) -> BlobRow:
            moved = blobs.move(tx, row.id, stored)
            scrubs.close_damage(tx, row.id, source.value, now_ns)
            return moved

        moved = await self._target.db.write(transaction, durable=True)
        logger.info("%s is healed from %s", _name(row), source.value)
        self._target.blob_changed(moved.content())
        old, new = row.location.cache_name, moved.location.cache_name
        if old != new and self._target.stores[row.store_id].config.cached:
            await self._target.tier.cache.link(row.store_id, old, row.store_id, new)
            self._target.tier.cache.remove(row.store_id, old)


def _name(row: BlobRow) -> str:
    return f"the object {row.location.object_key} of blob {row.id}"
