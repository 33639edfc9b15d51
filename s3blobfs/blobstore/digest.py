"""``digest`` keying: the key of a blob is the digest of its content, so the same content is stored once.

*A hit is a promise.* Before bytes are saved, S3 is asked (HEAD) whether it has the object, and the answer
counts only if the object's size and the SHA-256 in its stamp are those of the content. The key digest alone
proves nothing: MD5 collisions can be made on purpose, and anybody may have put an object there.

An object that takes the key without being the content is neither trusted nor overwritten: the content goes
under its collision name (both digests), by the same protocol.

*HEAD and PUT are two requests.* Between them another writer may store the same key. The PUT says
``If-None-Match: *`` where the server honours it, and a refusal is judged like the HEAD. Within this process a
lock per key makes the second upload of a content wait for the first, instead of sending the same bytes and
perhaps giving the object another ETag than the one already recorded. Nobody but an upload of the same
content waits for that lock.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.base import Draw, ObjectBlobStore
from s3blobfs.blobstore.keylocks import KeyLocks
from s3blobfs.blobstore.keys import collision_name, digest_location, digest_name, subject
from s3blobfs.blobstore.protocol import BlobStore, Kept, Left, SmallPut
from s3blobfs.errors import (
    ObjectAlreadyExists,
    ObjectNotFound,
    PermanentS3Error,
    S3BlobFSError,
    TransientS3Error,
)
from s3blobfs.s3.begun import BegunUpload
from s3blobfs.s3.each import HeadRequest, PutRequest, Request, Requests
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo, PutReceipt
from s3blobfs.trace import Arrow, Party, Tracer
from s3blobfs.types import BlobContent, ContentDigests, ObjectHint, PutBody, StoreConfig, StoredContent

logger = logging.getLogger(__name__)

_Send = Callable[[str], Awaitable[PutReceipt]]
"""Brings the content under a key that was found missing."""


class _Sending(Request[PutReceipt]):
    """To be carried out by a :data:`_Send`."""

    __slots__ = ()


class DigestBlobStore(ObjectBlobStore):
    """Blobs named by their digest."""

    def __init__(self, config: StoreConfig, client: ObjectClient, tracer: Tracer) -> None:
        super().__init__(config, client, tracer)
        self._locks = KeyLocks()

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
        assert begun is None, "nothing is begun before its key is known"
        stamp = metadata.encode(write_id, hint, digests)
        conditional = self._config.conditional_put and not replace

        async def send(key: str) -> PutReceipt:
            reuse = await self._reuse(kept)
            self._trace_put(key, digests.size_bytes)
            return await self._client.put(
                key,
                body,
                metadata=stamp,
                if_none_match=conditional,
                checksums=digests.checksums,
                reuse=reuse,
            )

        return await (self._replace if replace else self._store)(digests, send)

    async def put_each(self, wanted: Iterable[SmallPut]) -> None:
        await self._client.make_each(self._put_requests(wanted, self._drawn_from_thread()))

    def _put_requests(self, wanted: Iterable[SmallPut], draw: Draw) -> Requests[None]:
        for put in wanted:
            own_name, _ = self._names(put.digests)
            hold = self._locks.try_hold(own_name)
            if hold is None:
                put.outcome = Left.BUSY
                continue
            try:
                put.outcome = yield from self._storing(put.digests, partial(self._small, put, draw), draw)
            except S3BlobFSError as error:
                put.outcome = error
            finally:
                self._locks.release(hold)

    def _small(self, put: SmallPut, draw: Draw, key: str) -> PutRequest:
        draw(partial(self._trace_put, key, put.digests.size_bytes))
        return PutRequest(
            key,
            put.body,
            metadata=metadata.encode(put.write_id, put.hint, put.digests),
            if_none_match=self._config.conditional_put,
            checksums=put.digests.checksums,
        )

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
        stamp = metadata.encode(write_id, hint, blob.digests)

        async def send(key: str) -> PutReceipt:
            if not await source.exists(blob.location, blob.size_bytes):
                raise ObjectNotFound(
                    f"nothing to copy in {source.config.uri}: the object is missing or has another size",
                    key=subject(blob.location),
                )
            receipt = await self._copy(source.config.bucket, blob, key, stamp)
            self._tracer.step(Party.CLIENT, Arrow.FROM_DASHED, Party.S3, "copied")
            return receipt

        return await (self._replace if replace else self._store)(blob.digests, send)

    async def find_write(
        self, digests: ContentDigests, *, object_id: str | None, write_id: str
    ) -> StoredContent | None:
        """Whoever stored it: the same content is the same blob."""
        for name in self._names(digests):
            found = await self._head(self._config.prefix + name)
            if found is None:
                return None
            if _is_content(found, digests):
                return self._hit(name, found)
        return None

    def _names(self, digests: ContentDigests) -> tuple[str, str]:
        algorithm = self._config.digest_algorithm
        return digest_name(digests, algorithm), collision_name(digests, algorithm)

    async def _store(self, digests: ContentDigests, send: _Send) -> StoredContent:
        own_name, _ = self._names(digests)
        async with self._locks.held(own_name):
            storing = self._storing(digests, _Sending, self._drawn_from_thread())
            try:
                while True:
                    request = next(storing)
                    try:
                        if isinstance(request, HeadRequest):
                            request.succeed(await self._client.head(request.key))
                        else:
                            request.succeed(await send(request.key))
                    except S3BlobFSError as error:
                        request.fail(error)
            except StopIteration as end:
                stored: StoredContent = end.value
                return stored

    def _storing(
        self, digests: ContentDigests, send: Callable[[str], Request[PutReceipt]], draw: Draw
    ) -> Requests[StoredContent]:
        """The requests that store a content, its own name being held."""
        own_name, collision = self._names(digests)
        stored = yield from self._storing_as(own_name, digests, send, draw)
        if stored is None:
            logger.warning(
                "object %s%s in bucket %s is not the content its name says; storing as %s",
                *(self._config.prefix, own_name, self._config.bucket, collision),
            )
            stored = yield from self._storing_as(collision, digests, send, draw)
        if stored is None:
            raise PermanentS3Error(
                f"both names of a content are taken by other objects in bucket {self._config.bucket}; "
                "remove the one that this filesystem did not make",
                key=self._config.prefix + collision,
            )
        return stored

    async def _replace(self, digests: ContentDigests, send: _Send) -> StoredContent:
        own_name, _ = self._names(digests)
        async with self._locks.held(own_name):
            receipt = await send(self._config.prefix + own_name)
        return StoredContent(digest_location(self._config.prefix, own_name), receipt.etag, existed=False)

    def _storing_as(
        self, name: str, digests: ContentDigests, send: Callable[[str], Request[PutReceipt]], draw: Draw
    ) -> Requests[StoredContent | None]:
        """``None``: another content has this name."""
        key = self._config.prefix + name
        found = yield from self._looking(key, draw)
        if found is None:
            sending = send(key)
            yield sending
            try:
                receipt = sending.answer()
            except ObjectAlreadyExists as error:
                found = yield from self._looking(key, draw)
                if found is None:
                    raise TransientS3Error("object came and went while it was stored", key=key) from error
            else:
                return StoredContent(digest_location(self._config.prefix, name), receipt.etag, existed=False)
        return self._hit(name, found) if _is_content(found, digests) else None

    def _looking(self, key: str, draw: Draw) -> Requests[ObjectInfo | None]:
        draw(partial(self._trace_head, key))
        head = HeadRequest(key)
        yield head
        try:
            found = head.answer()
        except ObjectNotFound:
            found = None
        draw(partial(self._trace_found, found))
        return found

    def _hit(self, name: str, found: ObjectInfo) -> StoredContent:
        return StoredContent(digest_location(self._config.prefix, name), found.etag, existed=True)


def _is_content(found: ObjectInfo, digests: ContentDigests) -> bool:
    return found.size_bytes == digests.size_bytes and metadata.decode(found.metadata).matches(digests)
