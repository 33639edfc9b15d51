"""Windows: the ranges in which a content is fetched, how they are chosen and how they are checked.

A window begins at a multiple of the checksum block, so that every byte of it can be checked before one is
given away. A reader that jumps gets the blocks it asks for and nothing else; one that reads on gets larger
windows, ahead of what it reads, up to ``ReadOptions.parallel_windows`` of ``window_bytes`` each.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import trio

from s3blobfs.config import MIB, ReadOptions
from s3blobfs.errors import DamagedContent, TransientS3Error
from s3blobfs.tier.digest import INLINE_DIGEST_BYTES, is_content
from s3blobfs.tier.localio import in_hash_thread
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, BlobContent, Buffer

_FIRST_AHEAD_BYTES = 1 * MIB
_GROWTH = 4
"""How fast the distance grows at which is fetched ahead. Each step takes a turn to S3 and back, in which a
reader of a new file waits: three of them until all windows are under way."""
NEAR_BYTES = 1 * MIB
"""The kernel's own readahead asks slightly out of order: a read this near to the last one reads on."""


Spawn = Callable[[Callable[[], Awaitable[None]]], None]
"""Starts a background task of the mount."""


class RangeSource(Protocol):
    """A stored content's bytes in S3."""

    async def fetch(self, offset: int, length: int) -> Buffer:
        """Exactly these bytes, or an error of :mod:`s3blobfs.errors`."""
        ...


class ContentReader(Protocol):
    """One open file's way to a stored content. Reads may run at the same time; close after them."""

    async def read(self, offset: int, size: int) -> Buffer:
        """Up to ``size`` bytes from ``offset``, short only at the end of the content.

        :class:`~s3blobfs.errors.ObjectStoreError`, :class:`~s3blobfs.errors.DamagedContent` or
        :class:`~s3blobfs.errors.TierError`; a later read tries anew."""
        ...

    async def aclose(self) -> None:
        """Give up what was fetched for this reader alone."""
        ...


class Range(NamedTuple):
    """Bytes ``start`` to ``end`` of a content."""

    start: int
    end: int


def blocks_in(size_bytes: int) -> int:
    """The number of checksum blocks of so many bytes."""
    return -(-size_bytes // CHECKSUM_BLOCK_BYTES)


def block_start(position: int) -> int:
    """The start of the checksum block that ``position`` is in."""
    return position - position % CHECKSUM_BLOCK_BYTES


def block_end(position: int) -> int:
    """The end of the checksum block whose last byte is before ``position``."""
    return block_start(position + CHECKSUM_BLOCK_BYTES - 1)


class ReadAhead:
    """Follows one reader and says what to fetch. No I/O."""

    def __init__(self, size_bytes: int, options: ReadOptions) -> None:
        self._size_bytes = size_bytes
        self._window_max = max(CHECKSUM_BLOCK_BYTES, block_start(options.window_bytes))
        self._ahead_max = self._window_max * options.parallel_windows
        self._ahead = 0
        self._grow_at = 0
        self._last_end = 0
        self.demand = Range(0, 0)
        """The blocks of the last read."""

    def note(self, offset: int, size: int) -> None:
        """The reader wants these bytes, at most one window of them."""
        end = offset + size
        if abs(offset - self._last_end) > NEAR_BYTES:
            self._ahead = self._grow_at = 0
        elif end >= self._grow_at:
            self._ahead = min(self._ahead_max, max(_FIRST_AHEAD_BYTES, _GROWTH * self._ahead))
            self._grow_at = end + self._ahead // _GROWTH
        self._last_end = end
        self.demand = Range(block_start(offset), min(self._size_bytes, block_end(end)))

    @property
    def reads_on(self) -> bool:
        """The last read followed another, or is the first and begins at the start."""
        return self._ahead > 0

    @property
    def until(self) -> int:
        """The end of what should be fetched by now; a block's boundary, or the end of the content."""
        return max(self.demand.end, min(self._size_bytes, block_start(self._last_end + self._ahead)))

    @property
    def window_bytes(self) -> int:
        """How large a window may be now."""
        wanted = max(self._ahead, self.demand.end - self.demand.start)
        return min(self._window_max, max(CHECKSUM_BLOCK_BYTES, block_start(wanted)))

    def window_at(self, start: int, end: int) -> Range:
        """The window in which to fetch the bytes from ``start`` to ``end`` (or some of them, the first
        included) when nothing else is known."""
        first = block_start(start)
        wanted = max(self._ahead, block_end(end) - first, CHECKSUM_BLOCK_BYTES)
        return Range(first, min(self._size_bytes, first + block_start(min(self._window_max, wanted))))

    def cut(self, missing: Iterable[Range]) -> Iterator[Range]:
        """The windows in which to fetch what is missing of ``demand.start`` to ``until``.

        What does not fill a window yet, and is not asked for yet, is left for later: otherwise every read
        would lead to a request of its own for the few blocks that ``until`` moved on."""
        window = self.window_bytes
        shortest = window if self._ahead >= 2 * window else window // 2
        for start, end in missing:
            grows = end == self.until < self._size_bytes
            while start < end:
                stop = min(start + window, end)
                if start >= self.demand.end and grows and stop - start < shortest:
                    break
                yield Range(start, stop)
                start = stop


def pieces(offset: int, size: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """``(offset, size)`` of a long read in parts of at most ``piece_bytes``."""
    for start in range(offset, offset + size, piece_bytes):
        yield start, min(piece_bytes, offset + size - start)


# --- checks --------------------------------------------------------------------------------------------


def _check(blob: BlobContent, start: int, data: Buffer) -> None:
    """Raises :class:`DamagedContent` when ``data`` is not what was stored from ``start`` on."""
    key = blob.location.object_key
    digests = blob.digests
    if len(data) == blob.size_bytes:
        if not is_content(data, digests):
            raise DamagedContent(f"{key}: the content's digest is not the stored one")
        return
    if not digests.checksums:
        return
    with memoryview(data) as view:
        for at in range(0, len(view), CHECKSUM_BLOCK_BYTES):
            block = (start + at) // CHECKSUM_BLOCK_BYTES
            expected = digests.checksums[4 * block : 4 * block + 4]
            if zlib.crc32(view[at : at + CHECKSUM_BLOCK_BYTES]).to_bytes(4, "big") != expected:
                raise DamagedContent(f"{key}: the checksum of block {block} is not the stored one")


async def fetch_checked(source: RangeSource, blob: BlobContent, wanted: Range) -> Buffer:
    """Fetch one window and check it: by the digest when it is the whole content, else by its blocks'
    checksums (its length alone when they are not known). :class:`DamagedContent`, and what S3 says."""
    data = await _fetch(source, blob, wanted)
    try:
        await _check_aside(blob, wanted.start, data)
    except DamagedContent:
        # Perhaps on its way: what is damaged in S3 is so the second time, too.
        data = await _fetch(source, blob, wanted)
        await _check_aside(blob, wanted.start, data)
    return data


async def _fetch(source: RangeSource, blob: BlobContent, wanted: Range) -> Buffer:
    length = wanted.end - wanted.start
    data = await source.fetch(wanted.start, length)
    if len(data) != length:
        raise DamagedContent(f"{blob.location.object_key}: {len(data)} bytes came where {length} are stored")
    return data


async def _check_aside(blob: BlobContent, start: int, data: Buffer) -> None:
    if len(data) <= INLINE_DIGEST_BYTES:
        _check(blob, start, data)
    else:
        await in_hash_thread(lambda: _check(blob, start, data))


# --- windows under way ---------------------------------------------------------------------------------


class Window:
    """One range on its way; any number of tasks wait for it."""

    __slots__ = ("_done", "_scope", "data", "error", "range")

    def __init__(self, wanted: Range) -> None:
        self.range = wanted
        self.data: Buffer = b""
        """What the work answered."""
        self.error: Exception | None = None
        self._done = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def arrived(self) -> bool:
        """Finished, well or not."""
        return self._done.is_set()

    @property
    def size_bytes(self) -> int:
        return self.range.end - self.range.start

    def overlaps(self, other: Range) -> bool:
        return self.range.start < other.end and other.start < self.range.end

    def cancel(self) -> None:
        self._scope.cancel()

    async def wait(self) -> None:
        """Until it is finished; raises what went wrong."""
        await self._done.wait()
        if self.error is not None:
            raise self.error

    async def ended(self) -> None:
        """Until it is finished, however."""
        await self._done.wait()

    async def run(self, work: Callable[[], Awaitable[Buffer]], finished: Callable[[Window], None]) -> None:
        """The task of the window. Whatever ends it, ``finished`` is called and then the waiters woken: the
        error belongs to them, not to the task's nursery, where it would end the mount."""
        self.error = TransientS3Error("reading was given up")
        try:
            with self._scope:
                self.data = await work()
                self.error = None
        except Exception as error:
            self.error = error
        finally:
            finished(self)
            self._done.set()
