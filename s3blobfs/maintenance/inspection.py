"""Comparing a blob with its object in S3: by what S3 says of it, or by every byte."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import partial

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.metadata import Stamp
from s3blobfs.blobstore.stamps import read_stamp
from s3blobfs.config import MIB
from s3blobfs.errors import DamagedContent, ObjectNotFound
from s3blobfs.index.blobs import BlobRow
from s3blobfs.maintenance.pace import Pace
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo
from s3blobfs.tier.digest import INLINE_DIGEST_BYTES, ContentHasher
from s3blobfs.tier.localio import in_hash_thread
from s3blobfs.types import BlobLocation, ContentDigests

WINDOW_BYTES = 4 * MIB
"""Of an object that is read; so much is in memory for each one at a time."""


class DamageKind(enum.Enum):
    """What is wrong with an object."""

    MISSING = "missing"
    SIZE = "size"
    """It has another length."""
    METADATA = "metadata"
    """Its stamp is missing, or is that of another content."""
    ETAG = "etag"
    """It was made anew since; readers expect the ETag it had."""
    CONTENT = "content"
    """Its bytes do not have the digests."""
    CHECKSUMS = "checksums"
    """Its bytes are right, and the CRC-32 values in the index are not."""


@dataclass(frozen=True, slots=True)
class Damage:
    kind: DamageKind
    detail: str
    """A sentence for people."""
    found: ObjectInfo | None = None
    """What is in S3, where something is."""


def _judge(info: ObjectInfo, stamp: Stamp, etag: str | None, digests: ContentDigests) -> Damage | None:
    if info.size_bytes != digests.size_bytes:
        return Damage(DamageKind.SIZE, f"it has {info.size_bytes} bytes, not {digests.size_bytes}", info)
    if not stamp.matches(digests) or stamp.md5 != digests.md5:
        says = "says nothing of its content" if stamp.sha256 is None else "is of another content"
        return Damage(DamageKind.METADATA, f"its metadata {says}", info)
    if etag is not None and info.etag != etag:
        return Damage(DamageKind.ETAG, f"its ETag is {info.etag}, not {etag}", info)
    return None


class Inspector:
    """Asks S3, no faster than it may."""

    def __init__(self, requests: Pace, bandwidth: Pace) -> None:
        self.requests = requests
        self._bandwidth = bandwidth
        self.bytes_read = 0

    async def head(self, client: ObjectClient, location: BlobLocation) -> ObjectInfo | None:
        """``None``: there is no such object, or no such version."""
        await self.requests.take()
        try:
            return await client.head(location.object_key, version_id=location.version_id)
        except ObjectNotFound:
            return None

    async def judge(
        self, client: ObjectClient, info: ObjectInfo, etag: str | None, digests: ContentDigests
    ) -> Damage | None:
        """What HEAD told, and the object's stamp; ``etag`` ``None``: any."""
        if metadata.decode(info.metadata).in_tag:
            await self.requests.take()
        try:
            stamp = await read_stamp(client, info)
        except ObjectNotFound:
            return _missing(info.version_id)
        return _judge(info, stamp, etag, digests)

    async def digests(
        self, client: ObjectClient, location: BlobLocation, info: ObjectInfo
    ) -> ContentDigests | None:
        """Of an object, read piece by piece; ``None`` when it changed or went meanwhile."""
        hasher = ContentHasher()
        while hasher.position < info.size_bytes:
            length = min(WINDOW_BYTES, info.size_bytes - hasher.position)
            await self.requests.take()
            await self._bandwidth.take(length)
            try:
                answer = await client.get(
                    location.object_key,
                    version_id=location.version_id,
                    offset=hasher.position,
                    length=length,
                )
            except (ObjectNotFound, DamagedContent):
                return None
            if (answer.info.etag, answer.info.size_bytes) != (info.etag, info.size_bytes):
                return None
            self.bytes_read += length
            if length <= INLINE_DIGEST_BYTES:
                hasher.update(answer.data)
            else:
                await in_hash_thread(partial(hasher.update, answer.data))
        return hasher.digests()

    async def inspect(self, client: ObjectClient, row: BlobRow, *, read: bool) -> Damage | None:
        """With ``read`` the row must have its checksums."""
        info = await self.head(client, row.location)
        if info is None:
            return _missing(row.location.version_id)
        damage = await self.judge(client, info, row.etag, row.digests)
        if damage is not None or not read:
            return damage
        digests = await self.digests(client, row.location, info)
        if not has_digests(digests, row.digests):
            return Damage(DamageKind.CONTENT, "its bytes are not the ones that were stored", info)
        assert digests is not None
        if row.digests.checksums not in (b"", digests.checksums):
            return Damage(DamageKind.CHECKSUMS, "the index has other CRC-32 values of its bytes", info)
        return None


def _missing(version_id: str | None) -> Damage:
    return Damage(DamageKind.MISSING, f"there is no such {'object' if version_id is None else 'version'}")


def has_digests(found: ContentDigests | None, expected: ContentDigests) -> bool:
    """Length, MD5 and SHA-256."""
    return found is not None and (found.size_bytes, found.md5, found.sha256) == (
        expected.size_bytes,
        expected.md5,
        expected.sha256,
    )
