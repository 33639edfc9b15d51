"""The digests of a content, in one pass, while it is being written.

:class:`ContentHasher` computes what :class:`~s3blobfs.types.ContentDigests` holds. :class:`DigestFollower`
lets one follow a file that is written sequentially: what was written is read back (from the page cache) in a
worker thread, some mebibytes behind the write position, so that ``close()`` of a large file has only the rest
to do. hashlib and zlib release the GIL.

Content that was hashed and then changed has to be hashed again from its start; after ``_RESTARTS_MAX`` times
the follower leaves all of it to the end.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from functools import partial
from typing import Protocol

import trio

from s3blobfs.config import KIB, MIB
from s3blobfs.tier.localio import SharedFd, in_hash_thread, read_fully
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, Buffer, ContentDigests

INLINE_DIGEST_BYTES = 256 * KIB
"""Up to here digests are computed on the event loop's thread (about 0.6 ms at most)."""
BACKLOG_BYTES = 4 * MIB
"""The follower starts when this much is written and not hashed."""
_CHUNK_BYTES = 1 * MIB
_FINISH_BYTES = 256 * MIB
"""Hashed in one go when a file is sealed; in between, cancellation is noticed."""
_RESTARTS_MAX = 2
_FOLLOWERS_MAX = 2

_follower_slots = threading.BoundedSemaphore(_FOLLOWERS_MAX)
"""Followers running at once: more would only take the processor from each other and from the event loop."""


class ContentHasher:
    """MD5, SHA-256 and a CRC-32 per block of one content, given in order. No thread safety of its own."""

    __slots__ = ("_blocks", "_crc", "_md5", "_sha256", "position")

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._blocks = bytearray()
        self._crc = 0
        self.position = 0
        """Bytes taken so far."""

    @property
    def block_bytes(self) -> int:
        """Of the whole blocks taken so far. This and their :attr:`checksums` another thread may ask for."""
        return len(self._blocks) // 4 * CHECKSUM_BLOCK_BYTES

    @property
    def checksums(self) -> bytes:
        return bytes(self._blocks)

    @property
    def checksum_bytes(self) -> int:
        """What the checksums of whole blocks take."""
        return len(self._blocks)

    def copy(self) -> ContentHasher:
        """One that goes on from here by itself."""
        other = ContentHasher()
        other._md5, other._sha256 = self._md5.copy(), self._sha256.copy()
        other._blocks, other._crc, other.position = bytearray(self._blocks), self._crc, self.position
        return other

    def update(self, data: Buffer) -> None:
        self._md5.update(data)
        self._sha256.update(data)
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                room = CHECKSUM_BLOCK_BYTES - self.position % CHECKSUM_BLOCK_BYTES
                piece = view[start : start + room]
                self._crc = zlib.crc32(piece, self._crc)
                self.position += len(piece)
                start += len(piece)
                if self.position % CHECKSUM_BLOCK_BYTES == 0:
                    self._blocks += self._crc.to_bytes(4, "big")
                    self._crc = 0

    def digests(self) -> ContentDigests:
        """Of what was taken so far."""
        blocks = bytes(self._blocks)
        if self.position % CHECKSUM_BLOCK_BYTES:
            blocks += self._crc.to_bytes(4, "big")
        return ContentDigests(
            size_bytes=self.position, md5=self._md5.digest(), sha256=self._sha256.digest(), checksums=blocks
        )


class _Recognizer:
    """Takes one content in order and says in the end whether it is the known one: by SHA-256 alone, as MD5
    beside it would prove nothing more and take twice the time."""

    __slots__ = ("_sha256", "position")

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.position = 0

    def update(self, data: Buffer) -> None:
        self._sha256.update(data)
        self.position += len(data)

    def found(self, digests: ContentDigests) -> bool:
        return self.position == digests.size_bytes and self._sha256.digest() == digests.sha256


class _Hasher(Protocol):
    position: int

    def update(self, data: Buffer) -> None: ...


def is_content(data: Buffer, digests: ContentDigests) -> bool:
    """Whether ``data`` is the content that has these digests."""
    recognizer = _Recognizer()
    recognizer.update(data)
    return recognizer.found(digests)


async def file_is_content(fd: int, digests: ContentDigests) -> bool:
    """Whether an open file begins with the content that has these digests. Raises ``OSError``."""
    recognizer = _Recognizer()
    await _hash_to(fd, recognizer, digests.size_bytes)
    return recognizer.found(digests)


def content_digests(data: Buffer) -> ContentDigests:
    """The digests of a content held in memory."""
    hasher = ContentHasher()
    hasher.update(data)
    return hasher.digests()


def hash_range(fd: int, hasher: _Hasher, end: int) -> None:
    """Take ``fd``'s bytes from the hasher's position to ``end``. Blocks. ``OSError``, also when the file
    ends before ``end``."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(0, end - hasher.position))))
    while hasher.position < end:
        wanted = min(len(buffer), end - hasher.position)
        if read_fully(fd, buffer[:wanted], hasher.position) < wanted:
            raise OSError(f"the file ends before byte {end}: it was changed by another program")
        hasher.update(buffer[:wanted])


async def file_digests(fd: int, size_bytes: int) -> ContentDigests:
    """The digests of an open file's first ``size_bytes``. Raises ``OSError``."""
    hasher = ContentHasher()
    await _hash_to(fd, hasher, size_bytes)
    return hasher.digests()


async def _hash_to(fd: int, hasher: _Hasher, size_bytes: int) -> None:
    if size_bytes - hasher.position <= INLINE_DIGEST_BYTES:
        hash_range(fd, hasher, size_bytes)
    while hasher.position < size_bytes:
        end = min(size_bytes, hasher.position + _FINISH_BYTES)
        await in_hash_thread(partial(hash_range, fd, hasher, end))


class DigestFollower:
    """Follows one file. All methods are for the trio thread; the file's writes go through it one at a time.

    ``_claimed`` is the end of what a thread may have read. Whoever is about to change bytes before it calls
    :meth:`about_to_change` *first*: that makes whatever the thread computes worthless, and what it will
    claim next is read only after the change."""

    def __init__(self, hasher: ContentHasher | None = None) -> None:
        """``hasher`` has taken the bytes that the file begins with."""
        self._lock = threading.Lock()  # held by the one thread that works on _hasher
        self._hasher = hasher or ContentHasher()
        self._hashed_generation = 0
        self._generation = 0
        self._claimed = self._hasher.position
        self._expected = self._hasher.position
        self._restarts = 0
        self._running = False

    def about_to_change(self, start: int) -> bool:
        """Bytes from ``start`` on are going to change. True if what was hashed is void."""
        if start >= self._claimed:
            return False
        self._generation += 1
        self._restarts += 1
        self._claimed = 0
        return True

    @property
    def hashed_bytes(self) -> int:
        """So many, in whole blocks, are hashed from the start of the file on, and have not changed since."""
        return self._hasher.block_bytes if self._is_valid else 0

    @property
    def checksums(self) -> bytes:
        """Of those."""
        return self._hasher.checksums if self._is_valid else b""

    @property
    def _is_valid(self) -> bool:
        # A thread that begins anew takes a new hasher before it says so: what is seen behind this is it.
        return self._hashed_generation == self._generation

    def wrote(self, offset: int, end: int, file: SharedFd) -> None:
        """Bytes ``offset`` to ``end`` are written, and no other write is under way."""
        sequential = offset == self._expected
        self._expected = end
        if (
            sequential
            and end - self._claimed >= BACKLOG_BYTES
            and not self._running
            and self._restarts <= _RESTARTS_MAX
            and _follower_slots.acquire(blocking=False)
        ):
            self._claimed = end
            self._running = True
            generation = self._generation
            shared = file.acquire()
            # A follower answers nothing; an error that is a bug is raised in its thread, which prints it.
            trio.lowlevel.start_thread_soon(
                partial(self._follow, shared, generation, end), lambda outcome: outcome.unwrap()
            )

    async def finish(self, fd: int, size_bytes: int) -> ContentHasher:
        """What has taken the whole file, which changes no more, and so takes nothing else. Raises
        ``OSError``."""
        hashed = self._hasher.position if self._hashed_generation == self._generation else 0
        little = not self._running and size_bytes - hashed <= INLINE_DIGEST_BYTES
        self._claimed = size_bytes
        advance = partial(self._advance, fd, self._generation, size_bytes, _FINISH_BYTES)
        if little:
            advance()
        else:
            while not await in_hash_thread(advance):
                pass
        return self._hasher

    def _follow(self, file: SharedFd, generation: int, end: int) -> None:
        try:
            self._advance(file.fd, generation, end, end)
        except OSError:
            # Nobody waits here. The hasher stands before the bytes that could not be read, so that
            # finish() reads them again and reports what is wrong.
            return
        finally:
            self._running = False
            _follower_slots.release()
            file.release()

    def _advance(self, fd: int, generation: int, end: int, at_most: int) -> bool:
        """Hash up to ``end``, at most so many bytes now. True when there is nothing left to do."""
        with self._lock:
            if self._generation != generation:
                return True
            if self._hashed_generation != generation:
                self._hasher = ContentHasher()
                self._hashed_generation = generation
            stop = min(end, self._hasher.position + at_most)
            while self._hasher.position < stop and self._generation == generation:
                hash_range(fd, self._hasher, min(stop, self._hasher.position + BACKLOG_BYTES))
            return self._hasher.position >= end
