"""Bodies of PUTs: bytes, or a file that must stay as it is until it is stored.

A file is opened once and read by offset, so it may be renamed meanwhile. Before and after every read its
identity is compared: had it changed, the object would be of a content that never was. What it is to hold is
known by checksums, if they are given: it may have been altered before it was opened, or the disk may answer
with other bytes than were written, which no time tells. A file of which just the beginning is stored may get
longer meanwhile: once it did, each byte that is read is compared with its checksums.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from s3blobfs.config import KIB
from s3blobfs.errors import DamagedContent, PermanentS3Error
from s3blobfs.s3.crc import combined
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, FileStart, PutBody

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_BLOCK_BYTES = 256 * KIB


class Body:
    """A body of known size that can be read in ranges, by several threads. A context manager.

    Raises ``OSError`` where the file does; it is the local tier's error, not S3's.
    """

    def __init__(self, source: PutBody, checksums: bytes = b"") -> None:
        """``checksums`` of the whole body, as :class:`~s3blobfs.types.ContentDigests` has them; empty where
        they are not known: then no file may get longer. Raises, besides ``OSError``,
        :class:`~s3blobfs.errors.DamagedContent` for a file that does not have as many bytes as it is to."""
        self._checksums = checksums
        self._data: bytes | None = None
        self._descriptor = -1
        self._name = "the body"
        if isinstance(source, bytes):
            self._data = source
            self.size_bytes = len(source)
        else:
            path = source.path if isinstance(source, FileStart) else source
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._name = path.name
            self._identity = self._stat()
            self.size_bytes = source.size_bytes if isinstance(source, FileStart) else self._identity[0]
            self._may_grow = isinstance(source, FileStart) and bool(checksums)
            if self._identity[0] < self.size_bytes:
                os.close(self._descriptor)
                raise self._damaged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises :class:`~s3blobfs.errors.PermanentS3Error` when the file is
        not the one that was opened any more."""
        if self._data is not None:
            return self._data[offset : offset + length]
        self.check_unchanged()
        data = self._pread(offset, length)
        self.check_unchanged()
        if not self._may_grow or self._stat() == self._identity:
            return data
        # It got longer, and the times do not tell any more whether nothing else became of it.
        start = offset - offset % CHECKSUM_BLOCK_BYTES
        end = offset + length
        data = self._pread(start, min(end + -end % CHECKSUM_BLOCK_BYTES, self.size_bytes) - start)
        self.compare(data, start)
        return data[offset - start : end - start]

    def read_compared(self, offset: int, length: int) -> bytes:
        """A range of whole blocks of a body whose checksums are known, the last one of the body may be
        shorter. Raises as :meth:`read_checked`."""
        self.check_unchanged()
        data = self._pread(offset, length) if self._data is None else self._data[offset : offset + length]
        self.check_unchanged()
        self.compare(data, offset)
        return data

    def _pread(self, offset: int, length: int) -> bytes:
        blocks = []
        while length > 0 and (block := os.pread(self._descriptor, length, offset)):
            blocks.append(block)
            offset += len(block)
            length -= len(block)
        return b"".join(blocks)

    def read_checked(self) -> bytes:
        """All of it. Raises, besides, :class:`~s3blobfs.errors.DamagedContent` when it is not what the
        checksums say."""
        data = self.read(0, self.size_bytes)
        self.compare(data, 0)
        return data

    def check(self, offset: int, length: int) -> None:
        """Read a range and compare it with the checksums. Raises as :meth:`read_checked`."""
        if not self._checksums:
            self.check_unchanged()
            return
        start = offset - offset % CHECKSUM_BLOCK_BYTES
        end = offset + length
        while start < end:
            size = min(CHECKSUM_BLOCK_BYTES, self.size_bytes - start)
            self.compare(self.read(start, size), start)
            start += size

    def compare(self, data: bytes, start: int) -> None:
        """That ``data`` is what the body has from ``start`` on, if its checksums are known: whole blocks, the
        last one of the body may be shorter. Raises :class:`~s3blobfs.errors.DamagedContent`."""
        if not self._checksums:
            return
        view = memoryview(data)
        found = b"".join(
            zlib.crc32(view[at : at + CHECKSUM_BLOCK_BYTES]).to_bytes(4, "big")
            for at in range(0, len(data), CHECKSUM_BLOCK_BYTES)
        )
        first = start // CHECKSUM_BLOCK_BYTES * 4
        whole = 4 * -(-self.size_bytes // CHECKSUM_BLOCK_BYTES)
        if len(self._checksums) != whole or self._checksums[first : first + len(found)] != found:
            raise self._damaged()

    def _damaged(self) -> DamagedContent:
        return DamagedContent(f"{self._name} does not hold the bytes that are to be stored")

    def checksum_of(self, offset: int, length: int) -> int | None:
        """The CRC-32 of a range, if it is known: of whole blocks, the last one of the body may be shorter."""
        end = offset + length
        if not self._checksums or offset % CHECKSUM_BLOCK_BYTES:
            return None
        if end % CHECKSUM_BLOCK_BYTES and end != self.size_bytes:
            return None
        first, behind = offset // CHECKSUM_BLOCK_BYTES, -(-end // CHECKSUM_BLOCK_BYTES)
        return combined(self._checksums[4 * first : 4 * behind], CHECKSUM_BLOCK_BYTES, length)

    @contextlib.contextmanager
    def sending(self, offset: int, length: int) -> Iterator[BinaryIO]:
        """A range of known checksum as the file object that boto3 wants, compared as it is sent: a block that
        is not what it is to be ends the request. What went wrong with the body is raised as it is, not as the
        broken connection that the libraries make of it."""
        source = _Range(self, offset, length, checked=True)
        try:
            yield io.BufferedReader(source, CHECKSUM_BLOCK_BYTES)
        except Exception as error:
            if source.failure is not None:
                raise source.failure from error
            raise

    def open_range(self, offset: int, length: int) -> BinaryIO:
        """A range as the file object that boto3 wants; read in blocks.

        Not ``bytes``: a part would be held in memory as long as it takes, and http.client sends bytes in one
        ``sendall``, to which urllib3 applies the *connect* timeout as a whole. A file is sent in small
        blocks, each with that timeout to itself.
        """
        return io.BufferedReader(_Range(self, offset, length), _READ_BLOCK_BYTES)

    def check_unchanged(self) -> None:
        if self._data is not None:
            return
        found = self._stat()
        if found[0] < self.size_bytes if self._may_grow else found != self._identity:
            raise PermanentS3Error(f"{self._name} changed while it was being stored")

    def _stat(self) -> tuple[int, int, int]:
        facts = os.fstat(self._descriptor)
        return facts.st_size, facts.st_mtime_ns, facts.st_ino


class _Range(io.RawIOBase):
    """A range of a body, read by offset; nothing is shared with other ranges but the descriptor."""

    def __init__(self, body: Body, offset: int, length: int, *, checked: bool = False) -> None:
        """``checked``: the range is one of whole blocks, and each is compared before it is given."""
        super().__init__()
        self._body = body
        self._offset = offset
        self._length = length
        self._position = 0
        self._checked = checked
        self._block = b""
        self._block_start = 0
        self.failure: Exception | None = None
        """Why the range could not be read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        length = min(len(view), max(0, self._length - self._position))
        try:
            data = self._read_checked(length) if self._checked else self._read(self._position, length)
        except Exception as error:
            self.failure = error
            raise
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, position: int, length: int) -> bytes:
        return self._body.read(self._offset + position, length)

    def _read_checked(self, length: int) -> bytes | memoryview:
        """At most to the end of the block."""
        within = self._position - self._block_start
        if length and not 0 <= within < len(self._block):
            self._block_start = self._position - self._position % CHECKSUM_BLOCK_BYTES
            size_bytes = min(CHECKSUM_BLOCK_BYTES, self._length - self._block_start)
            self._block = self._body.read_compared(self._offset + self._block_start, size_bytes)
            within = self._position - self._block_start
        return memoryview(self._block)[within : within + length]
