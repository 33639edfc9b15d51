"""How the copy of an index in its bucket is kept."""

from __future__ import annotations

from dataclasses import dataclass

from s3blobfs.config import MIB
from s3blobfs.index.capture import BACKLOG_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """What users have no need to choose."""

    backlog_bytes: int = BACKLOG_BYTES
    """Of changes that cannot be sent; beyond it they are given up for a snapshot. As much again may be in the
    segment that is being sent."""
    snapshot_segments: int = 1000
    snapshot_bytes: int = 16 * MIB
    """A snapshot is due after so many segments, or when the segments since the last are as large as it was
    and at least this large: recovery then reads at most about twice the index."""
    segment_bytes: int = MIB
    """So much of a snapshot takes recovery about as long as one segment, which is a request: of a large
    index more segments are waited for, or snapshots of it would be made all the time."""
    look_s: float = 3600.0
    """So often a mount looks whether somebody else has gone on, also when it has nothing to send."""
    tidy_s: float = 3600.0
    """At most so often old segments and snapshots are removed."""
    retry_first_s: float = 1.0
    retry_longest_s: float = 30.0
