"""What S3 takes: limits of keys, metadata, ranges, parts and batches, checked before anything is sent.

Sources: Amazon S3 User Guide, "Amazon S3 multipart upload limits", "Naming Amazon S3 objects" and "Working
with object metadata". Every client checks here, the fake as well, so that a test without a server refuses
what a server would. A violation is a mistake of the caller: :class:`ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from s3blobfs.config import GIB, KIB, MIB, OBJECT_MAX_BYTES
from s3blobfs.errors import EntityTooLarge

KEY_MAX_BYTES = 1024
METADATA_MAX_BYTES = 2 * KIB
"""Names and values of all user metadata of one object."""
PART_MIN_BYTES = 5 * MIB
"""Of every part of a multipart upload but the last."""
PARTS_MAX = 10_000
COPY_MAX_BYTES = 5 * GIB
"""What one CopyObject copies, and the largest part of UploadPartCopy."""
DELETE_BATCH_MAX = 1000
"""Targets of one DeleteObjects."""
LIST_PAGE_MAX = 1000
"""Entries of one page of a listing."""

TAGS_MAX = 10
TAG_NAME_MAX = 128
TAG_VALUE_MAX = 256
"""Characters (Amazon S3 User Guide, "Categorizing your storage using tags")."""

_NOT_IN_KEYS = re.compile("[\\\\\x00-\x1f\x7f\ud800-\udfff]")
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9_\-]*")
_METADATA_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?|")
_TAG = re.compile(r"[A-Za-z0-9 +\-=._:/@]*")


def is_plain_key(key: str) -> bool:
    """Whether a client takes this key: 1 to ``KEY_MAX_BYTES`` bytes of UTF-8, no control character or
    backslash, and no component between slashes that is empty, ``.`` or ``..``.

    S3 itself takes more, but clients and gateways on the way normalise such keys like paths (obstore makes
    ``a/`` and ``/a`` into ``a``, SeaweedFS ``a\\b`` into ``a/b``), and then a
    request is about another object. We never make such keys; a listing may show foreign ones.
    """
    return (
        len(key.encode(errors="surrogatepass")) <= KEY_MAX_BYTES
        and not any(part in ("", ".", "..") for part in key.split("/"))
        and _NOT_IN_KEYS.search(key) is None
    )


def check_key(key: str) -> None:
    """Refuse a key that is not plain (see :func:`is_plain_key`)."""
    if not is_plain_key(key):
        raise ValueError(f"not an object key that can be used: {key[:100]!r}")


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of ``metadata``, once every header it becomes is sure to come back as it went.

    Names are of lower-case letters, digits, ``-`` and ``_``; values printable ASCII without a space at
    either end (HTTP strips it); together at most ``METADATA_MAX_BYTES``.
    """
    metadata = dict(metadata or {})
    for name, value in metadata.items():
        if _METADATA_NAME.fullmatch(name) is None:
            raise ValueError(f"metadata name {name!r}: only a-z, 0-9, '-' and '_'")
        if _METADATA_VALUE.fullmatch(value) is None:
            raise ValueError(f"metadata {name}: only printable ASCII, no space at either end")
    size_bytes = sum(len(name) + len(value) for name, value in metadata.items())
    if size_bytes > METADATA_MAX_BYTES:
        raise ValueError(f"{size_bytes} bytes of metadata; S3 takes {METADATA_MAX_BYTES}")
    return metadata


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A copy of ``tags``, once they are such as every server takes: at most ten, of ASCII letters, digits,
    spaces and ``+-=._:/@``."""
    for name, value in tags.items():
        if not 0 < len(name) <= TAG_NAME_MAX or len(value) > TAG_VALUE_MAX:
            raise ValueError(f"tag {name!r}: a name or a value of this length")
        if _TAG.fullmatch(name) is None or _TAG.fullmatch(value) is None:
            raise ValueError(f"tag {name!r}: only letters, digits, spaces and +-=._:/@")
    if not 0 < len(tags) <= TAGS_MAX:
        raise ValueError(f"{len(tags)} tags; an object has at most {TAGS_MAX}")
    return dict(tags)


def check_range(offset: int, length: int | None) -> None:
    """Refuse a range that HTTP cannot ask for: negative, or empty."""
    if offset < 0 or (length is not None and length <= 0):
        raise ValueError(f"not a range: offset {offset}, length {length}")


def check_batch(count: int) -> None:
    if count > DELETE_BATCH_MAX:
        raise ValueError(f"{count} targets in one batch; S3 takes {DELETE_BATCH_MAX}")


def part_ranges(size_bytes: int, part_size_bytes: int) -> list[tuple[int, int]]:
    """``(offset, length)`` of the parts of ``size_bytes``: as large as asked for, and larger where 10,000
    such parts would not do. Raises :class:`~s3blobfs.errors.EntityTooLarge` beyond 5 TiB."""
    if size_bytes > OBJECT_MAX_BYTES:
        raise EntityTooLarge(f"{size_bytes} bytes; an S3 object has at most {OBJECT_MAX_BYTES}")
    least_bytes = -(-size_bytes // PARTS_MAX)
    part_bytes = max(part_size_bytes, PART_MIN_BYTES, least_bytes)
    return [(offset, min(part_bytes, size_bytes - offset)) for offset in range(0, size_bytes, part_bytes)]
