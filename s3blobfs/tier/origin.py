"""What a staged file still has in common with the stored content it was made from.

Every change goes through the staged file, so this is known, not guessed: S3 may copy these ranges from the
stored object instead of being sent them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from s3blobfs.tier.ranges import Ranges
from s3blobfs.types import ContentDigests

_RANGES_MAX = 128
"""Kept apart at most; of a file that is changed in more places the shortest range counts as changed."""


class Origin:
    """``size_bytes``: so much of the stored content the file began with."""

    __slots__ = ("_unchanged", "digests")

    def __init__(self, digests: ContentDigests, size_bytes: int) -> None:
        self.digests = digests
        """Of the stored content."""
        self._unchanged = Ranges()
        if size_bytes:
            self._unchanged.add(0, size_bytes)

    def changes(self, start: int, end: int = sys.maxsize) -> None:
        """These bytes are about to be changed, or cut off."""
        if start < self._unchanged.end:
            self._unchanged.remove(start, end)
            if len(self._unchanged) > _RANGES_MAX:
                self._unchanged.remove(*min(self._unchanged, key=_length))

    @property
    def unchanged(self) -> Sequence[tuple[int, int]]:
        """``(start, end)``, in order; they neither overlap nor touch."""
        return tuple(self._unchanged)


def _length(found: tuple[int, int]) -> int:
    return found[1] - found[0]
