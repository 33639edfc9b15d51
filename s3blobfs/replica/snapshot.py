"""A snapshot: one whole state of the index in the bucket, as a file and as an object.

    8 bytes    magic
    4 bytes    length of the header, big-endian
    header     JSON: whose it is, the number and digest of the segment behind which this is the state
    payload    zlib of the database file
    32 bytes   SHA-256 of everything before

Written and read as a stream: an index may be larger than memory.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from s3blobfs.config import MIB
from s3blobfs.errors import DamagedContent
from s3blobfs.replica.segment import DIGEST_BYTES, FORMAT, HEADER_MAX_BYTES, frame, require_types, unframe
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo

MAGIC = b"S3BFSNP1"
CHUNK_BYTES = 4 * MIB
_TYPES = {
    **dict.fromkeys(("volume_id", "digest"), str),
    **dict.fromkeys(("number", "sequence", "schema_version", "made_ns", "database_bytes"), int),
}
_COMPRESSION = 3
"""Index pages shrink to a quarter at any level; the higher ones only take longer."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """Which state it is."""

    volume_id: str
    number: int
    digest: str
    """Of the segment of that number, hexadecimal."""
    sequence: int
    schema_version: int
    made_ns: int
    """When the state was the newest; the writer's clock."""
    database_bytes: int


def write_file(database: Path, header: SnapshotHeader, target: Path) -> None:
    """Pack a closed database file. For a worker thread of trio's, and ends soon when who waits for it is
    cancelled: an unmount must not take longer the larger the index is. Raises ``OSError``."""
    digest = hashlib.sha256()
    compressor = zlib.compressobj(_COMPRESSION)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with database.open("rb") as source, os.fdopen(fd, "wb") as file:

        def add(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        add(frame(MAGIC, {"format": FORMAT, **asdict(header)}))
        while chunk := source.read(CHUNK_BYTES):
            trio.from_thread.check_cancelled()
            add(compressor.compress(chunk))
        add(compressor.flush())
        file.write(digest.digest())


async def read_header(client: ObjectClient, info: ObjectInfo) -> SnapshotHeader:
    """Raises :class:`DamagedContent` for what is no snapshot, and what S3 raises."""
    length = min(info.size_bytes, len(MAGIC) + 4 + HEADER_MAX_BYTES)
    if length == 0:
        raise DamagedContent(f"{info.key} is empty")
    answer = await client.get(info.key, length=length, offset=0)
    return _header(answer.data, info.key)[0]


async def fetch(
    client: ObjectClient, info: ObjectInfo, target: Path, progress: Callable[[int], None]
) -> SnapshotHeader:
    """Unpack an object into the new file ``target``, which nobody else can read; ``progress`` hears of the
    object's bytes. Raises :class:`DamagedContent` when it is not whole, what S3 raises, ``OSError``; the
    file is the caller's to remove then."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        unpacking: _Unpacking | None = None
        for offset in range(0, info.size_bytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, info.size_bytes - offset)
            answer = await client.get(info.key, offset=offset, length=length, if_match=info.etag)
            if unpacking is None:
                header, _ = _header(answer.data, info.key)
                unpacking = _Unpacking(header, info, file.write)
            await trio.to_thread.run_sync(unpacking.add, answer.data)
            progress(len(answer.data))
        if unpacking is None:
            raise DamagedContent(f"{info.key} is empty")
        unpacking.finish()
    return unpacking.header


class _Unpacking:
    """Takes an object piece by piece; the last bytes are its checksum and no payload."""

    def __init__(self, header: SnapshotHeader, info: ObjectInfo, write: Callable[[bytes], int]) -> None:
        self.header = header
        self._where = info.key
        self._left = info.size_bytes - DIGEST_BYTES
        self._skip = -1
        self._write = write
        self._written = 0
        self._digest = hashlib.sha256()
        self._given = b""
        self._unpacker = zlib.decompressobj()

    def add(self, data: bytes) -> None:
        body, rest = data[: max(0, self._left)], data[max(0, self._left) :]
        self._left -= len(body)
        self._given += rest
        self._digest.update(body)
        if self._skip < 0:
            self._skip = _header(body, self._where)[1]
            body = body[self._skip :]
        while body:
            try:
                raw = self._unpacker.decompress(body, CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedContent(f"{self._where} cannot be unpacked: {error}") from error
            self._take(raw)
            body = self._unpacker.unconsumed_tail

    def finish(self) -> None:
        self._take(self._unpacker.flush())
        if self._digest.digest() != self._given:
            raise DamagedContent(f"{self._where} is damaged: its checksum does not match")
        if self._written != self.header.database_bytes:
            raise DamagedContent(
                f"{self._where} holds {self._written} bytes, not the {self.header.database_bytes} it claims"
            )

    def _take(self, raw: bytes) -> None:
        self._written += len(raw)
        if self._written > self.header.database_bytes:
            raise DamagedContent(
                f"{self._where} holds more than the {self.header.database_bytes} bytes it claims"
            )
        self._write(raw)


def _header(data: bytes, where: str) -> tuple[SnapshotHeader, int]:
    header, at = unframe(MAGIC, data, where)
    require_types(header, _TYPES, where)
    try:
        header.pop("format")
        return SnapshotHeader(**header), at
    except TypeError as error:
        raise DamagedContent(f"{where} has a header that makes no sense: {error}") from error
