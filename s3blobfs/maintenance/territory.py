"""Whose an object key is, by its form alone. Pure functions.

Below a store's prefix a key is a *name* that the store would make (a digest, an object id), one of the
volume's own objects (below ``.s3blobfs/``), or foreign. By form is not by right: what an object is, its stamp
tells.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from s3blobfs.blobstore.keys import is_object_id
from s3blobfs.config import VOLUME_OBJECTS_PREFIX
from s3blobfs.types import ContentDigests, DigestAlgorithm, Keying, StoreConfig

_MD5, _SHA256 = "[0-9a-f]{32}", "[0-9a-f]{64}"
_DIGEST_NAMES = {
    DigestAlgorithm.MD5: re.compile(f"{_MD5}(-{_SHA256})?"),
    DigestAlgorithm.SHA256: re.compile(f"{_SHA256}(-{_MD5})?"),
}
_MADE_OBJECT_ID = re.compile("[0-9a-f]{32}")
_PROBE = re.compile("probe-[0-9a-f]{32}")


class Ownership(enum.Enum):
    """What a key looks like."""

    BLOB = "blob"
    PROBE = "probe"
    """Of a test whether the bucket will do, which removes it."""
    VOLUME = "volume"
    """The volume's description, segments of its index, or what a later version keeps there."""
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key is."""

    ownership: Ownership
    store: StoreConfig
    """With the longest prefix that the key begins with."""
    name: str
    """Behind that prefix."""

    @property
    def surely_ours(self) -> bool:
        """Whether the name alone says that we made it. Object ids may be any word; those that we make are
        32 random hexadecimal digits."""
        if self.ownership is not Ownership.BLOB:
            return False
        return self.store.keying is Keying.DIGEST or _MADE_OBJECT_ID.fullmatch(self.name) is not None


class Territory:
    """The prefixes of a volume in one bucket."""

    def __init__(self, bucket: str, stores: Iterable[StoreConfig]) -> None:
        self.bucket = bucket
        inside = (store for store in stores if store.bucket == bucket)
        self._stores = sorted(inside, key=lambda store: len(store.prefix), reverse=True)

    @property
    def prefixes(self) -> list[str]:
        """What has to be listed to see all of it once: prefixes, none of which is within another."""
        found: list[str] = []
        for store in reversed(self._stores):
            if not any(store.prefix.startswith(prefix) for prefix in found):
                found.append(store.prefix)
        return found

    def place(self, key: str) -> Place:
        """Of a key below one of :attr:`prefixes`."""
        store = next(store for store in self._stores if key.startswith(store.prefix))
        name = key.removeprefix(store.prefix)
        return Place(_ownership(store, name), store, name)


def _ownership(store: StoreConfig, name: str) -> Ownership:
    if name.startswith(VOLUME_OBJECTS_PREFIX):
        probe = _PROBE.fullmatch(name.removeprefix(VOLUME_OBJECTS_PREFIX))
        return Ownership.PROBE if probe else Ownership.VOLUME
    if store.keying is Keying.DIGEST:
        ours = _DIGEST_NAMES[store.digest_algorithm].fullmatch(name) is not None
    else:
        ours = is_object_id(name)
    return Ownership.BLOB if ours else Ownership.FOREIGN


def names_content(place: Place, md5: bytes, sha256: bytes) -> bool:
    """Whether a content has this name in a ``digest`` store."""
    digests = ContentDigests(0, md5, sha256, b"")
    first, _, second = place.name.partition("-")
    algorithm = place.store.digest_algorithm
    other = DigestAlgorithm.SHA256 if algorithm is DigestAlgorithm.MD5 else DigestAlgorithm.MD5
    return first == digests.key_digest(algorithm) and second in ("", digests.key_digest(other))
