"""Small contents are kept in memory beside their staged file, from the write until they are in S3.

So a small file is hashed and sent without being read back, which would be seven system calls, each of them an
occasion to wait for the interpreter's lock. The staged file is written all the same: it is what survives the
process, what is read, and what becomes the cache's entry.

Held is a content that is written once from its start to its end, as files are that programs make; what is
changed in any other way is not. All of them together have a limit, beyond which nothing more is held.
"""

from __future__ import annotations

from s3blobfs.config import KIB, MIB
from s3blobfs.types import Buffer

SMALL_MAX_BYTES = 128 * KIB
"""Of one content."""
TOGETHER_MAX_BYTES = 16 * MIB


class Memory:
    """What all contents of a mount together may hold."""

    __slots__ = ("_limit", "used_bytes")

    def __init__(self, limit_bytes: int = TOGETHER_MAX_BYTES) -> None:
        self._limit = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Whether so much more may be held; it is counted then."""
        if self.used_bytes + size_bytes > self._limit:
            return False
        self.used_bytes += size_bytes
        return True


class SmallContent:
    """The content of one file, as far as it is held."""

    __slots__ = ("_memory", "_pieces", "_size_bytes")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pieces: list[bytes] | None = []
        """``None``: not held any more."""
        self._size_bytes = 0

    def wrote(self, offset: int, data: Buffer) -> None:
        """The file has got these bytes there."""
        if self._pieces is None:
            return
        if (
            offset != self._size_bytes
            or self._size_bytes + len(data) > SMALL_MAX_BYTES
            or not self._memory.take(len(data))
        ):
            self.drop()
            return
        self._pieces.append(bytes(data))
        self._size_bytes += len(data)

    def content(self, size_bytes: int) -> bytes | None:
        """All of a file of this length; ``None`` when it is not held."""
        if self._pieces is None or size_bytes != self._size_bytes:
            return None
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def drop(self) -> None:
        """Hold nothing of it from now on. May be called again."""
        self._pieces = None
        self._memory.used_bytes -= self._size_bytes
        self._size_bytes = 0
