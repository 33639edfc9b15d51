"""What both keyings have in common: reading, probing and deleting blobs, and how that is traced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from s3blobfs.blobstore.early import EarlyParts
from s3blobfs.blobstore.keys import subject, subject_of
from s3blobfs.blobstore.protocol import BlobSource, DeleteError, Kept, TakeContent
from s3blobfs.blobstore.reusing import Reusing
from s3blobfs.errors import (
    AccessDenied,
    DamagedContent,
    ObjectNotFound,
    ObjectStoreError,
    PermanentS3Error,
    PreconditionFailed,
    S3BlobFSError,
)
from s3blobfs.s3.protocol import (
    DeleteFailure,
    ObjectClient,
    ObjectData,
    ObjectId,
    ObjectInfo,
    PutReceipt,
    Reuse,
    TakeAnswer,
    WholeObject,
)
from s3blobfs.trace import Arrow, Local, Party, Tracer
from s3blobfs.types import BlobContent, BlobLocation, Buffer, StoreConfig

Draw = Callable[[Callable[[], None]], None]
"""Has a step drawn, now or soon."""

DELETE_BATCH_MAX = 1000
"""Keys per DeleteObjects (S3 API reference)."""


class ObjectBlobStore:
    """Base of the two stores."""

    def __init__(self, config: StoreConfig, client: ObjectClient, tracer: Tracer) -> None:
        if client.bucket != config.bucket:
            raise ValueError(f"store {config.name} is in bucket {config.bucket}, not {client.bucket}")
        self._config = config
        self._client = client
        self._tracer = tracer
        self._reusing = Reusing(config, client)

    @property
    def config(self) -> StoreConfig:
        return self._config

    @property
    def early(self) -> EarlyParts | None:
        return None

    async def exists(self, location: BlobLocation, size_bytes: int) -> bool:
        found = await self._head(location.object_key, location.version_id)
        return found is not None and found.size_bytes == size_bytes

    def open_source(self, blob: BlobContent) -> BlobSource:
        return _ObjectSource(self._config, self._client, self._tracer, blob)

    async def fetch_each(self, wanted: Iterable[tuple[BlobContent, TakeContent]]) -> None:
        await self._client.get_each(map(_whole_object, wanted))

    async def delete(self, locations: Sequence[BlobLocation]) -> list[DeleteError]:
        if len(locations) == 1:
            return await self._delete_one(locations[0])
        failures: list[DeleteError] = []
        for batch in _batches(locations):
            failures += await self._delete_batch(batch)
        return failures

    async def _delete_one(self, location: BlobLocation) -> list[DeleteError]:
        self._trace_delete(location)
        try:
            await self._client.delete(ObjectId(location.object_key, location.version_id))
        except ObjectStoreError as error:
            return [DeleteError(location, error)]
        return []

    async def _delete_batch(self, batch: Sequence[BlobLocation]) -> list[DeleteError]:
        by_target = {ObjectId(location.object_key, location.version_id): location for location in batch}
        for location in batch:
            self._trace_delete(location)
        try:
            failures = await self._client.delete_many(list(by_target))
        except ObjectStoreError as error:
            return [DeleteError(location, error) for location in batch]
        return [DeleteError(by_target[failure.target], _error_of(failure)) for failure in failures]

    # -- requests, each with its steps -----------------------------------------------------------------

    async def _head(self, key: str, version_id: str | None = None) -> ObjectInfo | None:
        self._trace_head(key, version_id)
        try:
            info = await self._client.head(key, version_id=version_id)
        except ObjectNotFound:
            info = None
        self._trace_found(info)
        return info

    def _trace_head(self, key: str, version_id: str | None = None) -> None:
        subject = subject_of(key, version_id)
        self._tracer.step(Party.CLIENT, Arrow.TO_DASHED, Party.S3, "getObjectMetadata", subject)

    def _trace_found(self, info: ObjectInfo | None) -> None:
        what = "missing" if info is None else f"exists ({info.size_bytes} bytes)"
        self._tracer.step(Party.CLIENT, Arrow.FROM_DASHED, Party.S3, what)

    def _trace_put(self, key: str, size_bytes: int) -> None:
        """From a cached store's cache the client sends; an uncached store's temporary passes through."""
        sender = Party.CLIENT if self._config.cached else Local.TMP
        self._tracer.step(sender, Arrow.TO, Party.S3, f"write {size_bytes} bytes", key)

    def _drawn_from_thread(self) -> Draw:
        """Who has steps drawn where requests are made, which may be in a worker thread: the drawing is done
        by the trio thread, in the order of the steps, and before anything that follows on the requests."""
        token, home = trio.lowlevel.current_trio_token(), threading.get_ident()

        def draw(step: Callable[[], None]) -> None:
            if not self._tracer.drawing:
                return
            if threading.get_ident() == home:
                step()
            else:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(step)

        return draw

    async def _reuse(self, kept: Kept | None) -> Reuse | None:
        reuse = await self._reusing.reuse(kept)
        if kept is not None and reuse is not None:
            size_bytes = sum(end - start for start, end in reuse.ranges)
            self._tracer.step(
                Party.CLIENT,
                Arrow.TO,
                Party.S3,
                f"uploadPartCopy of {size_bytes} bytes",
                subject(kept.blob.location),
            )
        return reuse

    async def _copy(
        self,
        source_bucket: str,
        blob: BlobContent,
        key: str,
        metadata: dict[str, str],
        *,
        repeat_unknown: bool = True,
    ) -> PutReceipt:
        location = blob.location
        self._tracer.step(Party.CLIENT, Arrow.TO, Party.S3, "copyObject", f"{subject(location)} to {key}")
        try:
            return await self._client.copy(
                source_bucket,
                ObjectId(location.object_key, location.version_id),
                key,
                size_bytes=blob.size_bytes,
                metadata=metadata,
                if_match=blob.etag,
                repeat_unknown=repeat_unknown,
            )
        except PreconditionFailed as error:
            raise altered(source_bucket, location) from error

    def _trace_delete(self, location: BlobLocation) -> None:
        request = "deleteObject" if location.version_id is None else "deleteVersion"
        self._tracer.step(Party.CLIENT, Arrow.TO, Party.S3, request, subject(location))


@dataclass(frozen=True, slots=True)
class _ObjectSource:
    """Reads one blob: by its exact version, and only while its ETag is the one that was stored."""

    config: StoreConfig
    client: ObjectClient
    tracer: Tracer
    blob: BlobContent

    async def fetch(self, offset: int, length: int) -> Buffer:
        blob, location = self.blob, self.blob.location
        whole = offset == 0 and length == blob.size_bytes
        try:
            answer = await self.client.get(
                location.object_key,
                version_id=location.version_id,
                offset=offset,
                length=None if whole else length,
                if_match=blob.etag,
            )
        except ObjectNotFound:
            self.tracer.step(Party.CLIENT, Arrow.FROM_DASHED, Party.S3, "missing", subject(location))
            raise
        except PreconditionFailed as error:
            raise altered(self.config.bucket, location) from error
        if len(answer.body) != length:
            raise DamagedContent(
                f"object {subject(location)} in bucket {self.config.bucket} has "
                f"{answer.info.size_bytes} bytes; {blob.size_bytes} were stored"
            )
        receiver = Local.CACHE if self.config.cached else Party.CLIENT
        self.tracer.step(receiver, Arrow.FROM, Party.S3, f"read {length} bytes", subject(location))
        return answer.body


def _whole_object(wanted: tuple[BlobContent, TakeContent]) -> tuple[WholeObject, TakeAnswer]:
    blob, take = wanted
    location = blob.location

    def take_answer(answer: ObjectData | S3BlobFSError) -> None:
        take(answer if isinstance(answer, S3BlobFSError) else answer.data)

    return WholeObject(location.object_key, location.version_id, blob.etag), take_answer


def altered(bucket: str, location: BlobLocation) -> DamagedContent:
    return DamagedContent(
        f"object {subject(location)} in bucket {bucket} is not the one that was stored: its ETag changed"
    )


def _error_of(failure: DeleteFailure) -> ObjectStoreError:
    kind = AccessDenied if failure.code == "AccessDenied" else PermanentS3Error
    return kind(failure.message or "not deleted", code=failure.code, key=failure.target.key)


def _batches(locations: Sequence[BlobLocation]) -> list[Sequence[BlobLocation]]:
    return [
        locations[start : start + DELETE_BATCH_MAX] for start in range(0, len(locations), DELETE_BATCH_MAX)
    ]
