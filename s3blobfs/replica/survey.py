"""Comparing a recovered index with what its stores list: what is gone, and what came after.

One listing of each store, whatever is asked: a thousand objects a request. Of what the index names one bit is
kept for each blob; of what it does not name, only what was stored since a time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from s3blobfs.blobstore.early import EARLY_AGE_MAX_S
from s3blobfs.blobstore.stamps import read_stamp
from s3blobfs.errors import ObjectNotFound
from s3blobfs.index import blobs, explain
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.database import Database
from s3blobfs.replica.stored import StoredObject, as_stamped, for_each, list_store
from s3blobfs.s3.protocol import ObjectClient, ObjectId, ObjectVersionInfo
from s3blobfs.types import Keying, StoreConfig

BATCH = 500
"""Keys looked up in the index at a time, and rows read from it."""
REMAINING_MAX = 10
"""Other versions of an object that are named where one is gone."""
_SECOND_NS = 10**9
_EARLY_NS = round(EARLY_AGE_MAX_S * _SECOND_NS)
_CLOCKS_DIFFER_NS = 3600 * _SECOND_NS
"""By so much S3's clock and that of who stored an object, at most."""
_ALL = 2**62

Counter = Callable[[int, int], None]
"""Told of objects compared, and how many the index names."""


class Age(enum.Enum):
    """Of what remains, compared with what is gone."""

    OLDER = "older"
    NEWER = "newer"
    SAME = "same"
    """The same content, which was deleted in a bucket that keeps versions."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """Another version of an object that is gone."""

    version_id: str | None
    size_bytes: int
    modified_ns: int
    """By S3's clock."""
    age: Age


@dataclass(slots=True)
class Survey:
    """What came of it."""

    gone: list[tuple[BlobRow, list[Remaining]]] = field(default_factory=list)
    """Contents of files, in the order of their ids; rows without checksums."""
    gone_earlier: list[int] = field(default_factory=list)
    """Ids of earlier versions, which no file has."""
    unnamed: list[StoredObject] = field(default_factory=list)
    """Stored since the time that was given, and bearing our stamp; the oldest first. In a ``versioned``
    store of each key the newest, and only when it is newer than what the index names."""


class Surveyor:
    """Makes the survey of one index."""

    def __init__(
        self,
        db: Database,
        configs: Sequence[StoreConfig],
        client_of: Callable[[str], ObjectClient],
        *,
        since_ns: int | None,
        progress: Counter = lambda done, total: None,
    ) -> None:
        """``since_ns``: by S3's clock; ``None``: what is not named is nobody's business."""
        self._db = db
        self._configs = configs
        self._client_of = client_of
        # S3 gives the times of objects in whole seconds.
        self._since_ns = None if since_ns is None else since_ns - _SECOND_NS
        self._progress = progress
        self._seen = bytearray()
        self._remaining: dict[int, list[Remaining]] = {}
        self._done = self._total = 0

    async def run(self) -> Survey:
        """Raises what S3 and the index do."""
        survey = Survey()
        self._total = await self._db.read_aside(lambda tx: blobs.count_kept(tx, 0, _ALL))
        for config in self._configs:
            client = self._client_of(config.bucket)
            batch: list[list[ObjectVersionInfo]] = []
            async for versions in list_store(client, config, self._configs):
                batch.append(versions)
                if len(batch) == BATCH:
                    await self._compare(client, config, batch, survey)
                    batch = []
            await self._compare(client, config, batch, survey)
        await self._collect_gone(survey)
        survey.unnamed.sort(key=lambda found: (found.modified_ns, found.mtime_ns))
        return survey

    # -- what is listed --------------------------------------------------------------------------------

    async def _compare(
        self,
        client: ObjectClient,
        config: StoreConfig,
        batch: list[list[ObjectVersionInfo]],
        survey: Survey,
    ) -> None:
        keys = [(config.id, versions[0].key) for versions in batch]
        rows = await self._db.read(lambda tx: explain.rows_of(tx, keys))
        late: list[ObjectId] = []
        for versions in batch:
            named = rows.get((config.id, versions[0].key), [])
            self._note_named(config, named, versions)
            newest = self._late(config, named, versions)
            if newest is not None:
                late.append(ObjectId(newest.key, newest.version_id))
        found = await for_each(late, lambda target: _look(client, config, target))
        survey.unnamed += [each for each in found if each is not None and self._came_late(each)]
        self._done += sum(map(len, batch))
        self._progress(self._done, self._total)

    def _note_named(
        self, config: StoreConfig, named: Iterable[BlobRow], versions: Sequence[ObjectVersionInfo]
    ) -> None:
        for row in named:
            if any(_is(row, version, config) for version in versions):
                self._see(row.id)
            elif config.keying is Keying.VERSIONED:
                self._remaining[row.id] = _remaining(row, named, versions)

    def _late(
        self, config: StoreConfig, named: Sequence[BlobRow], versions: Sequence[ObjectVersionInfo]
    ) -> ObjectVersionInfo | None:
        """The newest version of a key, if no row names it and it may have come after the time."""
        newest = versions[0]
        if self._since_ns is None or newest.is_delete_marker:
            return None
        # Before that it may have been begun, and only ended after it.
        early_ns = _EARLY_NS + _CLOCKS_DIFFER_NS if config.keying is Keying.VERSIONED else 0
        if newest.last_modified_ns < self._since_ns - early_ns:
            return None
        if config.keying is Keying.DIGEST:
            return newest if not named else None
        known = {row.location.version_id for row in named}
        return newest if newest.version_id is not None and newest.version_id not in known else None

    def _came_late(self, found: StoredObject) -> bool:
        assert self._since_ns is not None
        if found.modified_ns >= self._since_ns:
            return True
        done_ns = found.stamp.done_ns
        return done_ns is not None and done_ns >= self._since_ns - _CLOCKS_DIFFER_NS

    def _see(self, blob_id: int) -> None:
        at = blob_id // 8
        if at >= len(self._seen):
            self._seen.extend(bytes(max(at + 1 - len(self._seen), len(self._seen), 1024)))
        self._seen[at] |= 1 << blob_id % 8

    def _is_seen(self, blob_id: int) -> bool:
        at = blob_id // 8
        return at < len(self._seen) and bool(self._seen[at] & 1 << blob_id % 8)

    # -- what is not -----------------------------------------------------------------------------------

    async def _collect_gone(self, survey: Survey) -> None:
        after = 0
        while True:
            page = await self._db.read(lambda tx, after=after: blobs.kept(tx, after, _ALL, BATCH))  # type: ignore[misc]
            if not page:
                break
            after = page[-1].id
            for row in page:
                if self._is_seen(row.id):
                    continue
                if row.state is BlobState.SUPERSEDED:
                    survey.gone_earlier.append(row.id)
                else:
                    survey.gone.append((row, self._remaining.get(row.id, [])))
        await self._ask_versioned_buckets(survey)

    async def _ask_versioned_buckets(self, survey: Survey) -> None:
        """A ``digest`` store may lie in a bucket that keeps versions; then what was deleted is behind its
        delete marker."""
        gone_from = {row.store_id for row, _ in survey.gone}
        clients = {
            config.id: client
            for config in self._configs
            if config.id in gone_from and config.keying is Keying.DIGEST
            if await (client := self._client_of(config.bucket)).versioning_enabled()
        }

        async def ask(case: tuple[BlobRow, list[Remaining]]) -> tuple[BlobRow, list[Remaining]]:
            row, _ = case
            if row.store_id not in clients:
                return case
            key = row.location.object_key
            return row, [
                Remaining(version.version_id, version.size_bytes, version.last_modified_ns, Age.SAME)
                async for version in clients[row.store_id].list_versions(key)
                if version.key == key
                and not version.is_delete_marker
                and version.size_bytes == row.digests.size_bytes
            ]

        survey.gone = await for_each(survey.gone, ask)


def _is(row: BlobRow, version: ObjectVersionInfo, config: StoreConfig) -> bool:
    if version.is_delete_marker or version.size_bytes != row.digests.size_bytes:
        return False
    return config.keying is Keying.DIGEST or version.version_id == row.location.version_id


def _remaining(
    row: BlobRow, named: Iterable[BlobRow], versions: Sequence[ObjectVersionInfo]
) -> list[Remaining]:
    """Earlier ones are known to the index by a smaller id; what it does not name came later."""
    ids = {each.location.version_id: each.id for each in named}
    return [
        Remaining(
            version.version_id,
            version.size_bytes,
            version.last_modified_ns,
            Age.OLDER if ids.get(version.version_id, row.id) < row.id else Age.NEWER,
        )
        for version in versions
        if not version.is_delete_marker and version.version_id != row.location.version_id
    ][:REMAINING_MAX]


async def _look(client: ObjectClient, config: StoreConfig, target: ObjectId) -> StoredObject | None:
    try:
        info = await client.head(target.key, version_id=target.version_id)
        return as_stamped(config, info, await read_stamp(client, info))
    except ObjectNotFound:
        return None
