"""What a staged file still has in common with the stored content it was made from.

Every change goes through the staged file, so this is known, not guessed: S3 may copy these ranges from the
stored object instead of being sent them.

A file that is changed again before it was uploaded is made from a content that may never be stored. So that
one's own origin is remembered as well: whichever of them S3 has in the end, what is in common is known.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from s3blobfs.tier.ranges import Ranges
from s3blobfs.types import ContentDigests

_RANGES_MAX = 128
"""Kept apart at most; of a file that is changed in more places the shortest range counts as changed."""
_DEPTH_MAX = 4
"""Origins of origins. What is stored, what is on its way and what waits are three; what was superseded by a
newer content before its upload began is taken out."""


class Origin:
    """``size_bytes``: so much of the stored content the file began with. ``before``: what that one was made
    from, if it may not be stored itself."""

    __slots__ = ("_unchanged", "before", "digests")

    def __init__(self, digests: ContentDigests, size_bytes: int, before: Origin | None = None) -> None:
        self.digests = digests
        """Of the stored content."""
        self._unchanged = Ranges()
        if size_bytes:
            self._unchanged.add(0, size_bytes)
        self.before = None if before is None else before._cut(size_bytes, _DEPTH_MAX - 1)

    def _cut(self, size_bytes: int, depth: int) -> Origin | None:
        """The same for a file that begins with so much of this one's."""
        if depth == 0:
            return None
        other = Origin(self.digests, 0)
        for start, end in self._unchanged:
            if start < size_bytes:
                other._unchanged.add(start, min(end, size_bytes))
        other.before = None if self.before is None else self.before._cut(size_bytes, depth - 1)
        return other

    def changes(self, start: int, end: int = sys.maxsize) -> None:
        """These bytes are about to be changed, or cut off."""
        if start < self._unchanged.end:
            self._unchanged.remove(start, end)
            if len(self._unchanged) > _RANGES_MAX:
                self._unchanged.remove(*min(self._unchanged, key=_length))
        if self.before is not None:
            self.before.changes(start, end)

    @property
    def unchanged(self) -> Sequence[tuple[int, int]]:
        """``(start, end)``, in order; they neither overlap nor touch."""
        return tuple(self._unchanged)

    def in_common_with(self, digests: ContentDigests) -> Sequence[tuple[int, int]]:
        """The ranges that the file has in common with a stored content; none if it was not made from it."""
        origin: Origin | None = self
        while origin is not None:
            if _identity(origin.digests) == _identity(digests):
                return origin.unchanged
            origin = origin.before
        return ()

    def without(self, digests: ContentDigests) -> Origin | None:
        """The same when a content that is named here turned out never to be stored."""
        if _identity(self.digests) == _identity(digests):
            return self.before
        if self.before is not None:
            self.before = self.before.without(digests)
        return self


def _identity(digests: ContentDigests) -> tuple[int, bytes, bytes]:
    return digests.size_bytes, digests.md5, digests.sha256


def _length(found: tuple[int, int]) -> int:
    return found[1] - found[0]
