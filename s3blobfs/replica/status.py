"""What a mount says of the copy of its index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """For ``status``."""

    segment: int
    """The newest in the bucket."""
    sequence: int
    """Of the state of the index that the bucket has."""
    behind: int
    """Write transactions that it does not have."""
    lag_s: float
    """How long the oldest of them has been waiting."""
    backlog_bytes: int
    snapshot_pending: bool
    """Changes are not noted any more, and the whole index will be sent instead."""
    last_snapshot_ns: int | None
    fencing: str
    """``conditional``: S3 refuses a second writer; ``weak``: it cannot."""
    fenced: str | None
    """Why this mount does not write any more."""
    last_error: str | None
    damage: str | None
    """Why the bucket could not give the newest state back, as far as anybody looked; a whole snapshot follows
    by itself."""
