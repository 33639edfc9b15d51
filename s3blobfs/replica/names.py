"""Where the copy of an index lies in its bucket.

    PREFIX/.s3blobfs/index/segments/0000000000000042
    PREFIX/.s3blobfs/index/snapshots/0000000000000042-6f1c…

A segment's number is its whole name: of two writers who send the same number one is refused. A snapshot is
the state behind the segment of its number; behind the dash it has a random part, so that nobody's replaces
somebody else's.
"""

from __future__ import annotations

import re
import secrets

from s3blobfs.config import VOLUME_OBJECTS_PREFIX

DIGITS = 16
_SNAPSHOT = re.compile(rf"([0-9]{{{DIGITS}}})-[0-9a-f]{{16}}")
_SEGMENT = re.compile(rf"[0-9]{{{DIGITS}}}")


def index_prefix(prefix: str) -> str:
    """``prefix`` is the volume's: empty, or ending in ``/``."""
    return f"{prefix}{VOLUME_OBJECTS_PREFIX}index/"


def segments_prefix(prefix: str) -> str:
    return f"{index_prefix(prefix)}segments/"


def snapshots_prefix(prefix: str) -> str:
    return f"{index_prefix(prefix)}snapshots/"


def segment_key(prefix: str, number: int) -> str:
    return f"{segments_prefix(prefix)}{number:0{DIGITS}}"


def new_snapshot_key(prefix: str, number: int) -> str:
    return f"{snapshots_prefix(prefix)}{number:0{DIGITS}}-{secrets.token_hex(8)}"


def segment_number(prefix: str, key: str) -> int | None:
    """``None`` for what is no segment's key."""
    name = key.removeprefix(segments_prefix(prefix))
    return int(name) if _SEGMENT.fullmatch(name) else None


def snapshot_number(prefix: str, key: str) -> int | None:
    """``None`` for what is no snapshot's key."""
    match = _SNAPSHOT.fullmatch(key.removeprefix(snapshots_prefix(prefix)))
    return int(match[1]) if match else None
