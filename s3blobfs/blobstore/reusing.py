"""Large contents of which a stored one has most: the server copies that, the rest is sent.

Whether a server copies ranges of objects (UploadPartCopy) as S3 does is found out by trying, before a mount
first relies on it: one that ignored the range, the version or the condition would make an object of other
bytes, with nobody noticing before it is read.
"""

from __future__ import annotations

import logging

import trio

from s3blobfs.blobstore.probing import probe_key
from s3blobfs.blobstore.protocol import Kept
from s3blobfs.config import MIB
from s3blobfs.errors import PermanentS3Error, PreconditionFailed
from s3blobfs.s3.protocol import ObjectClient, ObjectId, Reuse
from s3blobfs.types import StoreConfig

logger = logging.getLogger(__name__)

REUSED_LEAST_BYTES = 32 * MIB
"""In all: below it, four requests and a copy inside S3 are no faster than one PUT."""
_PROBE = b"probe of s3blobfs; may be deleted\n"
_NEWER = b"the newer version\n"


class Reusing:
    """Of one store in one mount."""

    def __init__(self, config: StoreConfig, client: ObjectClient) -> None:
        self._config = config
        self._client = client
        self._lock = trio.Lock()
        self._works: bool | None = None

    async def reuse(self, kept: Kept | None) -> Reuse | None:
        """What to tell the client of it: nothing, if it is little, or if the server does not do it right.
        Raises what S3 says to the probe, unless it is for good."""
        if kept is None or sum(end - start for start, end in kept.ranges) < REUSED_LEAST_BYTES:
            return None
        async with self._lock:
            if self._works is None:
                self._works = await self._probe()
        if not self._works:
            return None
        location = kept.blob.location
        source = ObjectId(location.object_key, location.version_id)
        return Reuse(kept.bucket, source, kept.blob.etag, kept.ranges)

    async def _probe(self) -> bool:
        try:
            async with probe_key(self._client, self._config.prefix) as key:
                works = await _copies_ranges(self._client, key)
        except PermanentS3Error as error:
            logger.info("UploadPartCopy is refused in bucket %s: %s", self._client.bucket, error)
            works = False
        if not works:
            logger.info(
                "bucket %s copies no ranges of objects: a large file is sent whole after each change",
                self._client.bucket,
            )
        return works


async def _copies_ranges(client: ObjectClient, key: str) -> bool:
    """Of the version that is named, where there are versions, and of the object that is meant only."""
    first = await client.put(key, _PROBE)
    if first.version_id is not None:
        await client.put(key, _NEWER)
    source = ObjectId(key, first.version_id)
    made = await client.copy_range(client.bucket, source, key, offset=3, length=11, if_match=first.etag)
    if (await client.get(key, version_id=made.version_id)).data != _PROBE[3:14]:
        return False
    try:
        await client.copy_range(client.bucket, source, key, offset=0, length=5, if_match="0" * 32)
    except PreconditionFailed:
        return True
    return False
