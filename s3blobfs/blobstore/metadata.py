"""The stamp: user metadata that every object of ours carries.

It serves three purposes: a dedupe hit is judged by the SHA-256 in it, a PUT whose answer was lost is found
by the write id in it, and a lost index can be rebuilt from it (path, inode and attributes are those at the
time of the upload: a hint).

Owner, permissions and time have the names and formats that FSx for Lustre and DataSync use (FSx for Lustre
User Guide, "POSIX metadata support for data repositories"): ``file-permissions`` is ``st_mode`` in octal with
a leading zero, ``file-mtime`` is in nanoseconds with the suffix ``ns``. The others begin with ``s3blobfs-``.

An object that was begun before its content was complete (:mod:`s3blobfs.blobstore.early`) could not be told
its digests: metadata are fixed when a multipart upload is created. Its stamp says so, and what was known in
the end is in a *tag* of its version: size, digests and modification time, and owner and permissions as they
were then. Who reads a stamp asks for the tag, too (:mod:`s3blobfs.blobstore.stamps`).

S3 takes at most 2 KB of user metadata, names included, as ASCII. Only the path can be long; it is
percent-encoded, and when it does not fit it loses directories from the front, marked by ``*/`` (an
encoded path holds no ``*``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
DIGESTS = "s3blobfs-digests"
"""``tag``: they are in the tag, as soon as it is there."""
_IN_TAG = "tag"
TAG = "s3blobfs"
"""Name of the tag. Its value is ``name=value`` pairs with spaces between them, 256 characters at most."""

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
    in_tag: bool = False
    """What the content is, the object's tag says, and not the metadata."""
    done_ns: int | None = None
    """When the tag was put, by the clock of who did. S3 tells of such an object when it was begun."""

    @property
    def has_digests(self) -> bool:
        return self.md5 is not None and self.sha256 is not None

    @property
    def is_ours(self) -> bool:
        """It has the form of one that we make, whether its tag is there yet or not."""
        return self.write_id is not None and (self.has_digests or self.in_tag)

    def matches(self, digests: ContentDigests) -> bool:
        """Whether the object says of itself that it is this content."""
        return self.size_bytes == digests.size_bytes and self.sha256 == digests.sha256


def encode(write_id: str, hint: ObjectHint, digests: ContentDigests) -> dict[str, str]:
    """The stamp of an object. Raises :class:`ValueError` for a write id that is not plain ASCII."""
    return _stamp(
        write_id,
        hint,
        {SIZE: str(digests.size_bytes), MD5: digests.md5.hex(), SHA256: digests.sha256.hex()},
    )


def encode_early(write_id: str, hint: ObjectHint) -> dict[str, str]:
    """The stamp of an object whose content is not complete yet. Raises as :func:`encode`."""
    return _stamp(write_id, hint, {DIGESTS: _IN_TAG})


def encode_tag(digests: ContentDigests, hint: ObjectHint | None, now_ns: int) -> dict[str, str]:
    """The tag that completes such a stamp; ``hint``, where it is known, as it is now."""
    facts = {
        "size": str(digests.size_bytes),
        "md5": digests.md5.hex(),
        "sha256": digests.sha256.hex(),
        "done": f"{now_ns}ns",
    }
    if hint is not None:
        facts |= {
            "mtime": f"{hint.mtime_ns}ns",
            "mode": f"0{hint.mode:o}",
            "uid": str(hint.uid),
            "gid": str(hint.gid),
        }
    return {TAG: " ".join(f"{name}={value}" for name, value in facts.items())}


def _stamp(write_id: str, hint: ObjectHint, digests: Mapping[str, str]) -> dict[str, str]:
    if not _WRITE_ID.fullmatch(write_id):
        raise ValueError(f"not a write id: {write_id!r}")
    stamp = {
        WRITE_ID: write_id,
        INODE: str(hint.inode_id),
        **digests,
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
    return Stamp(
        write_id=write_id if _WRITE_ID.fullmatch(write_id) else None,
        inode_id=_decimal(metadata.get(INODE), 1, 2**63 - 1),
        path=path,
        path_is_whole=path_is_whole,
        mode=_octal(metadata.get(PERMISSIONS)),
        uid=_id(metadata.get(OWNER)),
        gid=_id(metadata.get(GROUP)),
        mtime_ns=_nanoseconds(metadata.get(MTIME)),
        size_bytes=_decimal(metadata.get(SIZE), 0, 2**63 - 1),
        md5=_digest(metadata.get(MD5), 16),
        sha256=_digest(metadata.get(SHA256), 32),
        in_tag=metadata.get(DIGESTS) == _IN_TAG,
    )


def complete(stamp: Stamp, tags: Mapping[str, str]) -> Stamp:
    """An early stamp with what the tag says, which is trusted as little; what the tag does not say stays."""
    facts = dict(pair.partition("=")[::2] for pair in tags.get(TAG, "").split(" "))
    mode, uid, gid = _octal(facts.get("mode")), _id(facts.get("uid")), _id(facts.get("gid"))
    mtime_ns = _nanoseconds(facts.get("mtime"))
    return replace(
        stamp,
        size_bytes=_decimal(facts.get("size"), 0, 2**63 - 1),
        md5=_digest(facts.get("md5"), 16),
        sha256=_digest(facts.get("sha256"), 32),
        mode=stamp.mode if mode is None else mode,
        uid=stamp.uid if uid is None else uid,
        gid=stamp.gid if gid is None else gid,
        mtime_ns=stamp.mtime_ns if mtime_ns is None else mtime_ns,
        done_ns=_nanoseconds(facts.get("done")),
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


def _id(text: str | None) -> int | None:
    return _decimal(text, 0, 2**32 - 1)


def _nanoseconds(text: str | None) -> int | None:
    if text is None or not text.endswith("ns"):
        return None
    return _decimal(text.removesuffix("ns"), -(2**63), 2**63 - 1)


def _octal(text: str | None) -> int | None:
    return int(text, 8) if text is not None and _OCTAL.fullmatch(text) else None


def _digest(text: str | None, size_bytes: int) -> bytes | None:
    if text is None or not re.fullmatch(rf"[0-9a-f]{{{2 * size_bytes}}}", text):
        return None
    return bytes.fromhex(text)
