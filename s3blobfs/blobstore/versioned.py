"""``versioned`` keying: a file keeps one opaque key for life, every change is a new S3 version of it.

A PUT is never preceded by a HEAD: whatever it answers is a version of its own, so nothing can be
overwritten and nothing is shared. What can happen is that a PUT takes place and its answer is lost. So a
request in doubt is not simply repeated: :meth:`VersionedBlobStore.find_write` looks for the version by the
write id in its stamp, and only when there is none the request is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.base import Draw, ObjectBlobStore
from s3blobfs.blobstore.early import EarlyParts
from s3blobfs.blobstore.keys import is_object_id, versioned_location
from s3blobfs.blobstore.protocol import BlobStore, Kept, Left, SmallPut
from s3blobfs.blobstore.stamps import read_stamp
from s3blobfs.errors import AccessDenied, ObjectNotFound, OutcomeUnknown, PermanentS3Error, S3BlobFSError
from s3blobfs.s3.begun import BegunUpload
from s3blobfs.s3.each import PutRequest, Requests
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo, PutReceipt
from s3blobfs.trace import Arrow, Party, Tracer
from s3blobfs.types import BlobContent, ContentDigests, ObjectHint, PutBody, StoreConfig, StoredContent

logger = logging.getLogger(__name__)

FIND_WRITE_DEPTH = 16
"""Versions of a key that are asked for their stamp. Uploads of a file never overtake one another, so a
lost one is the newest version, unless someone else writes to the bucket."""
DOUBTS_MAX = 4
"""So often a request is made whose answer is lost."""


class VersionedBlobStore(ObjectBlobStore):
    """Blobs named by ``object id`` and S3 version."""

    def __init__(self, config: StoreConfig, client: ObjectClient, tracer: Tracer) -> None:
        super().__init__(config, client, tracer)
        self._early = EarlyParts(config, client, tracer)

    @property
    def early(self) -> EarlyParts:
        return self._early

    async def put(
        self,
        body: PutBody,
        digests: ContentDigests,
        *,
        object_id: str | None,
        write_id: str,
        hint: ObjectHint,
        replace: bool = False,
        kept: Kept | None = None,
        begun: BegunUpload | None = None,
    ) -> StoredContent:
        object_id = self._checked(object_id)
        key = self._config.prefix + object_id
        stamp = metadata.encode(write_id, hint, digests)

        unfinished = begun

        async def send() -> PutReceipt:
            nonlocal unfinished
            if unfinished is not None:
                assert not isinstance(body, bytes), "what is begun is large"
                upload, unfinished = unfinished, None
                receipt = await self._early.finish(upload, body, digests, hint)
                if receipt is not None:
                    return receipt
            reuse = await self._reuse(kept)
            self._trace_put(key, digests.size_bytes)
            return await self._client.put(
                key,
                body,
                metadata=stamp,
                repeat_unknown=False,
                checksums=digests.checksums,
                reuse=reuse,
            )

        return await self._send(send, digests, object_id, write_id)

    async def put_each(self, wanted: Iterable[SmallPut]) -> None:
        await self._client.make_each(self._put_requests(wanted, self._drawn_from_thread()))

    def _put_requests(self, wanted: Iterable[SmallPut], draw: Draw) -> Requests[None]:
        for put in wanted:
            object_id = self._checked(put.object_id)
            key = self._config.prefix + object_id
            draw(partial(self._trace_put, key, put.digests.size_bytes))
            request = PutRequest(
                key,
                put.body,
                metadata=metadata.encode(put.write_id, put.hint, put.digests),
                repeat_unknown=False,
                checksums=put.digests.checksums,
            )
            yield request
            try:
                put.outcome = self._stored(object_id, request.answer(), draw)
            except OutcomeUnknown:
                put.outcome = Left.IN_DOUBT
            except S3BlobFSError as error:
                put.outcome = error

    async def copy_from(
        self,
        source: BlobStore,
        blob: BlobContent,
        *,
        object_id: str | None,
        write_id: str,
        hint: ObjectHint,
        replace: bool = False,
    ) -> StoredContent:
        object_id = self._checked(object_id)
        stamp = metadata.encode(write_id, hint, blob.digests)
        key = self._config.prefix + object_id

        async def send() -> PutReceipt:
            return await self._copy(source.config.bucket, blob, key, stamp, repeat_unknown=False)

        return await self._send(send, blob.digests, object_id, write_id)

    async def _send(
        self,
        send: Callable[[], Awaitable[PutReceipt]],
        digests: ContentDigests,
        object_id: str,
        write_id: str,
    ) -> StoredContent:
        """Make a version, and no second one when the answer is lost."""
        for doubts in range(1, DOUBTS_MAX + 1):
            try:
                return self._stored(object_id, await send(), self._drawn_from_thread())
            except OutcomeUnknown:
                found = await self.find_write(digests, object_id=object_id, write_id=write_id)
                if found is not None:
                    return found
                if doubts == DOUBTS_MAX:
                    raise
        raise AssertionError("the last doubt is raised")

    async def find_write(
        self, digests: ContentDigests, *, object_id: str | None, write_id: str
    ) -> StoredContent | None:
        object_id = self._checked(object_id)
        key = self._config.prefix + object_id
        candidates = [
            version.version_id
            async for version in self._client.list_versions(key)  # newest first
            if version.key == key
            and version.version_id is not None
            and not version.is_delete_marker
            and version.size_bytes == digests.size_bytes
        ]
        for version_id in candidates[:FIND_WRITE_DEPTH]:
            try:
                info = await self._client.head(key, version_id=version_id)
                is_write = await self._is_write(info, version_id, digests, write_id)
            except ObjectNotFound:
                continue
            if is_write:
                location = versioned_location(self._config.prefix, object_id, version_id)
                return StoredContent(location, info.etag, existed=True)
        return None

    async def _is_write(
        self, info: ObjectInfo, version_id: str, digests: ContentDigests, write_id: str
    ) -> bool:
        if metadata.decode(info.metadata).write_id != write_id:
            return False
        try:
            stamp = await read_stamp(self._client, info)
        except AccessDenied as error:
            logger.warning("whether %s is what it should be cannot be seen: %s", info.key, error)
            return False  # and it stays without a row, for gc
        if stamp.in_tag and not stamp.has_digests:
            # No other content is made an object under its write id. The tag was to follow.
            return await self._early.tag(info.key, version_id, digests)
        return stamp.matches(digests)

    def _checked(self, object_id: str | None) -> str:
        if object_id is None or not is_object_id(object_id):
            raise ValueError(f"not the object id of a file in store {self._config.name}: {object_id!r}")
        return object_id

    def _stored(self, object_id: str, receipt: PutReceipt, draw: Draw) -> StoredContent:
        if receipt.version_id is None:
            # The next change would overwrite this one, and every reader of it.
            raise PermanentS3Error(
                f"bucket {self._config.bucket} gave no version id: versioning is off. Turn it on: "
                f"{enable_versioning_command(self._config.bucket)}",
                key=self._config.prefix + object_id,
            )
        version = f"v={receipt.version_id}"
        draw(partial(self._tracer.step, Party.CLIENT, Arrow.FROM_DASHED, Party.S3, version))
        location = versioned_location(self._config.prefix, object_id, receipt.version_id)
        return StoredContent(location, receipt.etag, existed=False)


def enable_versioning_command(bucket: str) -> str:
    return f"aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled"
