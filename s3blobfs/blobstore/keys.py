"""Names of blobs: object keys, object ids and cache names. Pure functions.

A *name* is what stands behind a store's prefix. In a ``digest`` store it is the lower-case hexadecimal
digest of the content, in a ``versioned`` store the file's object id. The cache knows blobs without the
prefix: by the digest, or by ``id@version``, which is why no id holds an ``@``.
"""

from __future__ import annotations

import re
import uuid
from urllib.parse import quote

from s3blobfs.types import BlobLocation, ContentDigests, DigestAlgorithm

VERSION_SEPARATOR = "@"

_OBJECT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def new_object_id() -> str:
    """A key for a new file of a ``versioned`` store: 32 hexadecimal digits, random."""
    return uuid.uuid4().hex


def is_object_id(text: str) -> bool:
    """Letters, digits, ``_`` and ``-``: no ``@`` or ``/``, and nothing below ``.s3blobfs/``."""
    return _OBJECT_ID.fullmatch(text) is not None


def digest_name(digests: ContentDigests, algorithm: DigestAlgorithm) -> str:
    """Name of a content in a ``digest`` store."""
    return digests.key_digest(algorithm)


def collision_name(digests: ContentDigests, algorithm: DigestAlgorithm) -> str:
    """Name of a content whose own name is taken by another content: both digests, the key's first."""
    other = DigestAlgorithm.SHA256 if algorithm is DigestAlgorithm.MD5 else DigestAlgorithm.MD5
    return f"{digests.key_digest(algorithm)}-{digests.key_digest(other)}"


def digest_location(prefix: str, name: str) -> BlobLocation:
    return BlobLocation(object_key=prefix + name, version_id=None, cache_name=name)


def versioned_location(prefix: str, object_id: str, version_id: str) -> BlobLocation:
    """The version id is S3's, opaque and of any characters; in the cache name, which becomes a file name,
    those that a URL path would escape are escaped (AWS gives none)."""
    return BlobLocation(
        object_key=prefix + object_id,
        version_id=version_id,
        cache_name=f"{object_id}{VERSION_SEPARATOR}{quote(version_id, safe='')}",
    )


def subject(location: BlobLocation) -> str:
    """How traces and messages name a blob in S3: its key, with its version if it has one."""
    return subject_of(location.object_key, location.version_id)


def subject_of(object_key: str, version_id: str | None) -> str:
    return object_key if version_id is None else f"{object_key} v={version_id}"
