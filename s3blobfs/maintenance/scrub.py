"""scrub: every blob of the index compared with its object in S3, and healed if that is asked for.

Blobs are taken in the order of their ids, a page at a time; the place reached is kept in the index, so a
scrub that was interrupted goes on there. Blobs stored after it began are not its business. What is found is
logged in the index and stays there as open damage until the object is well again, whoever healed it.

A mounted volume changes meanwhile: damage counts only if the row is still the one that was compared.
"""

from __future__ import annotations

import enum
import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass, field

from s3blobfs.blobstore.keys import subject_of
from s3blobfs.errors import BlobIsDeleting
from s3blobfs.index import blobs, scrubs
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.scrubs import DamageRow, ScrubRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.healing import Healer
from s3blobfs.maintenance.inspection import Damage, Inspector
from s3blobfs.maintenance.pace import Pace, for_each
from s3blobfs.maintenance.target import Json, Lister, Progress, Target, silent
from s3blobfs.replica.verification import Depth as CopyDepth

logger = logging.getLogger(__name__)

PAGE_BLOBS = 256
"""Compared between two notes of the place reached: as many are compared again after an interruption."""
CONCURRENCY = 8
LISTED_AT_ONCE = 100
"""Damaged objects read from the log."""
PATHS_MAX = 10
"""Paths named for each."""


class Depth(enum.Enum):
    """How exactly objects are looked at."""

    HEAD = "head"
    READ = "read"


@dataclass(frozen=True, slots=True)
class ScrubOptions:
    read: bool = False
    heal: bool = False
    restart: bool = False
    """Begin anew, where an interrupted one would be gone on with."""
    requests_per_s: float | None = None
    bytes_per_s: float | None = None
    concurrency: int = CONCURRENCY

    @property
    def depth(self) -> Depth:
        return Depth.READ if self.read else Depth.HEAD


@dataclass(slots=True)
class IndexCopyReport:
    """Of the copy of the index in the bucket."""

    segments: int = 0
    snapshots: int = 0
    damage: list[str] = field(default_factory=list)
    """Why the newest state could not be recovered from it."""
    gaps: list[str] = field(default_factory=list)
    """What keeps some earlier time from being recovered; nothing mends it."""
    renewed: bool = False
    """The whole index was sent anew, and the damage does not matter any more."""


@dataclass(slots=True)
class ScrubReport:
    depth: Depth
    resumed: bool = False
    """It went on where an earlier one was interrupted; the counts include that one's."""
    checked: int = 0
    bytes_read: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """Damaged objects by kind, of this run."""
    healed: Counter[str] = field(default_factory=Counter)
    """By what they were healed from, of this run."""
    remaining: int = 0
    """Damaged objects that are known now."""
    damages: list[Json] = field(default_factory=list)
    """Them, unless somebody else lists them."""
    index_copy: IndexCopyReport = field(default_factory=IndexCopyReport)

    def to_json(self) -> Json:
        return {
            "depth": self.depth.value,
            "resumed": self.resumed,
            "checked": self.checked,
            "bytes_read": self.bytes_read,
            "found": dict(sorted(self.found.items())),
            "healed": dict(sorted(self.healed.items())),
            "remaining": self.remaining,
            "damages": self.damages,
            "index_copy": asdict(self.index_copy),
        }


async def scrub(
    target: Target,
    options: ScrubOptions | None = None,
    *,
    progress: Progress = silent,
    lister: Lister | None = None,
) -> ScrubReport:
    """Compare every blob, or go on with that, and look at the copy of the index. When it is cancelled or
    fails, the next one goes on. ``lister`` takes each damage, which the report does not hold then.

    Raises what S3 (an outage is no damage), the tier and the index do;
    :class:`~s3blobfs.errors.UsageError` on a read-only mount."""
    target.refuse_if_read_only("a scrub")
    return await _Scrub(target, options or ScrubOptions(), progress, lister).run()


class _Scrub:
    def __init__(
        self, target: Target, options: ScrubOptions, progress: Progress, lister: Lister | None
    ) -> None:
        self._target = target
        self._lister = lister or self._keep
        self._options = options
        self._progress = progress
        self._inspector = Inspector(Pace(options.requests_per_s), Pace(options.bytes_per_s))
        self._healer = Healer(target, self._inspector, read=options.read)
        self._report = ScrubReport(options.depth)
        self._done = 0
        self._total = 0

    async def run(self) -> ScrubReport:
        db = self._target.db
        state = await db.write(self._take_up, durable=True)
        self._report.resumed = state.cursor > 0
        left = await db.read_aside(lambda tx: blobs.count_kept(tx, state.cursor, state.last_id))
        self._done, self._total = state.blobs, state.blobs + left
        cursor: int | None = state.cursor
        while cursor is not None:
            cursor = await self._page(cursor, state.last_id)
        await db.write(self._finish, durable=True)
        await self._describe()
        await self._index_copy()
        return self._report

    async def _index_copy(self) -> None:
        """With ``read`` every segment and snapshot, else what a recovery of the newest state would read."""
        shipper, report = self._target.index_copy, self._report.index_copy
        if shipper is None:
            return

        def tell(done: int, total: int) -> None:
            self._progress({"phase": "looking at the copy of the index", "done": done, "total": total})

        verdict = await shipper.verify(CopyDepth.ALL if self._options.read else CopyDepth.CHAIN, tell)
        report.segments, report.snapshots = verdict.segments, verdict.snapshots
        report.damage, report.gaps = verdict.damage, verdict.gaps
        for sentence in verdict.damage:
            logger.info("damaged: the copy of the index: %s", sentence)
        if verdict.damage and self._options.heal:
            await shipper.renew()
            report.renewed = True

    async def _page(self, cursor: int, last_id: int) -> int | None:
        """Compare the blobs that come next, and note the place reached; ``None`` when there are none."""
        db = self._target.db
        page = await db.read(lambda tx: blobs.kept(tx, cursor, last_id, PAGE_BLOBS))
        if not page:
            return None
        before = self._inspector.bytes_read
        await for_each(page, self._compare, self._options.concurrency)
        read = self._inspector.bytes_read - before
        await db.write(lambda tx: scrubs.advance(tx, page[-1].id, len(page), read))
        return page[-1].id

    def _take_up(self, tx: Transaction) -> ScrubRow:
        state = scrubs.find(tx)
        depth = self._options.depth.value
        if state is None or state.ended_ns is not None or state.depth != depth or self._options.restart:
            return scrubs.begin(tx, depth, self._target.now_ns())
        return state

    def _finish(self, tx: Transaction) -> None:
        now_ns = self._target.now_ns()
        scrubs.close_gone(tx, now_ns)
        scrubs.finish(tx, now_ns)

    # -- one blob --------------------------------------------------------------------------------------

    async def _compare(self, row: BlobRow) -> None:
        found = await self._damage_of(row.id)
        if found is not None:
            await self._handle(*found)
        self._done += 1
        self._progress(
            {
                "phase": "comparing",
                "done": self._done,
                "total": self._total,
                "bytes": self._inspector.bytes_read,
                "damaged": self._report.found.total(),
                "healed": self._report.healed.total(),
            }
        )

    async def _damage_of(self, blob_id: int) -> tuple[BlobRow, Damage] | None:
        """Looked for again for as long as the row changes under our hands."""
        row = await self._current(blob_id)
        while row is not None:
            client = self._target.client_of(row.store_id)
            damage = await self._inspector.inspect(client, row, read=self._options.read)
            if damage is None:
                await self._note_well(blob_id)
                return None
            again = await self._current(blob_id)
            if again is not None and (again.location, again.etag) == (row.location, row.etag):
                return again, damage
            row = again
        return None

    async def _note_well(self, blob_id: int) -> None:
        now_ns = self._target.now_ns()
        # Asked first: hardly ever is there anything to close, and a write is a change of the index.
        if await self._target.db.read(lambda tx: scrubs.is_open(tx, blob_id)):
            await self._target.db.write(lambda tx: scrubs.close_damage(tx, blob_id, "well", now_ns))

    async def _current(self, blob_id: int) -> BlobRow | None:
        row = await self._target.db.read(lambda tx: blobs.find_id(tx, blob_id))
        return row if row is not None and row.state in (BlobState.LIVE, BlobState.SUPERSEDED) else None

    async def _handle(self, row: BlobRow, damage: Damage) -> None:
        now_ns = self._target.now_ns()
        self._report.found[damage.kind.value] += 1
        await self._target.db.write(
            lambda tx: scrubs.note_damage(tx, row, damage.kind.value, damage.detail, now_ns), durable=True
        )
        location = row.location
        where = subject_of(location.object_key, location.version_id)
        logger.info(
            "damaged: %s in %s: %s", where, self._target.stores[row.store_id].config.uri, damage.detail
        )
        if not self._options.heal:
            return
        try:
            source = await self._healer.heal(row, damage)
        except BlobIsDeleting as error:
            logger.info("not healed, since nobody wants it any more: %s", error)
            return
        if source is not None:
            self._report.healed[source.value] += 1

    # -- the report ------------------------------------------------------------------------------------

    async def _describe(self) -> None:
        def read(tx: Transaction) -> None:
            state = scrubs.find(tx)
            assert state is not None
            self._report.checked, self._report.bytes_read = state.blobs, state.bytes
            self._report.remaining = scrubs.count_open(tx)

        await self._target.db.read(read)
        last_id: int | None = 0
        while last_id is not None:
            last_id = await self._list(last_id)

    async def _list(self, after_id: int) -> int | None:
        """List a page of the open damage; answers its last row."""

        def read(tx: Transaction) -> tuple[int | None, list[Json]]:
            page = scrubs.open_damages(tx, LISTED_AT_ONCE, after_id)
            return page[-1].id if page else None, [self._described(tx, damage) for damage in page]

        last_id, entries = await self._target.db.read(read)
        for entry in entries:
            await self._lister(entry)
        return last_id

    async def _keep(self, entry: Json) -> None:
        self._report.damages.append(entry)

    def _described(self, tx: Transaction, damage: DamageRow) -> Json:
        paths, files = scrubs.paths_of(tx, damage.blob_id, PATHS_MAX)
        return {
            "store": self._target.stores[damage.store_id].config.name,
            "key": damage.object_key,
            "version": damage.version_id,
            "kind": damage.kind,
            "detail": damage.detail,
            "found_ns": damage.found_ns,
            "files": files,
            "paths": [os.fsdecode(path) for path in paths],
        }
