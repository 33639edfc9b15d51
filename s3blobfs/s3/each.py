"""Small requests that share one turn through a worker thread, made one after the other.

Who wants them writes a generator: it yields a request, and finds the outcome in it when it goes on. So what
is asked next may depend on what was answered, and what is done in between is done where the requests are
made, which is another thread with a real client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from s3blobfs.errors import S3BlobFSError
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo, PutReceipt
from s3blobfs.trace import Count

T = TypeVar("T")


class Request(Generic[T]):
    """One of :meth:`~s3blobfs.s3.protocol.ObjectClient.make_each`, and its outcome."""

    __slots__ = ("_answer", "_error", "key", "repeat_unknown")
    kind: ClassVar[Count]
    reads_only: ClassVar[bool]

    def __init__(self, key: str, *, repeat_unknown: bool = True) -> None:
        self.key = key
        self.repeat_unknown = repeat_unknown
        self._answer: T | None = None
        self._error: Exception | None = None

    def succeed(self, answer: T) -> None:
        self._answer = answer

    def fail(self, error: Exception) -> None:
        self._error = error

    def answer(self) -> T:
        """What came of it, or raises what went wrong. Only once it was made."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "the request was not made"
        return self._answer


class HeadRequest(Request[ObjectInfo]):
    """As :meth:`~s3blobfs.s3.protocol.ObjectClient.head`."""

    __slots__ = ()
    kind = Count.S3_HEAD
    reads_only = True


class PutRequest(Request[PutReceipt]):
    """As :meth:`~s3blobfs.s3.protocol.ObjectClient.put`, always as one request: the body is small."""

    __slots__ = ("body", "checksums", "if_none_match", "metadata")
    kind = Count.S3_PUT
    reads_only = False

    def __init__(
        self,
        key: str,
        body: bytes,
        *,
        metadata: Mapping[str, str],
        if_none_match: bool = False,
        repeat_unknown: bool = True,
        checksums: bytes = b"",
    ) -> None:
        super().__init__(key, repeat_unknown=repeat_unknown)
        self.body = body
        self.metadata = metadata
        self.if_none_match = if_none_match
        self.checksums = checksums


Requests = Generator[Request[Any], None, T]
"""Asks for one request after the other, and returns what it made of them."""


async def make_one_by_one(client: ObjectClient, requests: Requests[None]) -> None:
    """``make_each`` of a client that has no cheaper way than to make each request by itself."""
    with contextlib.closing(requests):
        for request in requests:
            try:
                if isinstance(request, HeadRequest):
                    request.succeed(await client.head(request.key))
                else:
                    assert isinstance(request, PutRequest)
                    request.succeed(
                        await client.put(
                            request.key,
                            request.body,
                            metadata=request.metadata,
                            if_none_match=request.if_none_match,
                            repeat_unknown=request.repeat_unknown,
                            checksums=request.checksums,
                        )
                    )
            except S3BlobFSError as error:
                request.fail(error)
