"""Which parts a large object is made of: bytes that are sent, and bytes that S3 copies from another object.

Pure. S3's rules (User Guide, "Amazon S3 multipart upload limits"): every part but the last has 5 MiB or more,
a copied one at most 5 GiB, and there are at most 10,000. So a change in the middle of what is copied takes
5 MiB around it along.

A content that was appended to is copied in at most ``COPIES_AT_ONCE`` parts, whatever its size, up to 2 GiB:
more of them make S3 no faster, fewer leave it idle (SeaweedFS copies 256 MiB in 1.3 s as one part, in 0.9 s
as four and in 0.9 s as sixteen).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from s3blobfs.config import MIB
from s3blobfs.s3.limits import PART_MIN_BYTES, PARTS_MAX, part_ranges

if TYPE_CHECKING:  # it speaks of uploads in parts itself
    from s3blobfs.s3.protocol import Reuse

COPIES_AT_ONCE = 4
_COPY_LEAST_BYTES = 16 * MIB
"""A copied part costs a request: less than this is rather sent along with its surroundings."""
_COPY_MOST_BYTES = 512 * MIB
"""A request in S3 that takes longer is not worth repeating when its answer is lost."""


@dataclass(frozen=True, slots=True)
class Part:
    offset: int
    length: int
    copied: bool = False
    """By S3, from the same place of another object."""

    @property
    def end(self) -> int:
        return self.offset + self.length


def sent_parts(size_bytes: int, part_size_bytes: int) -> list[Part]:
    """Of an object that is sent whole. Raises :class:`~s3blobfs.errors.EntityTooLarge` beyond 5 TiB."""
    return [Part(offset, length) for offset, length in part_ranges(size_bytes, part_size_bytes)]


def reusing_parts(
    size_bytes: int, part_size_bytes: int, reuse: Reuse, *, copy_least_bytes: int = _COPY_LEAST_BYTES
) -> list[Part] | None:
    """Of an object of which S3 has some ranges; ``None`` when it is as well sent whole."""
    # Few enough, whatever the ranges: at most 2,500 of this size, each with a run before it that is sent.
    scale = -(-size_bytes // (PARTS_MAX // 4))
    least_bytes = max(copy_least_bytes, PART_MIN_BYTES, scale)
    sent_bytes = max(part_size_bytes, PART_MIN_BYTES, scale)
    most_bytes = max(_COPY_MOST_BYTES, scale)
    parts: list[Part] = []
    position = 0
    for begin, stop in reuse.ranges:
        # What is sent before it has to be a whole part.
        start = begin if begin == position else max(begin, position + PART_MIN_BYTES)
        end = min(stop, size_bytes)
        if end - start < least_bytes:
            continue
        parts += _split(position, start, (start - position) // sent_bytes)
        about_bytes = max((end - start) // COPIES_AT_ONCE, least_bytes)
        count = max((end - start) // about_bytes, -(-(end - start) // most_bytes))
        parts += _split(start, end, count, copied=True)
        position = end
    if position == 0:
        return None
    return parts + _split(position, size_bytes, (size_bytes - position) // sent_bytes)


def _split(start: int, end: int, count: int, *, copied: bool = False) -> list[Part]:
    """Equal parts; one at least of what there is."""
    size_bytes, count = end - start, max(1, count)
    edges = [start + size_bytes * number // count for number in range(count + 1)]
    return [Part(low, high - low, copied) for low, high in pairwise(edges) if high > low]
