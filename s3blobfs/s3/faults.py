"""Scripted faults: an object client that fails where a test says so, and is its inner client elsewhere.

::

    client = FaultyObjectClient(inner)
    client.on("put", nth=2).raises(TransientS3Error("503"))          # refused, nothing stored
    client.on("put", key="id1*").applies_then_raises(TransientS3Error("reset"))   # stored, answer lost
    client.on("get").flips_byte()
    stall = client.on("copy", nth=1).stalls()                        # until stall.release()

Faults are of the object client, above its retries: what is raised here is what is left once a real client
has given up. A :class:`FaultScript` may be shared by the clients of several buckets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeVar

import trio
import trio.lowlevel

from s3blobfs.s3.begun import BegunUpload, EarlyPart, telling
from s3blobfs.s3.each import Requests, make_one_by_one
from s3blobfs.s3.one_by_one import get_one_by_one
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
from s3blobfs.types import PutBody

Operation = Literal[
    "put",
    "get",
    "head",
    "copy",
    "copy_range",
    "delete",
    "delete_many",
    "list_objects",
    "list_versions",
    "list_uploads",
    "abort_upload",
    "begin_upload",
    "send_part",
    "finish_upload",
    "put_tags",
    "get_tags",
    "bucket_exists",
    "create_bucket",
    "versioning_enabled",
    "enable_versioning",
]
Answer = TypeVar("Answer")


class Stall:
    """A call that waits. ``arrived`` is set when it does."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self._released = trio.Event()

    def release(self) -> None:
        """Let it, and every later call that meets the same fault, go on."""
        self._released.set()

    async def wait(self) -> None:
        self.arrived.set()
        await self._released.wait()


class Fault:
    """One rule of a script: which calls it meets, and what happens to them. Made by :meth:`FaultScript.on`.

    Without one of the verbs below it only counts: ``hits``."""

    def __init__(self, operation: Operation, key: str, nth: int | None) -> None:
        self.hits = 0
        """Calls that met this fault."""
        self._operation = operation
        self._key = key
        self._nth = nth
        self._matched = 0
        self._before: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._after: Callable[[], None] | None = None
        self._damage: Callable[[bytes], bytes] | None = None

    # -- verbs -----------------------------------------------------------------------------------------

    def raises(self, error: Exception) -> Fault:
        """Fail before anything reaches the inner client."""

        async def fail() -> None:
            await trio.lowlevel.checkpoint()
            raise error

        self._before = fail
        return self

    def applies_then_raises(self, error: Exception) -> Fault:
        """Do it, then fail: the answer is lost. A listing fails after its last entry."""

        def fail() -> None:
            raise error

        self._after = fail
        return self

    def flips_byte(self, at: int = 0) -> Fault:
        """Invert one byte of what a ``get`` answers; ``at`` counts from the start of the answer."""
        self._damage = lambda data: (
            data[:at] + bytes(255 - byte for byte in data[at : at + 1]) + data[at + 1 :]
        )
        return self

    def truncates(self, to: int = 0) -> Fault:
        """Keep only the first ``to`` bytes of what a ``get`` answers."""
        self._damage = lambda data: data[:to]
        return self

    def stalls(self) -> Stall:
        """Hang, before anything reaches the inner client, until released or cancelled."""
        stall = Stall()
        self._before = stall.wait
        return stall

    def delays(self, delay_s: float) -> Fault:
        """Wait on trio's clock before anything reaches the inner client."""

        async def wait() -> None:
            await trio.sleep(delay_s)

        self._before = wait
        return self

    # -- for the client --------------------------------------------------------------------------------

    def meets(self, operation: Operation, keys: Sequence[str]) -> bool:
        if operation != self._operation or not any(fnmatchcase(key, self._key) for key in keys):
            return False
        self._matched += 1
        if self._nth is not None and self._matched != self._nth:
            return False
        self.hits += 1
        return True

    async def before(self) -> None:
        await self._before()

    def after(self) -> None:
        if self._after is not None:
            self._after()

    def damage(self, answer: ObjectData) -> ObjectData:
        return answer if self._damage is None else replace(answer, body=self._damage(answer.data))


class FaultScript:
    """The faults of a test, in the order they were written."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def on(self, operation: Operation, *, key: str = "*", nth: int | None = None) -> Fault:
        """A fault of calls of ``operation`` on keys that match the pattern (``fnmatch``, case-sensitive; a
        listing's key is its prefix, a bucket operation's the bucket): of the ``nth`` of them, from 1, or of
        all."""
        fault = Fault(operation, key, nth)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """From now on nothing fails."""
        self._faults.clear()

    def take(self, operation: Operation, keys: Sequence[str]) -> list[Fault]:
        """The faults that this call meets."""
        return [fault for fault in self._faults if fault.meets(operation, keys)]

    def wrap(self, factory: ObjectClientFactory) -> ObjectClientFactory:
        """The factory whose clients all follow this script."""

        def make_client(bucket: str) -> ObjectClient:
            return FaultyObjectClient(factory(bucket), self)

        return make_client


class FaultyObjectClient:
    """:class:`~s3blobfs.s3.protocol.ObjectClient` around ``inner``, failing by ``script``, or by one of its
    own to which :meth:`on` adds."""

    def __init__(self, inner: ObjectClient, script: FaultScript | None = None) -> None:
        self._inner = inner
        self._script = script or FaultScript()

    def on(self, operation: Operation, *, key: str = "*", nth: int | None = None) -> Fault:
        """See :meth:`FaultScript.on`."""
        return self._script.on(operation, key=key, nth=nth)

    @property
    def bucket(self) -> str:
        return self._inner.bucket

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
        return await self._call(
            "put",
            [key],
            lambda: self._inner.put(
                key,
                body,
                metadata=metadata,
                if_none_match=if_none_match,
                repeat_unknown=repeat_unknown,
                checksums=checksums,
                reuse=reuse,
            ),
        )

    async def get(
        self,
        key: str,
        *,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
    ) -> ObjectData:
        faults = self._script.take("get", [key])
        answer = await _applied(
            faults,
            lambda: self._inner.get(
                key, version_id=version_id, offset=offset, length=length, if_match=if_match
            ),
        )
        for fault in faults:
            answer = fault.damage(answer)
        return answer

    async def get_each(self, wanted: Iterable[tuple[WholeObject, TakeAnswer]]) -> None:
        await get_one_by_one(self, wanted)

    async def make_each(self, requests: Requests[None]) -> None:
        await make_one_by_one(self, requests)

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        return await self._call("head", [key], lambda: self._inner.head(key, version_id=version_id))

    @property
    def part_bytes(self) -> int:
        return self._inner.part_bytes

    async def begin_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> BegunUpload:
        return await self._call(
            "begin_upload", [key], lambda: self._inner.begin_upload(key, metadata=metadata)
        )

    async def send_part(self, upload: BegunUpload, part: EarlyPart, body: Path, *, checksums: bytes) -> None:
        with telling(part):
            await self._call(
                "send_part",
                [upload.key],
                lambda: self._inner.send_part(upload, part, body, checksums=checksums),
            )

    async def finish_upload(
        self, upload: BegunUpload, body: PutBody, *, checksums: bytes, repeat_unknown: bool = True
    ) -> PutReceipt:
        return await self._call(
            "finish_upload",
            [upload.key],
            lambda: self._inner.finish_upload(
                upload, body, checksums=checksums, repeat_unknown=repeat_unknown
            ),
        )

    async def put_tags(self, target: ObjectId, tags: Mapping[str, str]) -> None:
        await self._call("put_tags", [target.key], lambda: self._inner.put_tags(target, tags))

    async def get_tags(self, target: ObjectId) -> dict[str, str]:
        return await self._call("get_tags", [target.key], lambda: self._inner.get_tags(target))

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
        return await self._call(
            "copy",
            [key],
            lambda: self._inner.copy(
                source_bucket,
                source,
                key,
                size_bytes=size_bytes,
                metadata=metadata,
                if_match=if_match,
                repeat_unknown=repeat_unknown,
            ),
        )

    async def copy_range(
        self, source_bucket: str, source: ObjectId, key: str, *, offset: int, length: int, if_match: str
    ) -> PutReceipt:
        return await self._call(
            "copy_range",
            [key],
            lambda: self._inner.copy_range(
                source_bucket, source, key, offset=offset, length=length, if_match=if_match
            ),
        )

    async def delete(self, target: ObjectId) -> None:
        await self._call("delete", [target.key], lambda: self._inner.delete(target))

    async def delete_many(self, targets: Sequence[ObjectId]) -> list[DeleteFailure]:
        keys = [target.key for target in targets]
        return await self._call("delete_many", keys, lambda: self._inner.delete_many(targets))

    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        faults = self._script.take("list_objects", [prefix])
        for fault in faults:
            await fault.before()
        async for entry in self._inner.list_objects(prefix):
            yield entry
        for fault in faults:
            fault.after()

    async def list_versions(self, prefix: str) -> AsyncIterator[ObjectVersionInfo]:
        faults = self._script.take("list_versions", [prefix])
        for fault in faults:
            await fault.before()
        async for entry in self._inner.list_versions(prefix):
            yield entry
        for fault in faults:
            fault.after()

    async def list_uploads(self, prefix: str) -> AsyncIterator[UploadInfo]:
        faults = self._script.take("list_uploads", [prefix])
        for fault in faults:
            await fault.before()
        async for upload in self._inner.list_uploads(prefix):
            yield upload
        for fault in faults:
            fault.after()

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._call("abort_upload", [key], lambda: self._inner.abort_upload(key, upload_id))

    async def bucket_exists(self) -> bool:
        return await self._call("bucket_exists", [self.bucket], self._inner.bucket_exists)

    async def create_bucket(self) -> None:
        await self._call("create_bucket", [self.bucket], self._inner.create_bucket)

    async def versioning_enabled(self) -> bool:
        return await self._call("versioning_enabled", [self.bucket], self._inner.versioning_enabled)

    async def enable_versioning(self) -> None:
        await self._call("enable_versioning", [self.bucket], self._inner.enable_versioning)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _call(
        self, operation: Operation, keys: Sequence[str], request: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        return await _applied(self._script.take(operation, keys), request)


async def _applied(faults: Sequence[Fault], request: Callable[[], Awaitable[Answer]]) -> Answer:
    for fault in faults:
        await fault.before()
    answer = await request()
    for fault in faults:
        fault.after()
    return answer
