"""Judging what a listing shows: which versions of a key nobody needs. See :mod:`s3blobfs.maintenance.gc`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from s3blobfs.blobstore import metadata
from s3blobfs.errors import ObjectNotFound
from s3blobfs.index import explain
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.explain import Journal
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.gc_report import Candidate, GcReport, Kept, Kind
from s3blobfs.maintenance.pace import for_each
from s3blobfs.maintenance.target import Target
from s3blobfs.maintenance.territory import Ownership, Place, Territory, names_content
from s3blobfs.s3.limits import is_plain_key
from s3blobfs.s3.protocol import ObjectClient, ObjectVersionInfo
from s3blobfs.types import Keying

CONCURRENCY = 16
"""Objects asked for their stamp at a time."""

Group = list[ObjectVersionInfo]
"""Everything listed of one key, the latest first."""


async def group_by_key(listing: AsyncIterator[ObjectVersionInfo]) -> AsyncIterator[Group]:
    """A listing of versions, key by key."""
    group: Group = []
    async for entry in listing:
        if group and group[0].key != entry.key:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _Suspect:
    """An entry that no row names."""

    place: Place
    entry: ObjectVersionInfo
    kind: Kind


class Judge:
    """Of one bucket. What it keeps it counts in the report; what it does not keep it answers."""

    def __init__(
        self,
        target: Target,
        territory: Territory,
        client: ObjectClient,
        before_ns: int,
        report: GcReport,
    ) -> None:
        """Nothing that was made after ``before_ns`` is a candidate."""
        self._target = target
        self._territory = territory
        self._client = client
        self._before_ns = before_ns
        self._report = report
        self._versioning = False

    async def prepare(self) -> None:
        self._versioning = await self._client.versioning_enabled()

    async def judge(self, groups: Sequence[Group]) -> list[Candidate]:
        """The groups were listed before this is called. Versions come before delete markers."""
        placed = [(self._territory.place(group[0].key), group) for group in groups]
        ours = [(place, group) for place, group in placed if place.ownership is Ownership.BLOB]
        keys = [(place.store.id, group[0].key) for place, group in ours]

        def read(tx: Transaction) -> tuple[dict[explain.Key, list[BlobRow]], Journal]:
            return explain.rows_of(tx, keys), explain.journal(tx)

        rows, journal = await self._target.db.read(read)
        suspects: list[list[_Suspect]] = []
        for place, group in placed:
            if place.ownership is Ownership.BLOB:
                suspects.append(self._suspects(place, group, rows.get((place.store.id, group[0].key), [])))
            elif place.ownership is Ownership.PROBE:
                suspects.append([_Suspect(place, entry, Kind.PROBE) for entry in group])
            else:
                why = Kept.VOLUME if place.ownership is Ownership.VOLUME else Kept.FOREIGN
                self._keep(why, group)
        return await self._candidates(suspects, journal)

    # -- by the index ----------------------------------------------------------------------------------

    def _suspects(self, place: Place, group: Group, rows: list[BlobRow]) -> list[_Suspect]:
        if place.store.keying is Keying.DIGEST:
            return self._of_digest(place, group, rows)
        return self._of_versioned(place, group, rows)

    def _of_digest(self, place: Place, group: Group, rows: list[BlobRow]) -> list[_Suspect]:
        """A row names the current version. While that is not what the row says, an earlier one may heal
        it."""
        current = group[0]
        if not rows:
            return [
                _Suspect(place, entry, _kind(entry, Kind.UNNAMED_OBJECT if entry is current else None))
                for entry in group
            ]
        (row,) = rows
        intact = (
            current.is_latest
            and not current.is_delete_marker
            and (current.etag, current.size_bytes) == (row.etag, row.digests.size_bytes)
        )
        self._keep(Kept.NAMED, [current])
        if not intact or row.state is BlobState.DELETING:
            self._keep(Kept.NEEDED, group[1:])
            return []
        return [_Suspect(place, entry, _kind(entry)) for entry in group[1:]]

    def _of_versioned(self, place: Place, group: Group, rows: list[BlobRow]) -> list[_Suspect]:
        named = {row.location.version_id for row in rows}
        listed = {entry.version_id for entry in group if not entry.is_delete_marker}
        unnamed = [entry for entry in group if entry.is_delete_marker or entry.version_id not in named]
        self._keep(Kept.NAMED, [entry for entry in group if entry not in unnamed])
        kept = {row.location.version_id for row in rows if row.state is not BlobState.DELETING}
        if kept - listed:
            self._keep(Kept.NEEDED, unnamed)
            return []
        return [_Suspect(place, entry, _kind(entry)) for entry in unnamed]

    # -- by age and stamp ------------------------------------------------------------------------------

    async def _candidates(self, groups: list[list[_Suspect]], journal: Journal) -> list[Candidate]:
        objects: list[_Suspect] = []
        markers: list[tuple[_Suspect, list[_Suspect]]] = []
        for group in groups:
            old = [suspect for suspect in group if self._is_due(suspect)]
            versions = [suspect for suspect in group if not suspect.entry.is_delete_marker]
            objects += [suspect for suspect in old if not suspect.entry.is_delete_marker]
            markers += [(suspect, versions) for suspect in old if suspect.entry.is_delete_marker]
        found: dict[tuple[str, str | None], Candidate] = {}

        async def ask(suspect: _Suspect) -> None:
            candidate = await self._stamped(suspect, journal)
            if candidate is not None:
                found[suspect.entry.key, suspect.entry.version_id] = candidate

        await for_each(objects, ask, CONCURRENCY)
        answer = list(found.values())
        for marker, versions in markers:
            # Behind the last marker of a key its versions would be current again.
            entry = marker.entry
            if all((each.entry.key, each.entry.version_id) in found for each in versions) and (
                versions or marker.place.surely_ours or marker.kind is Kind.PROBE
            ):
                answer.append(Candidate(marker.kind, self._client.bucket, entry.key, entry.version_id, 0))
            else:
                self._keep(Kept.NEEDED if versions else Kept.FOREIGN, [entry])
        return answer

    def _is_due(self, suspect: _Suspect) -> bool:
        entry = suspect.entry
        if not is_plain_key(entry.key):
            self._keep(Kept.FOREIGN, [entry])
            return False
        if entry.last_modified_ns > self._before_ns:
            self._keep(Kept.RECENT, [entry])
            return False
        if self._versioning and entry.version_id is None:
            # From before the bucket kept versions: a plain DELETE would not delete it but hide it.
            self._keep(Kept.NEEDED, [entry])
            return False
        return True

    async def _stamped(self, suspect: _Suspect, journal: Journal) -> Candidate | None:
        """``None``, and counted, where the object is not ours, or is on its way."""
        place, entry = suspect.place, suspect.entry
        bucket, key, version_id = self._client.bucket, entry.key, entry.version_id
        if suspect.kind is Kind.PROBE:
            return Candidate(suspect.kind, bucket, key, version_id, entry.size_bytes)
        try:
            info = await self._client.head(key, version_id=version_id)
        except ObjectNotFound:
            return None  # gone meanwhile
        stamp = metadata.decode(info.metadata)
        ours = stamp.is_ours
        if ours and place.store.keying is Keying.DIGEST:
            ours = (
                stamp.md5 is not None
                and stamp.sha256 is not None
                and names_content(place, stamp.md5, stamp.sha256)
            )
        if not ours:
            self._keep(Kept.FOREIGN, [entry])
            return None
        if stamp.write_id in journal.write_ids:
            self._keep(Kept.IN_FLIGHT, [entry])
            return None
        return Candidate(
            suspect.kind,
            bucket,
            key,
            version_id,
            entry.size_bytes,
            place.store.id,
            stamp.sha256,
            stamp.write_id,
        )

    def _keep(self, why: Kept, entries: Sequence[ObjectVersionInfo]) -> None:
        for entry in entries:
            self._report.keep(why, entry.size_bytes)


def _kind(entry: ObjectVersionInfo, kind: Kind | None = None) -> Kind:
    if entry.is_delete_marker:
        return Kind.DELETE_MARKER
    return kind or Kind.UNNAMED_VERSION
