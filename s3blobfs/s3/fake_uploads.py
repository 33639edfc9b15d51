"""What a client of the in-memory S3 does in single requests: tags, and objects whose content still grows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio.lowlevel

from s3blobfs.errors import (
    EarlyPartsUseless,
    ObjectNotFound,
    PermanentS3Error,
    S3BlobFSError,
)
from s3blobfs.s3.begun import BegunUpload, EarlyPart, hashed_start, telling
from s3blobfs.s3.body import Body
from s3blobfs.s3.fake_bucket import FakeBucket, FakeUpload, FakeVersion
from s3blobfs.s3.limits import check_key, check_metadata, check_tags
from s3blobfs.s3.protocol import ObjectId, PutReceipt
from s3blobfs.trace import Count, Tracer
from s3blobfs.types import PutBody

if TYPE_CHECKING:
    from s3blobfs.s3.fake import FakeS3


class FakeEarlyUploads:
    """Base of :class:`~s3blobfs.s3.fake.FakeObjectClient`."""

    def __init__(self, server: FakeS3, bucket: str, tracer: Tracer) -> None:
        self._server = server
        self._bucket = bucket
        self._tracer = tracer

    @property
    def bucket(self) -> str:
        return self._bucket

    @property
    def part_bytes(self) -> int:
        return self._server.options.part_size_bytes

    async def begin_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> BegunUpload:
        check_key(key)
        stamped = check_metadata(metadata)
        await trio.lowlevel.checkpoint()
        upload_id = self._server.begin_upload(self._bucket, key, stamped)
        return BegunUpload(key, upload_id, self.part_bytes)

    async def send_part(self, upload: BegunUpload, part: EarlyPart, body: Path, *, checksums: bytes) -> None:
        with telling(part), Body(hashed_start(body, checksums), checksums) as content:
            content.check(part.part.offset, part.part.length)
            data = content.read(part.part.offset, part.part.length)
            await self._receive_part(upload, part.number, data)
            part.arrived(hashlib.md5(data, usedforsecurity=False).hexdigest())

    async def finish_upload(
        self, upload: BegunUpload, body: PutBody, *, checksums: bytes, repeat_unknown: bool = True
    ) -> PutReceipt:
        try:
            if not all(early.is_of(checksums) for early in upload.parts):
                raise EarlyPartsUseless("the content was changed after a part of it was sent", key=upload.key)
            for early in upload.parts:
                try:
                    await early.etag()
                except (S3BlobFSError, OSError) as error:
                    raise EarlyPartsUseless(f"a part did not arrive: {error}", key=upload.key) from error
            with Body(body, checksums) as content:
                data = content.read_checked()
            for number, part in enumerate(upload.rest(len(data)), len(upload.parts) + 1):
                await self._receive_part(upload, number, data[part.offset : part.end])
            bucket = await self._request(None)
            found = self._upload(bucket, upload)
        except BaseException:
            self._server.bucket(self._bucket).uploads.pop(upload.upload_id, None)
            raise
        pieces = [found.parts[number] for number in sorted(found.parts)]
        del bucket.uploads[upload.upload_id]
        return self._server.store(
            bucket, upload.key, b"".join(pieces), multipart_etag(pieces), found.metadata
        )

    async def _receive_part(self, upload: BegunUpload, number: int, data: bytes) -> None:
        bucket = await self._request(Count.S3_PART)
        self._upload(bucket, upload).parts[number] = data
        self._server.received_bytes += len(data)

    def _upload(self, bucket: FakeBucket, upload: BegunUpload) -> FakeUpload:
        found = bucket.uploads.get(upload.upload_id)
        if found is None:
            raise EarlyPartsUseless("somebody has thrown away what was sent", key=upload.key)
        return found

    async def put_tags(self, target: ObjectId, tags: Mapping[str, str]) -> None:
        check_key(target.key)
        checked = check_tags(tags)
        version = await self._tagged(target)
        version.tags.clear()
        version.tags.update(checked)

    async def get_tags(self, target: ObjectId) -> dict[str, str]:
        check_key(target.key)
        return dict((await self._tagged(target)).tags)

    async def _tagged(self, target: ObjectId) -> FakeVersion:
        bucket = await self._request(Count.S3_TAG)
        if not self._server.has_tags:
            raise PermanentS3Error("no tags", code="NotImplemented", status=501, key=target.key)
        return existing(bucket, target.key, target.version_id)

    async def _request(self, kind: Count | None, requests: int = 1) -> FakeBucket:
        if kind is not None:
            self._tracer.count(kind, requests)
        await trio.lowlevel.checkpoint()
        return self._server.bucket(self._bucket)


def existing(bucket: FakeBucket, key: str, version_id: str | None) -> FakeVersion:
    version = bucket.find(key, version_id)
    if version is None or version.is_delete_marker:
        code = "NoSuchKey" if version_id is None else "NoSuchVersion"
        raise ObjectNotFound("no such object", code=code, status=404, key=key)
    return version


def multipart_etag(parts: Sequence[bytes]) -> str:
    digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
