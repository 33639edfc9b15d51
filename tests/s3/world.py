"""What the tests of the object client share: servers behind clients, quick options, reading a proxy."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from s3blobfs.config import MIB, S3Options
from s3blobfs.s3.client import S3ObjectClient, make_client_factory
from s3blobfs.s3.protocol import ObjectClient, ObjectClientFactory, ObjectId
from s3blobfs.trace import Tracer
from tests.conftest import unique_bucket_name
from tests.support.proxy import RecordingProxy, WireFault, error_answer

PART_BYTES = 5 * MIB
THRESHOLD_BYTES = 6 * MIB
SLOW_DOWN = WireFault(answer=error_answer(503, "SlowDown"))


def pattern(size_bytes: int) -> bytes:
    """Bytes with a period that is prime: a part at a wrong place shows."""
    period_bytes = 65_521
    period = hashlib.shake_128(b"pattern").digest(period_bytes)
    return (period * (size_bytes // period_bytes + 1))[:size_bytes]


@dataclass
class World:
    """A server behind clients."""

    kind: str
    tracer: Tracer
    factory: ObjectClientFactory
    begin_upload: Callable[[str, str], str]
    """Of a bucket and a key: begins a multipart upload that nobody will finish; answers its id. Blocks."""

    async def bucket(self, *, versioning: bool = False) -> ObjectClient:
        client = self.factory(unique_bucket_name())
        await client.create_bucket()
        if versioning:
            await client.enable_versioning()
        return client


async def listed_keys(client: ObjectClient, prefix: str = "") -> list[str]:
    """Sorted: servers differ in how they compare keys. Each key must come once."""
    return sorted([info.key async for info in client.list_objects(prefix)])


async def fill(client: ObjectClient, keys: list[str]) -> None:
    """Puts them, some at a time."""
    limiter = trio.CapacityLimiter(16)

    async def put(key: str) -> None:
        async with limiter:
            await client.put(key, b"x")

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put, key)


def quick(endpoint_url: str, **changes: Any) -> S3Options:
    values: dict[str, Any] = {
        "endpoint_url": endpoint_url,
        "connect_timeout_s": 1.0,
        "request_timeout_s": 5.0,
        "total_timeout_s": 20.0,
        "backoff_base_s": 0.01,
        "max_attempts": 3,
        "multipart_threshold_bytes": PART_BYTES,
        "part_size_bytes": PART_BYTES,
        "part_concurrency": 2,
    }
    return S3Options(**(values | changes))


@asynccontextmanager
async def connected(
    bucket: str, endpoint_url: str, tracer: Tracer | None = None, **changes: Any
) -> AsyncIterator[S3ObjectClient]:
    factory = make_client_factory(quick(endpoint_url, **changes), tracer or Tracer())
    yield factory(bucket)
    await factory.aclose()


def asked(proxy: RecordingProxy) -> list[str]:
    """``METHOD operation`` of every request; parts without their numbers."""
    return [
        " ".join([request.method, *sorted(set(request.query) - {"x-id", "encoding-type"})])
        for request in proxy.requests
    ]


async def calls_of_both_planes(client: ObjectClient) -> None:
    """One request by each library."""
    await client.put("k", b"x")
    await client.delete(ObjectId("k"))
