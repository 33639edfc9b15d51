"""What a bucket of the in-memory S3 holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from s3blobfs.s3.protocol import ObjectInfo, UploadInfo


@dataclass(frozen=True, slots=True)
class FakeVersion:
    """One version of one key, a delete marker included."""

    sequence: int
    """Number of the change that made it; larger is newer."""
    info: ObjectInfo
    data: bytes
    is_delete_marker: bool = False
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class FakeUpload:
    """A multipart upload that is under way."""

    info: UploadInfo
    metadata: dict[str, str] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    """By number, from 1."""


@dataclass(slots=True)
class FakeBucket:
    """A bucket's content. Tests may read it; changes go through a client."""

    versioning: bool = False
    versions: dict[str, list[FakeVersion]] = field(default_factory=dict)
    """Oldest first; never an empty list."""
    uploads: dict[str, FakeUpload] = field(default_factory=dict)
    """Unfinished multipart uploads by id."""

    def find(self, key: str, version_id: str | None = None) -> FakeVersion | None:
        """The version named, or the current one; delete markers included."""
        history = self.versions.get(key, [])
        if version_id is None:
            return history[-1] if history else None
        return next((version for version in history if version.info.version_id == version_id), None)

    def insert(self, version: FakeVersion) -> None:
        """Add the current version; it replaces the one of the same version id, as S3's ``null`` does."""
        history = self.versions.setdefault(version.info.key, [])
        history[:] = [old for old in history if old.info.version_id != version.info.version_id]
        history.append(version)

    def remove(self, key: str, version_id: str | None) -> None:
        history = [old for old in self.versions.get(key, []) if old.info.version_id != version_id]
        if history:
            self.versions[key] = history
        else:
            self.versions.pop(key, None)

    def newest_first(self, prefix: str) -> Iterator[tuple[FakeVersion, bool]]:
        """Every version below ``prefix`` in S3's listing order, and whether it is the current one."""
        for key in sorted(key for key in self.versions if key.startswith(prefix)):
            history = self.versions[key]
            yield from ((version, version is history[-1]) for version in reversed(history))
