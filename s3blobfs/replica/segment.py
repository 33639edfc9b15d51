"""A segment: one step of the index's history in the bucket, as bytes.

    8 bytes    magic
    4 bytes    length of the header, big-endian
    header     JSON: what it is, whose, and the digest of the segment before it
    payload    zlib; unpacked, for each changeset: 4 bytes length and JSON, 8 bytes length and the changeset
    32 bytes   SHA-256 of everything before: the segment's digest

Each names the digest of the one before, so none can be changed, left out or exchanged without its showing. A
segment is of one of three kinds:

* CHANGES leads from the state of the segment before to a later one.
* BREAK does not: changes were not noted (the process was killed, or S3 away for too long), and the state
  behind it is that of the snapshot with its number, which is sent first.
* MARK changes nothing: a mount says that it is there.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from s3blobfs.config import GIB
from s3blobfs.errors import DamagedContent
from s3blobfs.index.capture import Changes

MAGIC = b"S3BFSEG1"
FORMAT = 1
DIGEST_BYTES = 32
HEADER_MAX_BYTES = 64 * 1024
PAYLOAD_MAX_BYTES = 2 * GIB
"""Unpacked: what a header may claim. A hostile one must not make this process take more."""
_COMPRESSION = 6
_TYPES = {
    **dict.fromkeys(("kind", "volume_id", "previous", "writer"), str),
    **dict.fromkeys(
        ("number", "after_sequence", "sequence", "schema_version", "made_ns", "payload_bytes"), int
    ),
}
_LENGTH = struct.Struct(">I")
_LONG_LENGTH = struct.Struct(">Q")


class Kind(enum.Enum):
    CHANGES = "changes"
    BREAK = "break"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it was written, or as it was read and found whole."""

    number: int
    kind: Kind
    volume_id: str
    previous: str
    """Digest of the segment before, hexadecimal; empty where there is none."""
    after_sequence: int
    sequence: int
    """From which state of the index it leads to which (``counters.sequence``)."""
    schema_version: int
    made_ns: int
    """When the state was committed that it leads to; the writer's clock."""
    writer: str
    """The host that wrote it, for messages."""
    payload: bytes = field(repr=False, default=b"")
    """Compressed."""
    payload_bytes: int = 0
    """Unpacked."""


def pack(changes: Sequence[Changes]) -> tuple[bytes, int]:
    """A payload, compressed, and its length before. CPU time: for a worker thread when it is long."""
    compressor = zlib.compressobj(_COMPRESSION)
    packed, length = [], 0
    for each in changes:
        head = json.dumps(
            {"sequence": each.sequence, "made_ns": each.made_ns, "ids": dict(each.ids)}
        ).encode()
        for part in (
            _LENGTH.pack(len(head)),
            head,
            _LONG_LENGTH.pack(len(each.changeset)),
            each.changeset,
        ):
            packed.append(compressor.compress(part))
            length += len(part)
    packed.append(compressor.flush())
    return b"".join(packed), length


def unpack(segment: Segment) -> list[Changes]:
    """The changes of a segment that :func:`decode` has checked. Raises :class:`DamagedContent` where what
    was written makes no sense."""
    where = f"segment {segment.number}"
    if segment.kind is not Kind.CHANGES:
        return []
    raw = inflate(segment.payload, segment.payload_bytes, where)
    changes, at = [], 0
    try:
        while at < len(raw):
            (length,) = _LENGTH.unpack_from(raw, at)
            at += _LENGTH.size
            head = json.loads(raw[at : at + length])
            at += length
            (length,) = _LONG_LENGTH.unpack_from(raw, at)
            at += _LONG_LENGTH.size
            changeset = raw[at : at + length]
            if len(changeset) != length:
                raise ValueError("a changeset ends early")
            at += length
            require_types(head, {"sequence": int, "made_ns": int, "ids": dict}, where)
            require_types(head["ids"], dict.fromkeys(head["ids"], int), where)
            changes.append(Changes(head["sequence"], head["made_ns"], head["ids"], changeset))
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedContent(f"{where} is not what its writer meant: {error!r}") from error
    return changes


def encode(segment: Segment) -> tuple[bytes, str]:
    """The object, and its digest."""
    header = {
        "format": FORMAT,
        "number": segment.number,
        "kind": segment.kind.value,
        "volume_id": segment.volume_id,
        "previous": segment.previous,
        "after_sequence": segment.after_sequence,
        "sequence": segment.sequence,
        "schema_version": segment.schema_version,
        "made_ns": segment.made_ns,
        "writer": segment.writer,
        "payload_bytes": segment.payload_bytes,
    }
    data = frame(MAGIC, header) + segment.payload
    digest = hashlib.sha256(data).digest()
    return data + digest, digest.hex()


def decode(data: bytes, where: str) -> tuple[Segment, str]:
    """The segment, and its digest. Raises :class:`DamagedContent` for anything but a whole one."""
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedContent(f"{where} is damaged: its checksum does not match")
    header, at = unframe(MAGIC, body, where)
    require_types(header, _TYPES, where)
    try:
        segment = Segment(
            number=header["number"],
            kind=Kind(header["kind"]),
            volume_id=header["volume_id"],
            previous=header["previous"],
            after_sequence=header["after_sequence"],
            sequence=header["sequence"],
            schema_version=header["schema_version"],
            made_ns=header["made_ns"],
            writer=header["writer"],
            payload=body[at:],
            payload_bytes=header["payload_bytes"],
        )
    except (ValueError, KeyError) as error:
        raise DamagedContent(f"{where} has a header that makes no sense: {error!r}") from error
    return segment, digest.hex()


def time_text(made_ns: int) -> str:
    """For messages."""
    return f"{datetime.fromtimestamp(made_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- shared with snapshots -----------------------------------------------------------------------------


def frame(magic: bytes, header: Mapping[str, Any]) -> bytes:
    """What an object of ours begins with."""
    text = json.dumps(header).encode("ascii")
    return magic + _LENGTH.pack(len(text)) + text


def unframe(magic: bytes, data: bytes, where: str) -> tuple[dict[str, Any], int]:
    """The header, and where the payload begins. Raises :class:`DamagedContent`."""
    start = len(magic) + _LENGTH.size
    if data[: len(magic)] != magic or len(data) < start:
        raise DamagedContent(f"{where} is nothing that this program wrote")
    (length,) = _LENGTH.unpack_from(data, len(magic))
    if length > HEADER_MAX_BYTES or start + length > len(data):
        raise DamagedContent(f"{where} ends within its header")
    try:
        header = json.loads(data[start : start + length])
        known = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedContent(f"{where} has a header that cannot be read: {error!r}") from error
    if known != FORMAT:
        raise DamagedContent(
            f"{where} has format {known!r} and this program knows format {FORMAT}: use the newer program"
        )
    return header, start + length


def require_types(header: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    """That a header has what it must have, and of the kind that it is used as: anybody who may write to the
    bucket can have made it. Numbers are not negative. Raises :class:`DamagedContent`."""
    if not isinstance(header, dict):
        raise DamagedContent(f"{where} has a header that is none")
    for name, kind in types.items():
        value = header.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63):
            raise DamagedContent(f"{where} has a header that makes no sense: {name} is {str(value)[:40]!r}")


def inflate(data: bytes, size_bytes: int, where: str) -> bytes:
    """Unpack exactly so many bytes. Raises :class:`DamagedContent`."""
    if not 0 <= size_bytes <= PAYLOAD_MAX_BYTES:
        raise DamagedContent(f"{where} claims to hold {size_bytes} bytes")
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise DamagedContent(f"{where} cannot be unpacked: {error}") from error
    if len(raw) != size_bytes or not unpacker.eof:
        raise DamagedContent(f"{where} does not hold the {size_bytes} bytes that it claims")
    return raw
