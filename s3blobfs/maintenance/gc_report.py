"""What gc finds: kinds, counts and bytes."""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass, field

from s3blobfs.maintenance.target import Json

EXAMPLES_MAX = 10
"""Named of each kind; all are counted."""


class Kind(enum.Enum):
    """What can be deleted."""

    GARBAGE = "garbage"
    """Blobs that no file has any more, and whose grace is over: the reaper's."""
    SUPERSEDED = "superseded-version"
    """Earlier versions of files that the retention asked for lets go."""
    UNNAMED_OBJECT = "unnamed-object"
    """An object of ours that no row of the index names."""
    UNNAMED_VERSION = "unnamed-version"
    """A version of such, or one behind the current version in a ``digest`` store."""
    DELETE_MARKER = "delete-marker"
    STALE_UPLOAD = "stale-upload"
    """A multipart upload that was begun more than a day ago; its bytes are not known."""
    PROBE = "probe"
    """Left by a test whether the bucket will do."""


class Kept(enum.Enum):
    """Why something stays."""

    NAMED = "named"
    """The index names it."""
    RECENT = "recent"
    """Younger than the grace."""
    IN_FLIGHT = "in-flight"
    """The journal says that it is on its way, or somebody is storing the same content."""
    NEEDED = "needed"
    """It may heal a damaged object, or something not deleted depends on it."""
    VOLUME = "volume"
    """The volume's own: its description, and its index in the bucket."""
    FOREIGN = "foreign"
    """Nothing that this program made, as far as it can tell."""


@dataclass(slots=True)
class Tally:
    count: int = 0
    bytes: int = 0

    def add(self, count: int, size_bytes: int) -> None:
        self.count += count
        self.bytes += size_bytes

    def to_json(self) -> Json:
        return {"count": self.count, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something in a bucket that nobody needs."""

    kind: Kind
    bucket: str
    key: str
    version_id: str | None
    """Of a stale upload its id."""
    size_bytes: int
    store_id: int | None = None
    sha256: bytes | None = None
    write_id: str | None = None
    """Of an object with a stamp: its store, its content, to be kept out of claims, and its journal row."""

    @property
    def subject(self) -> str:
        version = f" {self.version_id}" if self.version_id is not None else ""
        return f"s3://{self.bucket}/{self.key}{version}"


@dataclass(slots=True)
class GcReport:
    deleting: bool
    """Otherwise nothing was changed."""
    found: defaultdict[Kind, Tally] = field(default_factory=lambda: defaultdict(Tally))
    deleted: defaultdict[Kind, Tally] = field(default_factory=lambda: defaultdict(Tally))
    kept: defaultdict[Kept, Tally] = field(default_factory=lambda: defaultdict(Tally))
    failed: int = 0
    """Could not be deleted; the next run tries again."""
    examples: defaultdict[Kind, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: Kind, count: int, size_bytes: int) -> None:
        if count:
            self.found[kind].add(count, size_bytes)

    def add_candidate(self, candidate: Candidate) -> None:
        self.add(candidate.kind, 1, candidate.size_bytes)
        if len(self.examples[candidate.kind]) < EXAMPLES_MAX:
            self.examples[candidate.kind].append(candidate.subject)

    def delete(self, kind: Kind, count: int, size_bytes: int) -> None:
        if count:
            self.deleted[kind].add(count, size_bytes)

    def keep(self, why: Kept, size_bytes: int) -> None:
        self.kept[why].add(1, size_bytes)

    def totals(self) -> Json:
        """For progress."""
        return {
            "found": sum(tally.count for tally in self.found.values()),
            "found_bytes": sum(tally.bytes for tally in self.found.values()),
            "deleted": sum(tally.count for tally in self.deleted.values()),
        }

    def to_json(self) -> Json:
        """Every kind is there, found or not."""
        return {
            "delete": self.deleting,
            "found": {kind.value: self.found[kind].to_json() for kind in Kind},
            "deleted": {kind.value: self.deleted[kind].to_json() for kind in Kind},
            "kept": {why.value: self.kept[why].to_json() for why in Kept},
            "failed": self.failed,
            "examples": {kind.value: self.examples[kind] for kind in Kind if self.examples[kind]},
        }
