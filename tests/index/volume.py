"""A small volume to test with, and the few steps of the layers above that most tests need."""

from __future__ import annotations

import hashlib
import stat
import zlib
from pathlib import Path

from s3blobfs.config import VolumeSettings
from s3blobfs.index import blobs, dentries, inodes, settings, stores
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from s3blobfs.types import (
    CHECKSUM_BLOCK_BYTES,
    BlobLocation,
    ContentDigests,
    DigestAlgorithm,
    Durability,
    Keying,
    StoredContent,
)

ROOT = ROOT_INODE_ID
DIGEST_STORE = 1
VERSIONED_STORE = 2
NOW = 1_700_000_000_123_456_789

SETTINGS = VolumeSettings(
    volume_id="0" * 32, bucket="bucket", prefix="", durability=Durability.S3, created_ns=NOW
)


def make(path: Path, tracer: Tracer | None = None) -> Database:
    """A new index, empty of everything."""
    return Database.create(path, tracer=tracer or Tracer())


def fill(tx: Transaction) -> None:
    """What mkfs does, and a second store."""
    settings.store(tx, SETTINGS)
    for name, keying in (("default", Keying.DIGEST), ("other", Keying.VERSIONED)):
        stores.insert(
            tx,
            name=name,
            bucket="bucket",
            prefix="" if name == "default" else "other/",
            keying=keying,
            digest_algorithm=DigestAlgorithm.MD5,
            cached=False,
            conditional_put=True,
        )
    root = inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, nlink=2, now_ns=NOW)
    assert root.id == ROOT


def add_file(
    tx: Transaction, parent: int, name: bytes, *, store_id: int = DIGEST_STORE, now_ns: int = NOW
) -> InodeRow:
    row = inodes.insert(
        tx, mode=stat.S_IFREG | 0o644, uid=1, gid=2, nlink=1, now_ns=now_ns, store_id=store_id
    )
    dentries.insert(tx, parent, name, row.id)
    return row


def add_directory(tx: Transaction, parent: int, name: bytes) -> InodeRow:
    row = inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=1, gid=2, nlink=2, now_ns=NOW)
    dentries.insert(tx, parent, name, row.id)
    inodes.add_links(tx, parent, 1, NOW)
    return row


def digests_of(content: bytes) -> ContentDigests:
    blocks = range(0, len(content), CHECKSUM_BLOCK_BYTES)
    return ContentDigests(
        size_bytes=len(content),
        md5=hashlib.md5(content).digest(),
        sha256=hashlib.sha256(content).digest(),
        checksums=b"".join(
            zlib.crc32(content[at : at + CHECKSUM_BLOCK_BYTES]).to_bytes(4, "big") for at in blocks
        ),
    )


def stored(content: bytes, *, key: str | None = None, version: str | None = None) -> StoredContent:
    key = key or digests_of(content).md5.hex()
    return StoredContent(
        location=BlobLocation(key, version, f"{key}@{version}" if version else key),
        etag=f'"{digests_of(content).md5.hex()}"',
        existed=False,
    )


def adopt(tx: Transaction, content: bytes, *, now_ns: int = NOW) -> BlobRow:
    """Take the content into the digest store."""
    return blobs.adopt(tx, DIGEST_STORE, stored(content), digests_of(content), now_ns)


def adopt_version(tx: Transaction, key: str, version: str, content: bytes) -> BlobRow:
    """Take the content into the versioned store."""
    return blobs.adopt(
        tx, VERSIONED_STORE, stored(content, key=key, version=version), digests_of(content), NOW
    )


def give_content(tx: Transaction, inode_id: int, content: bytes) -> BlobRow:
    """What the end of an upload to the digest store does."""
    old = inodes.get(tx, inode_id)
    blob = adopt(tx, content)
    inodes.update(tx, inode_id, size_bytes=len(content), blob_id=blob.id)
    if old.blob_id is not None:
        blobs.drop_ref(tx, old.blob_id, NOW, superseded=True)
    return blob
