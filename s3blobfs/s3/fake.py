"""S3 in memory: versions, delete markers, metadata, ETags, conditional requests, copies between buckets.

Deterministic: version ids and times come from a counter of changes, so a test's trace is the same in each
run. What it does is what the conformance suite in ``tests/s3`` finds real servers doing.

One :class:`FakeS3` is the server; :meth:`FakeS3.client` gives a client of one bucket, :meth:`FakeS3.factory`
what a volume wants. Everything that a request changes, it changes without a checkpoint in between: requests
of several tasks are atomic, in some order.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import trio
import trio.lowlevel

from s3blobfs.config import S3Options
from s3blobfs.errors import (
    BucketNotFound,
    DamagedContent,
    ObjectAlreadyExists,
    PermanentS3Error,
    PreconditionFailed,
)
from s3blobfs.s3.body import Body
from s3blobfs.s3.each import Requests, make_one_by_one
from s3blobfs.s3.fake_bucket import FakeBucket, FakeUpload, FakeVersion
from s3blobfs.s3.fake_uploads import FakeEarlyUploads, existing, multipart_etag
from s3blobfs.s3.limits import (
    LIST_PAGE_MAX,
    check_batch,
    check_key,
    check_metadata,
    check_range,
)
from s3blobfs.s3.one_by_one import get_one_by_one
from s3blobfs.s3.parts import Part, reusing_parts, sent_parts
from s3blobfs.s3.protocol import (
    DeleteFailure,
    ObjectClient,
    ObjectClientFactory,
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
from s3blobfs.trace import Count, Tracer
from s3blobfs.types import PutBody

__all__ = ["FakeBucket", "FakeObjectClient", "FakeS3", "FakeVersion"]

log = logging.getLogger(__name__)

_FIRST_CHANGE_S = 1_700_000_000
"""The fake's clock begins here and goes on by a second with every change (S3 tells whole seconds)."""


class FakeS3:
    """The server. ``clock_ns`` gives the time of each change; without it, time is the number of changes."""

    def __init__(
        self,
        options: S3Options | None = None,
        *,
        clock_ns: Callable[[], int] | None = None,
        page_size: int = LIST_PAGE_MAX,
    ) -> None:
        self.options = options or S3Options()
        self.page_size = page_size
        self.buckets: dict[str, FakeBucket] = {}
        self.received_bytes = 0
        """Of all bodies."""
        self.copied_part: Callable[[bytes, int, int], bytes] | None = lambda data, start, end: data[start:end]
        """What UploadPartCopy makes of a source; ``None``: it is not implemented."""
        self.has_tags = True
        """Tags are implemented."""
        self.conditional_copies = True
        """UploadPartCopy honours CopySourceIfMatch."""
        self._clock_ns = clock_ns
        self._changes = 0

    def client(self, bucket: str, tracer: Tracer | None = None) -> FakeObjectClient:
        """A client of a bucket, which need not exist yet."""
        return FakeObjectClient(self, bucket, tracer or Tracer())

    def factory(self, tracer: Tracer) -> ObjectClientFactory:
        def make_client(bucket: str) -> ObjectClient:
            return self.client(bucket, tracer)

        return make_client

    def bucket(self, name: str) -> FakeBucket:
        """Raises :class:`~s3blobfs.errors.BucketNotFound`."""
        try:
            return self.buckets[name]
        except KeyError:
            raise BucketNotFound(f"no bucket {name!r}", code="NoSuchBucket", status=404) from None

    def store(
        self,
        bucket: FakeBucket,
        key: str,
        data: bytes,
        etag: str,
        metadata: dict[str, str],
        tags: dict[str, str] | None = None,
    ) -> PutReceipt:
        """Make ``data`` the current version of ``key``."""
        info = self._new_info(bucket, key, len(data), etag, metadata)
        bucket.insert(FakeVersion(self._changes, info, data, tags=tags or {}))
        return PutReceipt(info.etag, info.version_id)

    def mark_deleted(self, bucket: FakeBucket, key: str) -> None:
        info = self._new_info(bucket, key, 0, "", {})
        bucket.insert(FakeVersion(self._changes, info, b"", is_delete_marker=True))

    def begin_upload(self, bucket: str, key: str, metadata: dict[str, str] | None = None) -> str:
        """A multipart upload; answers its id. Those of a client's ``put`` are over as soon as they are
        begun, and never seen."""
        self._changes += 1
        upload_id = hashlib.sha256(b"upload %d" % self._changes).hexdigest()[:32]
        info = UploadInfo(key, upload_id, self._now_ns())
        self.bucket(bucket).uploads[upload_id] = FakeUpload(info, metadata or {})
        return upload_id

    def _now_ns(self) -> int:
        """Of the last change."""
        now_ns = self._clock_ns() if self._clock_ns else (_FIRST_CHANGE_S + self._changes) * 10**9
        return now_ns // 10**9 * 10**9

    def _new_info(
        self, bucket: FakeBucket, key: str, size_bytes: int, etag: str, metadata: dict[str, str]
    ) -> ObjectInfo:
        self._changes += 1
        # Hashed: S3's version ids do not sort by age, and nobody shall come to rely on it here.
        version_id = hashlib.sha256(b"version %d" % self._changes).hexdigest()[:32]
        return ObjectInfo(
            key=key,
            size_bytes=size_bytes,
            etag=etag,
            version_id=version_id if bucket.versioning else None,
            last_modified_ns=self._now_ns(),
            metadata=metadata,
        )


class FakeObjectClient(FakeEarlyUploads):
    """:class:`~s3blobfs.s3.protocol.ObjectClient` of one bucket of a :class:`FakeS3`."""

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
            data = content.read_checked()
        options = self._server.options
        if len(data) < options.multipart_threshold_bytes:
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
            bucket = await self._request(Count.S3_PUT)
            self._server.received_bytes += len(data)
        else:
            pieces = await self._send_parts(data, reuse)
            etag, data = multipart_etag(pieces), b"".join(pieces)
            bucket = self._server.bucket(self._bucket)
        current = bucket.find(key)
        if if_none_match and current is not None and not current.is_delete_marker:
            raise ObjectAlreadyExists("the key is taken", code="PreconditionFailed", status=412, key=key)
        return self._server.store(bucket, key, data, etag, stamped)

    async def _send_parts(self, data: bytes, reuse: Reuse | None) -> list[bytes]:
        """What S3 has of each part then."""
        part_bytes = self._server.options.part_size_bytes
        parts = None if reuse is None else reusing_parts(len(data), part_bytes, reuse)
        if reuse is not None and parts is not None:
            try:
                return [await self._receive(data, part, reuse) for part in parts]
            except PermanentS3Error as error:
                log.warning("sent whole, for S3 does not copy %s: %s", reuse.source.key, error)
        return [await self._receive(data, part, reuse) for part in sent_parts(len(data), part_bytes)]

    async def _receive(self, data: bytes, part: Part, reuse: Reuse | None) -> bytes:
        if part.copied:
            assert reuse is not None
            return await self._copy_part(reuse.bucket, reuse.source, part.offset, part.end, reuse.etag)
        await self._request(Count.S3_PART)
        self._server.received_bytes += part.length
        return data[part.offset : part.end]

    async def _copy_part(
        self, source_bucket: str, source: ObjectId, start: int, end: int, if_match: str
    ) -> bytes:
        await self._request(Count.S3_COPY)
        if self._server.copied_part is None:
            raise PermanentS3Error("no UploadPartCopy", code="NotImplemented", status=501, key=source.key)
        version = existing(self._server.bucket(source_bucket), source.key, source.version_id)
        if self._server.conditional_copies and if_match != version.info.etag:
            raise PreconditionFailed(
                "the source is not the one expected", code="PreconditionFailed", status=412, key=source.key
            )
        return self._server.copied_part(version.data, start, end)

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
        version = existing(await self._request(Count.S3_GET), key, version_id)
        if if_match is not None and if_match != version.info.etag:
            raise PreconditionFailed(
                "the object is not the one expected", code="PreconditionFailed", status=412, key=key
            )
        size_bytes = version.info.size_bytes
        end = size_bytes if length is None else offset + length
        if end > size_bytes or (offset > 0 and offset >= size_bytes):
            raise DamagedContent(f"key {key}: bytes {offset} to {end} asked for, it has {size_bytes}")
        return ObjectData(version.data[offset:end], _copied(version.info))

    async def get_each(self, wanted: Iterable[tuple[WholeObject, TakeAnswer]]) -> None:
        await get_one_by_one(self, wanted)

    async def make_each(self, requests: Requests[None]) -> None:
        await make_one_by_one(self, requests)

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        check_key(key)
        return _copied(existing(await self._request(Count.S3_HEAD), key, version_id).info)

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
        bucket = await self._request(Count.S3_COPY)
        version = existing(self._server.bucket(source_bucket), source.key, source.version_id)
        if if_match is not None and if_match != version.info.etag:
            raise PreconditionFailed(
                "the source is not the one expected", code="PreconditionFailed", status=412, key=source.key
            )
        if (source_bucket, source) == (self._bucket, ObjectId(key)) and stamped is None:
            raise PermanentS3Error(
                "an object cannot be copied to itself unchanged", code="InvalidRequest", status=400, key=key
            )
        if stamped is None:
            stamped = dict(version.info.metadata)
        etag = hashlib.md5(version.data, usedforsecurity=False).hexdigest()
        return self._server.store(bucket, key, version.data, etag, stamped, dict(version.tags))

    async def copy_range(
        self, source_bucket: str, source: ObjectId, key: str, *, offset: int, length: int, if_match: str
    ) -> PutReceipt:
        check_key(key)
        check_key(source.key)
        check_range(offset, length)
        data = await self._copy_part(source_bucket, source, offset, offset + length, if_match)
        return self._server.store(self._server.bucket(self._bucket), key, data, multipart_etag([data]), {})

    async def delete(self, target: ObjectId) -> None:
        check_key(target.key)
        self._delete(await self._request(Count.S3_DELETE), target)

    async def delete_many(self, targets: Sequence[ObjectId]) -> list[DeleteFailure]:
        check_batch(len(targets))
        for target in targets:
            check_key(target.key)
        if not targets:
            await trio.lowlevel.checkpoint()
            return []
        bucket = await self._request(Count.S3_DELETE_BATCH)
        for target in targets:
            self._delete(bucket, target)
        return []

    def _delete(self, bucket: FakeBucket, target: ObjectId) -> None:
        if bucket.versioning and target.version_id is None:
            self._server.mark_deleted(bucket, target.key)
        else:
            bucket.remove(target.key, target.version_id)

    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for version, is_latest in self._list(prefix, current_only=True):
            if is_latest:
                yield replace(version.info, metadata={}, version_id=None)

    async def list_versions(self, prefix: str) -> AsyncIterator[ObjectVersionInfo]:
        async for version, is_latest in self._list(prefix, current_only=False):
            yield ObjectVersionInfo(
                key=version.info.key,
                version_id=version.info.version_id,
                is_delete_marker=version.is_delete_marker,
                is_latest=is_latest,
                size_bytes=version.info.size_bytes,
                etag=version.info.etag,
                last_modified_ns=version.info.last_modified_ns,
            )

    async def list_uploads(self, prefix: str) -> AsyncIterator[UploadInfo]:
        bucket = await self._request(Count.S3_LIST)
        begun = [upload.info for upload in bucket.uploads.values()]
        for upload in sorted(begun, key=lambda upload: (upload.key, upload.upload_id)):
            if upload.key.startswith(prefix):
                yield upload

    async def abort_upload(self, key: str, upload_id: str) -> None:
        check_key(key)
        bucket = await self._request(Count.S3_DELETE)
        bucket.uploads.pop(upload_id, None)

    async def _list(self, prefix: str, *, current_only: bool) -> AsyncIterator[tuple[FakeVersion, bool]]:
        """Page by page; a page shows the bucket as it is when the page is asked for, as S3 does."""
        last: tuple[str, int] | None = None
        more = True
        while more:
            bucket = await self._request(Count.S3_LIST)
            entries = [
                (version, is_latest)
                for version, is_latest in bucket.newest_first(prefix)
                if not current_only or (is_latest and not version.is_delete_marker)
            ]
            start = 0 if last is None else bisect.bisect_right(entries, last, key=_listing_position)
            page = entries[start : start + self._server.page_size]
            more = start + len(page) < len(entries)
            for entry in page:
                yield entry
            last = _listing_position(page[-1]) if page else last

    async def bucket_exists(self) -> bool:
        self._tracer.count(Count.S3_CONTROL)
        await trio.lowlevel.checkpoint()
        return self._bucket in self._server.buckets

    async def create_bucket(self) -> None:
        self._tracer.count(Count.S3_CONTROL)
        await trio.lowlevel.checkpoint()
        self._server.buckets.setdefault(self._bucket, FakeBucket())

    async def versioning_enabled(self) -> bool:
        return (await self._request(Count.S3_CONTROL)).versioning

    async def enable_versioning(self) -> None:
        (await self._request(Count.S3_CONTROL)).versioning = True

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _copied(info: ObjectInfo) -> ObjectInfo:
    """The caller may do with its metadata what it likes."""
    return replace(info, metadata=dict(info.metadata))


def _listing_position(entry: tuple[FakeVersion, bool]) -> tuple[str, int]:
    """Keys by code point, which is S3's order of UTF-8; versions newest first."""
    return entry[0].info.key, -entry[0].sequence
