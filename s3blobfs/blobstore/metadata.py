"""The stamp: user metadata that every object of ours carries.

It serves three purposes: a dedupe hit is judged by the SHA-256 in it, a PUT whose answer was lost is found
by the write id in it, and a lost index can be rebuilt from it (path, inode and attributes are those at the
time of the upload: a hint).

Owner, permissions and time have the names and formats that FSx for Lustre and DataSync use (FSx for Lustre
User Guide, "POSIX metadata support for data repositories"): ``file-permissions`` is ``st_mode`` in octal with
a leading zero, ``file-mtime`` is in nanoseconds with the suffix ``ns``. The others begin with ``s3blobfs-``.

S3 takes at most 2 KB of user metadata, names included, as ASCII. Only the path can be long; it is
percent-encoded, and when it does not fit it loses directories from the front, marked by ``*/`` (an
encoded path holds no ``*``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from s3blobfs.types import ContentDigests, ObjectHint

METADATA_MAX_BYTES = 2048
"""Amazon S3 User Guide, "Working with object metadata"."""
_HEADER_PREFIX_BYTES = len("x-amz-meta-")
"""Counted with each name: the guide does not say whether S3 does."""
_CUT = "*/"

WRITE_ID = "s3blobfs-write-id"
INODE = "s3blobfs-inode"
PATH = "s3blobfs-path"
SIZE = "s3blobfs-size"
MD5 = "s3blobfs-md5"
SHA256 = "s3blobfs-sha256"
PERMISSIONS = "file-permissions"
OWNER = "file-owner"
GROUP = "file-group"
MTIME = "file-mtime"

_WRITE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")
_OCTAL = re.compile(r"[0-7]{1,11}")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A decoded stamp; what is missing or malformed is ``None``."""

    write_id: str | None
    inode_id: int | None
    path: bytes | None
    path_is_whole: bool
    """False where directories were cut from the front of ``path``."""
    mode: int | None
    uid: int | None
    gid: int | None
    mtime_ns: int | None
    size_bytes: int | None
    md5: bytes | None
    sha256: bytes | None

    def matches(self, digests: ContentDigests) -> bool:
        """Whether the object says of itself that it is this content."""
        return self.size_bytes == digests.size_bytes and self.sha256 == digests.sha256


def encode(write_id: str, hint: ObjectHint, digests: ContentDigests) -> dict[str, str]:
    """The stamp of an object. Raises :class:`ValueError` for a write id that is not plain ASCII."""
    if not _WRITE_ID.fullmatch(write_id):
        raise ValueError(f"not a write id: {write_id!r}")
    stamp = {
        WRITE_ID: write_id,
        INODE: str(hint.inode_id),
        SIZE: str(digests.size_bytes),
        MD5: digests.md5.hex(),
        SHA256: digests.sha256.hex(),
        PERMISSIONS: f"0{hint.mode:o}",
        OWNER: str(hint.uid),
        GROUP: str(hint.gid),
        MTIME: f"{hint.mtime_ns}ns",
    }
    left = METADATA_MAX_BYTES - encoded_size(stamp) - encoded_size({PATH: ""})
    stamp[PATH] = _encode_path(hint.path, left)
    return stamp


def encoded_size(metadata: Mapping[str, str]) -> int:
    """Bytes that user metadata takes of S3's limit, estimated upwards."""
    return sum(_HEADER_PREFIX_BYTES + len(name) + len(value) for name, value in metadata.items())


def decode(metadata: Mapping[str, str]) -> Stamp:
    """Read a stamp. Whatever anyone wrote into the metadata is tolerated and never trusted further than
    its form: numbers are bounded, digests have their length, a path has no odd components."""
    path, path_is_whole = _decode_path(metadata.get(PATH))
    write_id = metadata.get(WRITE_ID, "")
    mtime = metadata.get(MTIME, "")
    return Stamp(
        write_id=write_id if _WRITE_ID.fullmatch(write_id) else None,
        inode_id=_decimal(metadata.get(INODE), 1, 2**63 - 1),
        path=path,
        path_is_whole=path_is_whole,
        mode=_octal(metadata.get(PERMISSIONS)),
        uid=_decimal(metadata.get(OWNER), 0, 2**32 - 1),
        gid=_decimal(metadata.get(GROUP), 0, 2**32 - 1),
        mtime_ns=_decimal(mtime.removesuffix("ns"), -(2**63), 2**63 - 1) if mtime.endswith("ns") else None,
        size_bytes=_decimal(metadata.get(SIZE), 0, 2**63 - 1),
        md5=_digest(metadata.get(MD5), 16),
        sha256=_digest(metadata.get(SHA256), 32),
    )


def _encode_path(path: bytes, limit: int) -> str:
    """``path`` in at most ``limit`` characters. A name of NAME_MAX bytes, each of them escaped, fits."""
    encoded = quote_from_bytes(path, safe="/")
    if len(encoded) <= limit:
        return encoded
    while len(encoded) > limit - len(_CUT):
        _, slash, encoded = encoded.partition("/")
        if not slash:
            return _CUT
    return _CUT + encoded


def _decode_path(text: str | None) -> tuple[bytes | None, bool]:
    if text is None or not text.isascii():
        return None, False
    whole = not text.startswith(_CUT)
    path = unquote_to_bytes(text.removeprefix(_CUT))
    odd = any(part in (b"", b".", b"..") for part in path.split(b"/"))
    return (None, False) if odd or b"\0" in path else (path, whole)


def _decimal(text: str | None, least: int, most: int) -> int | None:
    if text is None or not _DECIMAL.fullmatch(text):
        return None
    value = int(text)
    return value if least <= value <= most else None


def _octal(text: str | None) -> int | None:
    return int(text, 8) if text is not None and _OCTAL.fullmatch(text) else None


def _digest(text: str | None, size_bytes: int) -> bytes | None:
    if text is None or not re.fullmatch(rf"[0-9a-f]{{{2 * size_bytes}}}", text):
        return None
    return bytes.fromhex(text)
