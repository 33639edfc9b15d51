"""The object client of a real S3: data plane and control plane put together, in worker threads, retried.

What a caller should know of retries: a PUT, a copy or a completed upload whose answer was lost is repeated.
In a versioned bucket that leaves a version that nobody was told of; with ``if_none_match`` the repetition
may find its own object and raise :class:`~s3blobfs.errors.ObjectAlreadyExists`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.lowlevel

from s3blobfs.config import MIB, S3Options
from s3blobfs.errors import PermanentS3Error, S3BlobFSError
from s3blobfs.s3.begun import BegunUpload, EarlyPart, hashed_start, telling
from s3blobfs.s3.body import Body
from s3blobfs.s3.connection import S3Connection
from s3blobfs.s3.control import ControlPlane, CopySource, Page
from s3blobfs.s3.dataplane import DataPlane
from s3blobfs.s3.each import HeadRequest, PutRequest, Request, Requests
from s3blobfs.s3.limits import (
    COPY_MAX_BYTES,
    check_batch,
    check_key,
    check_metadata,
    check_range,
    check_tags,
)
from s3blobfs.s3.multipart import CopyRefused, MultipartUploads
from s3blobfs.s3.parts import Part, reusing_parts, sent_parts
from s3blobfs.s3.protocol import (
    DeleteFailure,
    ObjectData,
    ObjectId,
    ObjectInfo,
    ObjectVersionInfo,
    PutReceipt,
    Reuse,
    TakeAnswer,
    UploadInfo,
    WholeObject,
)
from s3blobfs.s3.requests import RequestRunner
from s3blobfs.s3.retry import Randomness
from s3blobfs.trace import Count, Tracer
from s3blobfs.types import PutBody

log = logging.getLogger(__name__)

EMPTY_PAGES_MAX = 1000
"""In a row, of a listing: S3 may answer such while it looks for what is left."""
COPY_PART_BYTES = 512 * MIB
"""Large: the bytes stay inside S3, and each part is a request."""

Entry = TypeVar("Entry")


class S3ObjectClient:
    """:class:`~s3blobfs.s3.protocol.ObjectClient` of one bucket. Made by a :class:`S3ClientFactory`.

    ``copy_max_bytes`` and ``copy_part_bytes`` are S3's limits unless a test lowers them.
    """

    def __init__(
        self,
        connection: S3Connection,
        runner: RequestRunner,
        bucket: str,
        *,
        copy_max_bytes: int = COPY_MAX_BYTES,
        copy_part_bytes: int = COPY_PART_BYTES,
    ) -> None:
        self._bucket = bucket
        self._runner = runner
        self._options = connection.options
        self._data = DataPlane(connection, bucket)
        self._control = ControlPlane(connection, bucket)
        self._uploads = MultipartUploads(runner, self._control, connection.options.part_concurrency)
        self._copy_max_bytes = copy_max_bytes
        self._copy_part_bytes = copy_part_bytes

    @property
    def bucket(self) -> str:
        return self._bucket

    # -- data plane ------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: PutBody,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        repeat_unknown: bool = True,
        checksums: bytes = b"",
        reuse: Reuse | None = None,
    ) -> PutReceipt:
        check_key(key)
        stamped = check_metadata(metadata)
        with Body(body, checksums) as content:
            if content.size_bytes >= self._options.multipart_threshold_bytes:
                return await self._put_parts(key, content, stamped, if_none_match, repeat_unknown, reuse)

            def request() -> PutReceipt:
                # Read anew by each attempt: not held in memory while waiting, and compared again.
                data = content.read_checked()
                return self._data.put(key, data, stamped, if_none_match)

            return await self._runner.run(
                Count.S3_PUT, request, reads_only=False, repeat_unknown=repeat_unknown
            )

    async def _put_parts(
        self,
        key: str,
        content: Body,
        stamped: Mapping[str, str],
        if_none_match: bool,
        repeat_unknown: bool,
        reuse: Reuse | None,
    ) -> PutReceipt:
        size_bytes, part_bytes = content.size_bytes, self._options.part_size_bytes
        upload = partial(
            self._uploads.upload,
            key,
            content,
            metadata=stamped,
            if_none_match=if_none_match,
            repeat_unknown=repeat_unknown,
        )
        parts = None if reuse is None else reusing_parts(size_bytes, part_bytes, reuse)
        if reuse is not None and parts is not None:
            check_key(reuse.source.key)
            source = CopySource(reuse.bucket, reuse.source, reuse.etag)
            try:
                return await upload(parts=parts, source=source)
            except CopyRefused as refusal:
                log.warning("%s is sent whole, for S3 does not copy %s: %s", key, reuse.source.key, refusal)
        return await upload(parts=sent_parts(size_bytes, part_bytes))

    async def get(
        self,
        key: str,
        *,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
    ) -> ObjectData:
        check_key(key)
        check_range(offset, length)
        request = partial(self._data.get, key, version_id, offset, length, if_match)
        return await self._runner.run(Count.S3_GET, request, reads_only=True)

    async def get_each(self, wanted: Iterable[tuple[WholeObject, TakeAnswer]]) -> None:
        def requests() -> Iterator[None]:
            for target, take in wanted:
                yield
                try:
                    answer = self._data.get(target.key, target.version_id, 0, None, target.if_match)
                except S3BlobFSError as error:
                    take(error)
                else:
                    take(answer)

        await self._runner.run_aside(Count.S3_GET, requests())

    async def make_each(self, requests: Requests[None]) -> None:
        await self._runner.run_each(requests, self._make)

    def _make(self, request: Request[Any]) -> None:
        """In a worker thread."""
        check_key(request.key)
        if isinstance(request, HeadRequest):
            request.succeed(self._data.head(request.key, None))
            return
        assert isinstance(request, PutRequest)
        stamped = check_metadata(request.metadata)
        with Body(request.body, request.checksums) as content:
            data = content.read_checked()
        request.succeed(self._data.put(request.key, data, stamped, request.if_none_match))

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        check_key(key)
        return await self._runner.run(
            Count.S3_HEAD, partial(self._data.head, key, version_id), reads_only=True
        )

    # -- a large object whose content is not complete yet ------------------------------------------------

    @property
    def part_bytes(self) -> int:
        return self._options.part_size_bytes

    async def begin_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> BegunUpload:
        check_key(key)
        upload_id = await self._uploads.create(key, check_metadata(metadata))
        return BegunUpload(key, upload_id, self._options.part_size_bytes)

    async def send_part(self, upload: BegunUpload, part: EarlyPart, body: Path, *, checksums: bytes) -> None:
        with telling(part), Body(hashed_start(body, checksums), checksums) as content:
            part.arrived(
                await self._uploads.send_part(upload.key, upload.upload_id, part.number, content, part.part)
            )

    async def finish_upload(
        self, upload: BegunUpload, body: PutBody, *, checksums: bytes, repeat_unknown: bool = True
    ) -> PutReceipt:
        return await self._uploads.finish(upload, body, checksums, repeat_unknown)

    # -- control plane ---------------------------------------------------------------------------------

    async def put_tags(self, target: ObjectId, tags: Mapping[str, str]) -> None:
        check_key(target.key)
        await self._change(Count.S3_TAG, partial(self._control.put_tags, target, check_tags(tags)))

    async def get_tags(self, target: ObjectId) -> dict[str, str]:
        check_key(target.key)
        return await self._runner.run(Count.S3_TAG, partial(self._control.get_tags, target), reads_only=True)

    async def copy(
        self,
        source_bucket: str,
        source: ObjectId,
        key: str,
        *,
        size_bytes: int,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        repeat_unknown: bool = True,
    ) -> PutReceipt:
        check_key(key)
        check_key(source.key)
        stamped = None if metadata is None else check_metadata(metadata)
        copy_source = CopySource(source_bucket, source, if_match)
        if size_bytes <= self._copy_max_bytes:
            request = partial(self._control.copy, copy_source, key, stamped)
            return await self._runner.run(
                Count.S3_COPY, request, reads_only=False, repeat_unknown=repeat_unknown
            )
        # UploadPartCopy brings no metadata along, and its parts must be of one content.
        if stamped is None or if_match is None:
            head = partial(self._control.head, source_bucket, source)
            info = await self._runner.run(Count.S3_HEAD, head, reads_only=True)
            stamped = dict(info.metadata) if stamped is None else stamped
            copy_source = CopySource(source_bucket, source, if_match or info.etag)
        parts = sent_parts(size_bytes, self._copy_part_bytes)
        return await self._uploads.copy(key, copy_source, parts, stamped, repeat_unknown)

    async def copy_range(
        self, source_bucket: str, source: ObjectId, key: str, *, offset: int, length: int, if_match: str
    ) -> PutReceipt:
        check_key(key)
        check_key(source.key)
        check_range(offset, length)
        copy_source = CopySource(source_bucket, source, if_match)
        return await self._uploads.copy(key, copy_source, [Part(offset, length)], {}, repeat_unknown=True)

    async def delete(self, target: ObjectId) -> None:
        check_key(target.key)
        await self._change(Count.S3_DELETE, partial(self._control.delete, target))

    async def delete_many(self, targets: Sequence[ObjectId]) -> list[DeleteFailure]:
        check_batch(len(targets))
        for target in targets:
            check_key(target.key)
        if not targets:
            await trio.lowlevel.checkpoint()
            return []
        return await self._runner.run(
            Count.S3_DELETE_BATCH, partial(self._control.delete_many, targets), reads_only=False
        )

    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._list(partial(self._control.list_objects, prefix))

    def list_versions(self, prefix: str) -> AsyncIterator[ObjectVersionInfo]:
        return self._list(partial(self._control.list_versions, prefix))

    def list_uploads(self, prefix: str) -> AsyncIterator[UploadInfo]:
        return self._list(partial(self._control.list_uploads, prefix))

    async def abort_upload(self, key: str, upload_id: str) -> None:
        check_key(key)
        await self._change(Count.S3_DELETE, partial(self._control.abort_upload, key, upload_id))

    async def _list(self, get_page: Callable[[dict[str, Any]], Page[Entry]]) -> AsyncIterator[Entry]:
        following: dict[str, Any] | None = {}
        asked: set[str] = set()
        empty = 0
        while following is not None:
            page = await self._runner.run(Count.S3_LIST, partial(get_page, following), reads_only=True)
            for entry in page.entries:
                yield entry
            following = page.next_page
            empty = 0 if page.entries else empty + 1
            place = repr(following)
            if place in asked or empty > EMPTY_PAGES_MAX:
                raise PermanentS3Error(f"the listing of {self._bucket} does not come to an end")
            asked.add(place)

    async def bucket_exists(self) -> bool:
        return await self._runner.run(Count.S3_CONTROL, self._control.bucket_exists, reads_only=True)

    async def create_bucket(self) -> None:
        await self._change(Count.S3_CONTROL, self._control.create_bucket)

    async def versioning_enabled(self) -> bool:
        return await self._runner.run(Count.S3_CONTROL, self._control.versioning_enabled, reads_only=True)

    async def enable_versioning(self) -> None:
        await self._change(Count.S3_CONTROL, self._control.enable_versioning)

    async def aclose(self) -> None:
        """obstore's pool goes with its store; boto3's is the factory's to close."""
        await trio.lowlevel.checkpoint()

    def _change(self, kind: Count, request: Callable[[], None]) -> Awaitable[None]:
        return self._runner.run(kind, request, reads_only=False)


class S3ClientFactory:
    """Makes the clients of a volume's buckets: one session, one bound on requests in flight."""

    def __init__(self, options: S3Options, tracer: Tracer, *, uniform: Randomness = random.random) -> None:
        self._options = options
        self.connection = S3Connection(options)
        self.runner = RequestRunner(options, tracer, uniform=uniform)

    def __call__(self, bucket: str) -> S3ObjectClient:
        return S3ObjectClient(self.connection, self.runner, bucket)

    def beside(self, bucket: str) -> S3ObjectClient:
        """A client with a bound on requests, and counts, of its own: what it asks for must not wait behind
        the others' uploads."""
        return S3ObjectClient(self.connection, RequestRunner(self._options, Tracer()), bucket)

    async def aclose(self) -> None:
        """Close pooled connections. No request may be in flight."""
        await trio.to_thread.run_sync(self.connection.close)


def make_client_factory(options: S3Options, tracer: Tracer) -> S3ClientFactory:
    """Resolves credentials, which may block for seconds; raises what :class:`S3Connection` raises."""
    return S3ClientFactory(options, tracer)
