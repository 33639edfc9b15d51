"""Where hashing of contents ended, so that it goes on from there when a file is appended to.

The digests of a content do not tell how to go on; the state of the hash functions does. It lives in memory:
after a mount the first change of a file hashes all of it.
"""

from __future__ import annotations

from collections import OrderedDict

from s3blobfs.config import MIB
from s3blobfs.tier.digest import ContentHasher
from s3blobfs.types import ContentDigests

_KEPT_MAX = 1024
"""About 1 KiB each, and their checksums."""
_CHECKSUM_BYTES_MAX = 8 * MIB
"""Of all that are kept: contents of half a tebibyte."""


class HashCheckpoints:
    """The most recently used ones of a mount."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, ContentHasher] = OrderedDict()
        self._checksum_bytes = 0

    def keep(self, digests: ContentDigests, hasher: ContentHasher) -> None:
        """``hasher`` has taken all of the content, and takes no more."""
        self._forget(digests.sha256)
        self._kept[digests.sha256] = hasher
        self._checksum_bytes += hasher.checksum_bytes
        while len(self._kept) > _KEPT_MAX or self._checksum_bytes > _CHECKSUM_BYTES_MAX:
            self._forget(next(iter(self._kept)))

    def resume(self, digests: ContentDigests) -> ContentHasher | None:
        """A hasher that has taken this content."""
        found = self._kept.get(digests.sha256)
        if found is None:
            return None
        self._kept.move_to_end(digests.sha256)
        return found.copy()

    def _forget(self, sha256: bytes) -> None:
        hasher = self._kept.pop(sha256, None)
        if hasher is not None:
            self._checksum_bytes -= hasher.checksum_bytes
