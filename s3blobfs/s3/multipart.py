"""Multipart uploads: parts in parallel, each retried by itself, and nothing left behind on failure.

By boto3 and not by obstore's own multipart upload: that one repeats nothing or everything, takes no
``If-None-Match``, and its requests could not be counted. At 5 MiB and more to a part the CPU cost of
boto3's request does not show.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio
import trio.lowlevel

from s3blobfs.errors import (
    BucketNotFound,
    EarlyPartsUseless,
    ObjectStoreError,
    OutcomeUnknown,
    PermanentS3Error,
    S3BlobFSError,
    TransientS3Error,
)
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.s3.begun import BegunUpload
from s3blobfs.s3.body import Body
from s3blobfs.s3.control import ControlPlane, CopySource
from s3blobfs.s3.parts import Part
from s3blobfs.s3.protocol import PutReceipt
from s3blobfs.s3.requests import RequestRunner
from s3blobfs.trace import Count
from s3blobfs.types import PutBody

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class CopyRefused(Exception):
    """S3 does not copy a part of the source, or the source is not what it was."""

    def __init__(self, error: ObjectStoreError) -> None:
        super().__init__(str(error))
        self.error = error


class MultipartUploads:
    """Makes large objects of one bucket. Each request has a total deadline of its own: how long a whole
    upload takes is a matter of its size."""

    def __init__(self, runner: RequestRunner, control: ControlPlane, concurrency: int) -> None:
        self._runner = runner
        self._control = control
        self._concurrency = concurrency

    async def upload(
        self,
        key: str,
        body: Body,
        parts: Sequence[Part],
        metadata: Mapping[str, str],
        if_none_match: bool,
        repeat_unknown: bool,
        source: CopySource | None = None,
    ) -> PutReceipt:
        """Raises :class:`~s3blobfs.errors.ObjectAlreadyExists` at the end, not at the beginning, and
        :class:`CopyRefused` when parts that ``source`` has could not be copied."""

        async def send(number: int, part: Part) -> str:
            if part.copied:
                assert source is not None
                return await self._copy_part(key, upload_id, number, part, source)
            etag = await self.send_part(key, upload_id, number, body, part)
            reached(Failpoint.PART_SENT)
            return etag

        upload_id = await self.create(key, metadata)
        async with self._aborted_on_failure(key, upload_id):
            etags = await map_parallel(send, parts, self._concurrency)
            body.check_unchanged()
            return await self._complete(key, upload_id, etags, if_none_match, repeat_unknown)

    async def create(self, key: str, metadata: Mapping[str, str]) -> str:
        """Answers the upload id."""
        return await self._runner.run(
            None, partial(self._control.create_upload, key, metadata), reads_only=False
        )

    async def send_part(self, key: str, upload_id: str, number: int, body: Body, part: Part) -> str:
        """Answers its ETag."""
        crc = body.checksum_of(part.offset, part.length)

        def request() -> str:
            if crc is not None:
                with body.sending(part.offset, part.length) as content:
                    return self._control.upload_part(key, upload_id, number, content, crc)
            body.check(part.offset, part.length)
            return self._control.upload_part(
                key, upload_id, number, body.open_range(part.offset, part.length), None
            )

        return await self._runner.run(Count.S3_PART, request, reads_only=False)

    async def finish(
        self, begun: BegunUpload, source: PutBody, checksums: bytes, repeat_unknown: bool
    ) -> PutReceipt:
        """See :meth:`~s3blobfs.s3.protocol.ObjectClient.finish_upload`."""
        key, upload_id = begun.key, begun.upload_id
        async with self._aborted_on_failure(key, upload_id, begun.settled):
            with Body(source, checksums) as body:
                if not all(early.is_of(checksums) for early in begun.parts):
                    raise EarlyPartsUseless("the content was changed after a part of it was sent", key=key)

                async def etag_of(number: int, part: Part) -> str:
                    if number > len(begun.parts):
                        return await self._send_rest(key, upload_id, number, body, part)
                    try:
                        return await begun.parts[number - 1].etag()
                    except (S3BlobFSError, OSError) as error:
                        raise EarlyPartsUseless(f"a part did not arrive: {error}", key=key) from error

                parts = [*(early.part for early in begun.parts), *begun.rest(body.size_bytes)]
                etags = await map_parallel(etag_of, parts, self._concurrency)
                body.check_unchanged()
            return await self._complete(key, upload_id, etags, False, repeat_unknown)

    async def _send_rest(self, key: str, upload_id: str, number: int, body: Body, part: Part) -> str:
        try:
            etag = await self.send_part(key, upload_id, number, body, part)
        except PermanentS3Error as error:
            if error.code != "NoSuchUpload":
                raise
            raise EarlyPartsUseless("somebody has thrown away what was sent", key=key) from error
        reached(Failpoint.PART_SENT)
        return etag

    async def copy(
        self,
        key: str,
        source: CopySource,
        parts: Sequence[Part],
        metadata: Mapping[str, str],
        repeat_unknown: bool,
    ) -> PutReceipt:
        """UploadPartCopy of every part. ``source.if_match`` keeps them of one content."""

        async def copy_part(number: int, part: Part) -> str:
            return await self._request_copy(key, upload_id, number, part, source)

        upload_id = await self.create(key, metadata)
        async with self._aborted_on_failure(key, upload_id):
            etags = await map_parallel(copy_part, parts, self._concurrency)
            return await self._complete(key, upload_id, etags, False, repeat_unknown)

    async def _copy_part(self, key: str, upload_id: str, number: int, part: Part, source: CopySource) -> str:
        try:
            etag = await self._request_copy(key, upload_id, number, part, source)
        except (TransientS3Error, BucketNotFound):
            raise
        except ObjectStoreError as error:
            if error.code == "NoSuchUpload":
                raise
            raise CopyRefused(error) from error
        reached(Failpoint.PART_COPIED)
        return etag

    async def _request_copy(
        self, key: str, upload_id: str, number: int, part: Part, source: CopySource
    ) -> str:
        first, last = part.offset, part.end - 1
        request = partial(self._control.copy_part, key, upload_id, number, source, first, last)
        return await self._runner.run(Count.S3_COPY, request, reads_only=False)

    @asynccontextmanager
    async def _aborted_on_failure(
        self, key: str, upload_id: str, settled: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> AsyncIterator[None]:
        """Its parts are thrown away (and not paid for any longer) unless all goes well: once ``settled``
        returns, for a part that arrives later would stay."""
        try:
            yield
        except BaseException:
            # Shielded, for the caller may be cancelled; bounded by the request's own total deadline.
            with trio.CancelScope(shield=True):
                await settled()
                await self._abort(key, upload_id)
            raise

    async def _abort(self, key: str, upload_id: str) -> None:
        try:
            abort = partial(self._control.abort_upload, key, upload_id)
            await self._runner.run(None, abort, reads_only=False)
        except ObjectStoreError as error:
            # The failure that led here is the one to report; the bucket's lifecycle rule may clean up.
            log.warning("parts of the unfinished upload %s of %s are left in S3: %s", upload_id, key, error)

    async def _complete(
        self, key: str, upload_id: str, etags: Sequence[str], if_none_match: bool, repeat_unknown: bool
    ) -> PutReceipt:
        complete = partial(self._control.complete_upload, key, upload_id, etags, if_none_match)
        try:
            return await self._runner.run(None, complete, reads_only=False, repeat_unknown=repeat_unknown)
        except PermanentS3Error as error:
            if error.code != "NoSuchUpload":
                raise
            # Either somebody aborted it, or an earlier attempt completed it and its answer was lost.
            raise OutcomeUnknown(
                "whether the upload was completed is not known", code=error.code, key=key
            ) from error


async def map_parallel(
    function: Callable[[int, Item], Awaitable[Answer]], items: Sequence[Item], concurrency: int
) -> list[Answer]:
    """``function(number, item)`` of each item, numbered from 1, at most ``concurrency`` at a time; answers
    in order. The first error cancels the rest and is raised by itself, not in a group."""
    answers: dict[int, Answer] = {}
    failures: list[S3BlobFSError | OSError | CopyRefused] = []
    waiting = iter(enumerate(items, 1))

    async def work(scope: trio.CancelScope) -> None:
        for number, item in waiting:
            try:
                answers[number] = await function(number, item)
            except (S3BlobFSError, OSError, CopyRefused) as error:
                failures.append(error)
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(concurrency, len(items))):
            nursery.start_soon(work, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return [answers[number] for number in range(1, len(items) + 1)]
