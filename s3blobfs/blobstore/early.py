"""Large contents of which a ``versioned`` store sends parts before they are complete.

What an object is, its metadata say, and those are fixed when its multipart upload is created: before the
digests are known. So they go into a *tag* of the version once there is one
(:mod:`s3blobfs.blobstore.metadata`). Whether a server keeps tags, of each version its own, is found out by
trying, before a mount first relies on it. Some have none; then nothing is sent early. A ``digest`` store does
not know the key before the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import trio

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.probing import probe_key
from s3blobfs.errors import EarlyPartsUseless, PermanentS3Error
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.s3.begun import BegunUpload, EarlyPart
from s3blobfs.s3.protocol import ObjectClient, ObjectId, PutReceipt
from s3blobfs.trace import Arrow, Party, Tracer
from s3blobfs.types import ContentDigests, FileStart, ObjectHint, StoreConfig

__all__ = ["EARLY_AGE_MAX_S", "BegunUpload", "EarlyPart", "EarlyParts"]

logger = logging.getLogger(__name__)

EARLY_AGE_MAX_S = 24 * 3600.0
"""How long a content may take from its first part to its last. S3 gives an object the time when it was begun:
whoever looks for the newest ones has to look so far back."""
_PROBE = b"probe of s3blobfs; may be deleted\n"
_PROBE_TAG = {metadata.TAG: "size=34 mode=0100644"}


class EarlyParts:
    """Of one store in one mount."""

    def __init__(
        self,
        config: StoreConfig,
        client: ObjectClient,
        tracer: Tracer,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._now_ns = now_ns
        self._config = config
        self._client = client
        self._tracer = tracer
        self._lock = trio.Lock()
        self._works: bool | None = None

    @property
    def part_bytes(self) -> int:
        """How much of a content makes a part."""
        return self._client.part_bytes

    async def begin(self, object_id: str, *, write_id: str, hint: ObjectHint) -> BegunUpload | None:
        """Begin an object; ``None`` where the server cannot do what it takes. Raises what S3 says."""
        async with self._lock:
            if self._works is None:
                self._works = await self._probe()
        if not self._works:
            return None
        key = self._config.prefix + object_id
        upload = await self._client.begin_upload(key, metadata=metadata.encode_early(write_id, hint))
        self._tracer.step(Party.CLIENT, Arrow.TO_DASHED, Party.S3, "createMultipartUpload", key)
        return upload

    async def send(self, upload: BegunUpload, part: EarlyPart, body: Path, checksums: bytes) -> None:
        """See :meth:`~s3blobfs.s3.protocol.ObjectClient.send_part`."""
        what = f"write part {part.number}, {part.part.length} bytes"
        self._tracer.step(Party.CLIENT, Arrow.TO, Party.S3, what, upload.key)
        await self._client.send_part(upload, part, body, checksums=checksums)

    async def abandon(self, upload: BegunUpload) -> None:
        """It becomes no object. Raises what S3 says."""
        await upload.settled()
        self._tracer.step(Party.CLIENT, Arrow.TO_DASHED, Party.S3, "abortMultipartUpload", upload.key)
        await self._client.abort_upload(upload.key, upload.upload_id)

    async def finish(
        self, upload: BegunUpload, body: Path | FileStart, digests: ContentDigests, hint: ObjectHint
    ) -> PutReceipt | None:
        """Make it the object of a content, with its tag. ``None``: it cannot become that; what is left of it
        nothing names. Raises what S3 says."""
        left = digests.size_bytes - upload.end
        self._tracer.step(Party.CLIENT, Arrow.TO, Party.S3, f"write the other {left} bytes", upload.key)
        try:
            receipt = await self._client.finish_upload(
                upload, body, checksums=digests.checksums, repeat_unknown=False
            )
        except EarlyPartsUseless as error:
            logger.info("%s is sent whole: %s", upload.key, error)
            return None
        reached(Failpoint.EARLY_COMPLETED)
        if receipt.version_id is None:
            return receipt  # versioning is off, which the caller says
        if not await self.tag(upload.key, receipt.version_id, digests, hint):
            return None
        reached(Failpoint.EARLY_TAGGED)
        return receipt

    async def tag(
        self, key: str, version_id: str, digests: ContentDigests, hint: ObjectHint | None = None
    ) -> bool:
        """Let a version say what it is. False when S3 refuses that for good, though it did so for the probe:
        then the version is nobody's, and gc's. Raises what else S3 says."""
        self._tracer.step(
            Party.CLIENT, Arrow.TO_DASHED, Party.S3, "putObjectTagging", f"{key} v={version_id}"
        )
        tags = metadata.encode_tag(digests, hint, self._now_ns())
        try:
            await self._client.put_tags(ObjectId(key, version_id), tags)
        except PermanentS3Error as error:
            logger.warning("%s version %s was given no tag, and is not used: %s", key, version_id, error)
            return False
        return True

    async def _probe(self) -> bool:
        try:
            async with probe_key(self._client, self._config.prefix) as key:
                works = await _keeps_tags(self._client, key)
        except PermanentS3Error as error:
            logger.info("tags are refused in bucket %s: %s", self._client.bucket, error)
            works = False
        if not works:
            logger.info(
                "bucket %s keeps no tags of versions: large files are sent when they are closed",
                self._client.bucket,
            )
        return works


async def _keeps_tags(client: ObjectClient, key: str) -> bool:
    """Of each version its own, which are as they were put."""
    first = await client.put(key, _PROBE)
    second = await client.put(key, _PROBE)
    earlier, newer = ObjectId(key, first.version_id), ObjectId(key, second.version_id)
    await client.put_tags(earlier, _PROBE_TAG)
    return await client.get_tags(earlier) == _PROBE_TAG and await client.get_tags(newer) == {}
