"""gc: what is in the stores' buckets and the index does not explain.

*Lists first, marks second.* An object is judged by what the index says **after** the object was listed: a
content on its way has its journal row before the PUT and its blob row in the transaction that ends the
journal row, so one of the two is always seen. What a direct copy makes has no journal row but a claim, which
is looked at as well. And nothing younger than the grace is touched at all; in S3 the age of a large object
counts from the beginning of its upload.

An object is only a candidate when its key has our form **and** it bears our stamp; the rest is foreign, and
is counted. Candidates of a content that somebody stores right now are left, and storing it waits while they
are deleted (:mod:`s3blobfs.writeback.claims`): an upload that finds an unnamed object there counts on it.

What might heal a damaged object (earlier versions of one that is missing or altered) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3blobfs.errors import UsageError
from s3blobfs.index import explain
from s3blobfs.maintenance.deletion import Deletion
from s3blobfs.maintenance.gc_report import Candidate, GcReport, Kept, Kind
from s3blobfs.maintenance.judgement import Judge, group_by_key
from s3blobfs.maintenance.retention import retire
from s3blobfs.maintenance.target import Progress, Target, silent
from s3blobfs.maintenance.territory import Ownership, Territory
from s3blobfs.s3.protocol import ObjectClient, ObjectVersionInfo

DAY_S = 24 * 3600.0
GRACE_MOUNTED_MIN_S = 3600.0
"""The clocks of S3 and of this machine may differ, and a mounted volume stores all the time."""
STALE_UPLOAD_S = DAY_S
BATCH_KEYS = 500
"""Judged at a time: so many keys, with all their versions, are in memory."""
_NS_PER_S = 10**9


@dataclass(frozen=True, slots=True)
class GcOptions:
    delete: bool = False
    """Otherwise it only tells what it would delete."""
    grace_s: float = DAY_S
    keep_versions: int | None = None
    """Earlier versions of a file beyond these, the newest, are deleted."""
    older_than_s: float | None = None
    """Earlier versions that gave way longer ago than this are deleted. With ``keep_versions``, only those
    that both rules let go. With neither, none."""


async def gc(target: Target, options: GcOptions | None = None, *, progress: Progress = silent) -> GcReport:
    """Look for what nobody needs, and with ``delete`` delete it. May be interrupted and repeated.

    Raises what S3 and the index do (a single object that cannot be deleted is counted);
    :class:`~s3blobfs.errors.UsageError` for a grace too short for a mounted volume, or a deletion from a
    read-only mount."""
    options = options or GcOptions()
    if options.delete:
        target.refuse_if_read_only("a deletion")
    if target.mounted and options.grace_s < GRACE_MOUNTED_MIN_S:
        raise UsageError("while the volume is mounted the grace is at least 1h; unmount it, or wait longer")
    return await _Gc(target, options, progress).run()


class _Gc:
    def __init__(self, target: Target, options: GcOptions, progress: Progress) -> None:
        self._target = target
        self._options = options
        self._progress = progress
        self._report = GcReport(options.delete)
        self._listed = 0
        self._before_ns = 0

    async def run(self) -> GcReport:
        target, options = self._target, self._options
        older_ns = None if options.older_than_s is None else round(options.older_than_s * _NS_PER_S)
        garbage = await self._garbage()
        self._report.add(Kind.GARBAGE, *garbage)
        await retire(target, self._report, keep=options.keep_versions, older_than_ns=older_ns)
        if options.delete and not target.mounted:  # else the reaper is at work anyway
            self._report.failed += await target.reaper.drain()
            left = await self._garbage()
            self._report.delete(Kind.GARBAGE, max(0, garbage[0] - left[0]), max(0, garbage[1] - left[1]))
        configs = [store.config for store in target.stores.values()]
        for bucket in sorted({config.bucket for config in configs}):
            territory = Territory(bucket, configs)
            client = target.clients.of(bucket)
            self._before_ns = target.now_ns() - round(options.grace_s * _NS_PER_S)
            judge = Judge(target, territory, client, self._before_ns, self._report)
            await judge.prepare()
            deletion = Deletion(target, client, self._report)
            for prefix in territory.prefixes:
                await self._sweep(client, prefix, judge, deletion)
                await self._uploads(client, prefix, territory)
        return self._report

    async def _garbage(self) -> tuple[int, int]:
        """What the reaper has to delete: how many blobs, and their bytes."""
        target = self._target
        before_ns = target.now_ns() - round(target.settings.garbage_grace_s * _NS_PER_S)
        return await target.db.read_aside(lambda tx: explain.garbage(tx, before_ns))

    async def _sweep(self, client: ObjectClient, prefix: str, judge: Judge, deletion: Deletion) -> None:
        batch: list[list[ObjectVersionInfo]] = []
        async for group in group_by_key(client.list_versions(prefix)):
            batch.append(group)
            self._listed += len(group)
            if len(batch) >= BATCH_KEYS:
                await self._settle(judge, deletion, batch)
                batch = []
        if batch:
            await self._settle(judge, deletion, batch)

    async def _settle(self, judge: Judge, deletion: Deletion, batch: list[list[ObjectVersionInfo]]) -> None:
        candidates = await judge.judge(batch)
        for candidate in candidates:
            self._report.add_candidate(candidate)
        if self._options.delete:
            await deletion.delete(candidates)
        self._progress({"phase": "listing", "done": self._listed, "total": None, **self._report.totals()})

    async def _uploads(self, client: ObjectClient, prefix: str, territory: Territory) -> None:
        before_ns = min(self._before_ns, self._target.now_ns() - round(STALE_UPLOAD_S * _NS_PER_S))
        # In this order, and before they are listed: an upload this old has been sent early ever since, or has
        # got its row by now; and a row that is gone by then has no upload any more.
        sent_early = self._target.sent_early()
        journal = await self._target.db.read(explain.journal)
        in_flight = journal.names | sent_early
        async for upload in client.list_uploads(prefix):
            place = territory.place(upload.key)
            if place.ownership is Ownership.VOLUME:
                self._report.keep(Kept.VOLUME, 0)
            elif not place.surely_ours and place.ownership is not Ownership.PROBE:
                self._report.keep(Kept.FOREIGN, 0)
            elif upload.initiated_ns > before_ns:
                self._report.keep(Kept.RECENT, 0)
            elif (place.store.id, place.name) in in_flight:
                self._report.keep(Kept.IN_FLIGHT, 0)
            else:
                candidate = Candidate(Kind.STALE_UPLOAD, client.bucket, upload.key, upload.upload_id, 0)
                self._report.add_candidate(candidate)
                if self._options.delete:
                    await client.abort_upload(upload.key, upload.upload_id)
                    self._report.delete(Kind.STALE_UPLOAD, 1, 0)
