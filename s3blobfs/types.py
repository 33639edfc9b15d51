"""Records shared by every layer: what a store is, what a blob is, how content is identified.

Plain immutable data and nothing else; a layer's own records live with that layer. The words are those of
``docs/architecture.md``: a *digest* is of content, a *checksum* is of transport, a *blob* is an immutable
stored content, an *object key* and a *version id* are S3's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

Buffer = bytes | bytearray | memoryview
"""Bytes on their way: whoever passes them on does not copy them."""

CHECKSUM_BLOCK_BYTES = 256 * 1024
"""A blob's bytes are checked piecewise, one CRC-32 per block of this many bytes (the last may be shorter)."""


@dataclass(frozen=True, slots=True)
class FileStart:
    """The first bytes of a local file, which do not change. More may be written behind them meanwhile."""

    path: Path
    size_bytes: int


PutBody = bytes | Path | FileStart
"""What is stored: bytes, a file as it is, or how one begins."""


class Keying(enum.Enum):
    """How a store names its blobs."""

    DIGEST = "digest"
    """Key = digest of the content; the same content is stored once."""
    VERSIONED = "versioned"
    """A file keeps one opaque key for life; every change makes a new S3 version of it."""


class DigestAlgorithm(enum.Enum):
    """The digest that becomes the key in a ``digest`` store."""

    MD5 = "md5"
    SHA256 = "sha256"


class Durability(enum.Enum):
    """What ``close()`` of a changed file waits for."""

    S3 = "s3"
    """The object is in S3 and the index commit is on disk."""
    DISK = "disk"
    """The staged file and its journal row are on disk; the upload runs behind."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One store of a volume: where its blobs live and how they are keyed. Fixed once created."""

    id: int
    """Row id in the index; 1 is the store ``default``."""
    name: str
    bucket: str
    prefix: str
    """Prepended to every object key: empty, or ending in ``/``."""
    keying: Keying
    digest_algorithm: DigestAlgorithm
    """The key digest of a ``digest`` store; without meaning in a ``versioned`` one."""
    cached: bool
    """Whether whole blobs are kept in the local cache. If not, nothing that was read touches the disk."""
    conditional_put: bool
    """The server honours ``If-None-Match: *`` on PutObject (probed when the store was made)."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class ContentDigests:
    """Everything that identifies a content, computed in one pass while it is staged."""

    size_bytes: int
    md5: bytes
    """16 bytes."""
    sha256: bytes
    """32 bytes."""
    checksums: bytes
    """CRC-32 (:func:`zlib.crc32`, big-endian, 4 bytes each) of every block of ``CHECKSUM_BLOCK_BYTES``;
    empty for empty content."""

    def key_digest(self, algorithm: DigestAlgorithm) -> str:
        """The lower-case hexadecimal digest that names this content in a ``digest`` store."""
        return (self.md5 if algorithm is DigestAlgorithm.MD5 else self.sha256).hex()


@dataclass(frozen=True, slots=True)
class BlobLocation:
    """Where a blob's bytes are in its store's bucket, and under which name in the local cache."""

    object_key: str
    """The full S3 key, the store's prefix included."""
    version_id: str | None
    """S3's version id; ``None`` in a ``digest`` store."""
    cache_name: str
    """Name within the store's part of the cache: ``id@version``, or the digest key without the prefix."""


@dataclass(frozen=True, slots=True)
class StoredContent:
    """What a store answers to a put or a copy: the content is in S3, whole, under ``location``."""

    location: BlobLocation
    etag: str
    """Opaque validator for ranged GETs (``If-Match``); never taken for a digest."""
    existed: bool
    """A dedupe hit: the object was there already and nothing was uploaded."""


@dataclass(frozen=True, slots=True)
class BlobContent:
    """What a reader has to know of a stored blob; built from its index row."""

    blob_id: int
    store_id: int
    location: BlobLocation
    etag: str
    digests: ContentDigests
    """``checksums`` is empty where they are not known (an index rebuilt from objects)."""

    @property
    def size_bytes(self) -> int:
        return self.digests.size_bytes


@dataclass(frozen=True, slots=True)
class ObjectHint:
    """A file's attributes at the time of its upload, stamped on the object so that a lost index can be
    rebuilt. A hint: metadata changes never rewrite an object."""

    inode_id: int
    path: bytes
    """From the root of the volume, without a leading slash."""
    mode: int
    uid: int
    gid: int
    mtime_ns: int
