"""A multipart upload that is begun before its content is complete, and what of it was sent.

Parts are made in order, as the content grows. How large it will be nobody knows: so that 10,000 parts are
enough for 5 TiB, and none gets larger than 5 GiB, a part has a thousandth of what comes before it, and no
fewer bytes than parts have otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import trio

from s3blobfs.errors import S3BlobFSError, TransientS3Error
from s3blobfs.s3.limits import PART_MIN_BYTES, PARTS_MAX
from s3blobfs.s3.parts import Part
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, FileStart

_BEFORE = 1024
"""Parts as large as this one that fit into what comes before it, at least, once parts grow."""


class EarlyPart:
    """A part that is on its way, or was."""

    def __init__(self, part: Part, number: int, checksums: bytes) -> None:
        """``checksums``: of its blocks; what arrives has been compared with them."""
        self.part = part
        self.number = number
        self._checksums = checksums
        self._ended = trio.Event()
        self._etag = ""
        self._error: S3BlobFSError | OSError | None = None

    def is_of(self, checksums: bytes) -> bool:
        """Whether a content with these checksums has the bytes that are sent."""
        return _of_part(checksums, self.part) == self._checksums

    def arrived(self, etag: str) -> None:
        self._etag = etag
        self._ended.set()

    def failed(self, error: S3BlobFSError | OSError) -> None:
        self._error = error
        self._ended.set()

    async def ended(self) -> None:
        """Return when no request for it is under way any more."""
        await self._ended.wait()

    async def etag(self) -> str:
        """Waits for its end. Raises why it did not arrive."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._etag


class BegunUpload:
    """What S3 has of an object to be. Made by :meth:`~s3blobfs.s3.protocol.ObjectClient.begin_upload`."""

    def __init__(self, key: str, upload_id: str, part_bytes: int) -> None:
        self.key = key
        self.upload_id = upload_id
        self.parts: list[EarlyPart] = []
        """In order, from the start of the content and without gaps."""
        self._part_bytes = _whole_blocks(max(part_bytes, PART_MIN_BYTES))

    @property
    def end(self) -> int:
        """So many bytes are sent, or on their way."""
        return self.parts[-1].part.end if self.parts else 0

    def next_part(self) -> Part:
        """The part that comes next, if there are enough bytes for it and more: of whole blocks, as the
        checksums of a content are."""
        return Part(self.end, max(self._part_bytes, _whole_blocks(self.end // _BEFORE)))

    def add(self, checksums: bytes) -> EarlyPart:
        """The next part is on its way from now on. ``checksums``: of the content, as far as it goes."""
        part = self.next_part()
        early = EarlyPart(part, len(self.parts) + 1, _of_part(checksums, part))
        self.parts.append(early)
        return early

    def rest(self, size_bytes: int) -> list[Part]:
        """Parts of what a content of this size has behind those."""
        left = size_bytes - self.end
        most = PARTS_MAX - len(self.parts)
        length = max(self._part_bytes, -(-left // most))
        return [
            Part(offset, min(length, size_bytes - offset)) for offset in range(self.end, size_bytes, length)
        ]

    async def settled(self) -> None:
        """Return when no part is on its way any more."""
        for part in self.parts:
            await part.ended()


@contextlib.contextmanager
def telling(part: EarlyPart) -> Iterator[None]:
    """Inside, the part is sent: if that fails, it is told."""
    try:
        yield
    except (S3BlobFSError, OSError) as error:
        part.failed(error)
        raise
    except BaseException:
        part.failed(TransientS3Error("sending it was given up"))
        raise


def hashed_start(path: Path, checksums: bytes) -> FileStart:
    """So much of a file as has these checksums, one for each block."""
    return FileStart(path, len(checksums) // 4 * CHECKSUM_BLOCK_BYTES)


def _of_part(checksums: bytes, part: Part) -> bytes:
    return checksums[part.offset // CHECKSUM_BLOCK_BYTES * 4 : part.end // CHECKSUM_BLOCK_BYTES * 4]


def _whole_blocks(size_bytes: int) -> int:
    return -(-size_bytes // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES
