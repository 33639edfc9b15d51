"""What the tier's tests share: contents, and a scripted S3."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio
import trio.testing

from s3blobfs.config import KIB, MIB, ReadOptions
from s3blobfs.tier.digest import content_digests
from s3blobfs.tier.fetch import ContentReader
from s3blobfs.tier.tier import Tier
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, BlobContent, BlobLocation

BLOCK = CHECKSUM_BLOCK_BYTES

SMALL_READS = ReadOptions(
    small_file_bytes=256 * KIB, window_bytes=512 * KIB, parallel_windows=4, memory_limit_bytes=4 * MIB
)
"""Small windows, so that a content of some mebibytes has many."""
SMALL, WINDOW = SMALL_READS.small_file_bytes, SMALL_READS.window_bytes
READ_EDGES = [0, 1, SMALL - 1, SMALL, SMALL + 1, WINDOW, WINDOW + 1, 2 * WINDOW + BLOCK, 5 * MIB + 3]
"""Sizes of contents at which reading does something else."""


def random_bytes(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def blob_of(data: bytes, *, name: str = "id1@v1", store_id: int = 1, checksums: bool = True) -> BlobContent:
    """The blob whose content is ``data``; without ``checksums`` as after a rebuilt index."""
    digests = content_digests(data)
    if not checksums:
        digests = replace(digests, checksums=b"")
    return BlobContent(
        blob_id=1,
        store_id=store_id,
        location=BlobLocation(object_key=f"prefix/{name}", version_id=None, cache_name=name),
        etag="etag",
        digests=digests,
    )


@dataclass(frozen=True)
class Call:
    """One fetch."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class FakeSource:
    """A content in S3: records what is fetched, and lets a test alter, fail or delay answers."""

    def __init__(self, data: bytes, *, delay_s: float = 0.0) -> None:
        self.data = data
        self.delay_s = delay_s
        self.calls: list[Call] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.cancelled = 0
        self.answer: Callable[[Call, bytes], bytes] = lambda call, data: data
        self.gate: trio.Event | None = None
        """Answers wait for it."""

    async def fetch(self, offset: int, length: int) -> bytes:
        call = Call(offset, length)
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await trio.sleep(self.delay_s)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        return self.answer(call, self.data[offset : offset + length])

    @property
    def fetched_bytes(self) -> int:
        return sum(call.length for call in self.calls)

    def assert_nothing_twice(self) -> None:
        position = 0
        for call in sorted(self.calls, key=lambda call: call.offset):
            assert call.offset >= position, f"bytes from {call.offset} were fetched twice"
            position = call.end


def flip(data: bytes, at: int = 0) -> bytes:
    """``data`` with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


async def read_all(reader: ContentReader, step: int = 128 * KIB) -> bytes:
    """From the start to the end."""
    parts = []
    offset = 0
    while part := await reader.read(offset, step):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


async def cancelled_when_blocked(function: Callable[..., Awaitable[object]], *args: int) -> None:
    """Call it, and cancel it as soon as nothing goes on without outside help."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, *args)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def nothing_under_way(tier: Tier) -> None:
    """Until the windows that failed have all ended."""
    with trio.fail_after(10):
        while tier.fetcher.memory_bytes:  # noqa: ASYNC110 - a property of the fetcher, not an event
            await trio.sleep(0.001)


async def settled(tier: Tier) -> None:
    """Until nothing is under way. Only for tests whose readers are closed: windows that were cancelled end
    when their threads do, which no task waits for."""
    with trio.fail_after(10):
        while tier.fetcher.fill_count or tier.fetcher.memory_bytes or tier.space.filling_bytes:  # noqa: ASYNC110
            await trio.sleep(0.001)


def assert_no_leftovers(tier: Tier) -> None:
    """Of fills: no room, no memory, no file."""
    assert tier.space.filling_bytes == 0
    assert tier.fetcher.memory_bytes == 0
    assert [name for name in tier.layout.store(1).names() if name.startswith(".")] == []
