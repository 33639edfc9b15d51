"""Looking at the segments in the bucket: which is the newest, and does this index go on from it?

Existing segments have numbers without a gap from some number on, so the newest is found by doubling steps and
halving: a few requests, however many there are.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

from s3blobfs.errors import DamagedContent, ObjectNotFound, UsageError, VolumeMismatch
from s3blobfs.index import replica
from s3blobfs.index.database import Database
from s3blobfs.index.replica import ReplicaRow
from s3blobfs.replica import names
from s3blobfs.replica.segment import Segment, decode, time_text
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tip:
    """A segment that the next one follows; number 0 and no digest before the first."""

    number: int
    digest: str


BEGINNING = Tip(0, "")


class Need(enum.Enum):
    """What has to be sent before changes can be."""

    NOTHING = enum.auto()
    MARK = enum.auto()
    BREAK = enum.auto()


@dataclass(frozen=True, slots=True)
class Joined:
    """How a mount goes on with what is in the bucket."""

    tip: Tip
    need: Need
    in_doubt: Tip | None = None
    """A segment that the process before sent, it seems in vain; it may yet arrive."""
    snapshot: ObjectInfo | None = None
    """The newest."""


class History:
    """The segments of one volume, for reading."""

    def __init__(self, client: ObjectClient, prefix: str, volume_id: str) -> None:
        self._client = client
        self._prefix = prefix
        self._volume_id = volume_id

    async def find(self, number: int) -> tuple[Segment, str] | None:
        """A segment and its digest. Raises :class:`DamagedContent`, :class:`VolumeMismatch` for another
        volume's, and what S3 raises."""
        if number < 1:
            return None
        key = names.segment_key(self._prefix, number)
        try:
            answer = await self._client.get(key)
        except ObjectNotFound:
            return None
        segment, digest = decode(answer.data, key)
        if segment.volume_id != self._volume_id:
            raise VolumeMismatch(f"{key} is of volume {segment.volume_id}, not of {self._volume_id}")
        return segment, digest

    async def exists(self, number: int) -> bool:
        try:
            await self._client.head(names.segment_key(self._prefix, number))
        except ObjectNotFound:
            return False
        return True

    async def newest_after(self, number: int) -> int:
        """The newest segment's number, or ``number`` when none follows it."""
        present, step = number, 1
        while await self.exists(present + step):
            present, step = present + step, step * 2
        missing = present + step
        while missing - present > 1:
            middle = (present + missing) // 2
            if await self.exists(middle):
                present = middle
            else:
                missing = middle
        return present

    async def snapshots(self) -> list[tuple[int, ObjectInfo]]:
        """With their numbers, the oldest first."""
        found = [
            (number, info)
            async for info in self._client.list_objects(names.snapshots_prefix(self._prefix))
            if (number := names.snapshot_number(self._prefix, info.key)) is not None
        ]
        return sorted(found, key=lambda each: (each[0], each[1].last_modified_ns))

    async def is_ahead(self, number: int) -> bool:
        """Whether anybody has gone on from the segment ``number``. Its direct successors may have been
        removed in the meantime, but not without a later snapshot."""
        if await self.exists(number + 1):
            return True
        return any(snapshot > number + 1 for snapshot, _ in await self.snapshots())


async def join(db: Database, history: History, *, take_over: bool) -> Joined:
    """Compare the index with the bucket, at the start of a mount that will write.

    Raises :class:`UsageError` where the bucket is ahead of the index, or knows another history of it, and
    what :meth:`History.find` raises."""
    row = await db.read(replica.find)
    snapshots = await history.snapshots()
    newest_snapshot = snapshots[-1][1] if snapshots else None
    try:
        tip, intact = await _own_tip(history, row)
    except DamagedContent as error:
        if not take_over:
            raise DamagedContent(
                f"{error}; 's3blobfs recover' says what is left in the bucket; --take-over goes on from this"
                " index with a new snapshot"
            ) from error
        tip, intact = None, False
    base = tip.number if tip is not None else await _some_number(history, [number for number, _ in snapshots])
    newest = await history.newest_after(base)
    if tip is None or newest > tip.number or any(number > newest + 1 for number, _ in snapshots):
        if newest == 0 and row is None:
            return Joined(BEGINNING, Need.BREAK)
        if not take_over:
            raise await _ahead(history, row, newest)
        return Joined(await _any_tip(history, newest), Need.BREAK, snapshot=newest_snapshot)
    assert row is not None
    in_doubt = Tip(row.number, row.digest) if tip.number < row.number else None
    complete = (
        intact
        and in_doubt is None
        and row.sequence == db.sequence
        and row.schema_version == db.schema_version
    )
    if take_over or not complete or newest_snapshot is None:
        need = Need.BREAK
    else:
        need = Need.NOTHING if row.claimed else Need.MARK
    return Joined(tip, need, in_doubt, newest_snapshot)


async def _own_tip(history: History, row: ReplicaRow | None) -> tuple[Tip | None, bool]:
    """The newest segment that is known to be this index's, and whether it is there; ``None`` when others
    stand in its place."""
    if row is None:
        return None, False
    last = await history.find(row.number)
    if last is not None:
        return (Tip(row.number, row.digest) if last[1] == row.digest else None), True
    before = await history.find(row.number - 1)
    if before is not None:
        return (Tip(row.number - 1, row.previous) if before[1] == row.previous else None), True
    if row.number == 1:
        return BEGINNING, True
    logger.warning(
        "segments of the index are missing in the bucket, up to number %d: what they held can be recovered to"
        " no time before now; a new snapshot is made",
        row.number,
    )
    return Tip(row.number, row.digest), False


async def _some_number(history: History, snapshots: list[int]) -> int:
    """A segment that exists, or 0."""
    for number in reversed(snapshots):
        if await history.exists(number):
            return number
    return 0


async def newest_tip(client: ObjectClient, prefix: str, volume_id: str) -> Tip:
    """Of whatever is in the bucket. Raises what S3 does, :class:`VolumeMismatch`."""
    numbers = [
        number
        async for info in client.list_objects(names.segments_prefix(prefix))
        if (number := names.segment_number(prefix, info.key)) is not None
    ]
    return await _any_tip(History(client, prefix, volume_id), max(numbers, default=0))


async def _any_tip(history: History, number: int) -> Tip:
    """To go on from, whatever it is."""
    try:
        found = await history.find(number)
    except DamagedContent as error:
        logger.warning("the newest segment of the index in the bucket is left behind: %s", error)
        found = None
    return Tip(number, found[1] if found else "")


async def _ahead(history: History, row: ReplicaRow | None, newest: int) -> UsageError:
    found = await history.find(newest)
    who = ""
    if found is not None:
        who = f", by {found[0].writer} at {time_text(found[0].made_ns)}"
    known = f"this index goes up to segment {row.number}" if row else "this index has no part in it"
    return UsageError(
        f"the bucket has a later state of this volume (segment {newest}{who}; {known}): bring it here with"
        " 's3blobfs recover', or, if this index is the right one, give --take-over, which leaves behind what"
        " was changed there"
    )
