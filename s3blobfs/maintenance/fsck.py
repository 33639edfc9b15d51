"""fsck: the invariants of the index, and with ``repair`` the mending of what breaks them.

Each problem is mended in one transaction, which is on disk before the next is begun. Then everything is
checked again, for one mending may lay another problem open (a directory that came back brings its entries),
until nothing is left or nothing can be done about what is.

A content whose row is lost is looked for in S3, where its object says whose it is (:mod:`.finding`).

While the volume is mounted only such kinds are mended as concern nothing that the mount keeps a copy of
(:data:`s3blobfs.index.repair.LIVE_KINDS`).
"""

from __future__ import annotations

import enum
import logging
from collections import Counter
from dataclasses import dataclass, field

from s3blobfs.errors import IndexUnavailable, VolumeIndexError
from s3blobfs.index import blobs, uploads
from s3blobfs.index.check import Problem
from s3blobfs.index.repair import LIVE_KINDS, ORDER, Evidence, mend
from s3blobfs.index.transaction import Value
from s3blobfs.maintenance import finding
from s3blobfs.maintenance.finding import Finder
from s3blobfs.maintenance.target import Json, Lister, Progress, Target, silent
from s3blobfs.tier.naming import other_name

logger = logging.getLogger(__name__)

MENDINGS_MAX = 3
"""So often one problem is mended; when it is back after that, mending it is no use."""

_Name = tuple[str, tuple[Value, ...]]
"""Kind and subject."""


class Outcome(enum.Enum):
    """What became of a problem."""

    FOUND = "found"
    """Nothing was tried."""
    MENDED = "mended"
    LEFT = "left"
    """It could not be mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what became of it."""

    problem: Problem
    outcome: Outcome
    note: str = ""
    """What was done, or why it was not."""

    def to_json(self) -> Json:
        problem = self.problem
        return {
            "kind": problem.kind,
            "detail": problem.detail,
            "outcome": self.outcome.value,
            "note": self.note,
        }


@dataclass(slots=True)
class FsckReport:
    findings: list[Finding] = field(default_factory=list)
    """Unless somebody else lists them."""
    counts: Counter[Outcome] = field(default_factory=Counter)

    def count(self, outcome: Outcome) -> int:
        return self.counts[outcome]

    def to_json(self) -> Json:
        counts = {outcome.value: self.count(outcome) for outcome in Outcome}
        return {"counts": counts, "problems": [each.to_json() for each in self.findings]}


async def fsck(
    target: Target, *, repair: bool = False, progress: Progress = silent, lister: Lister | None = None
) -> FsckReport:
    """Check, and mend what can be mended. ``lister`` takes each finding, as JSON, which the report does not
    hold then. Raises what the index and, where it has to be asked, S3 do;
    :class:`~s3blobfs.errors.UsageError` for a repair of a read-only mount."""
    if repair:
        target.refuse_if_read_only("a repair")
    return await _Fsck(target, progress, lister).run(repair)


class _Fsck:
    def __init__(self, target: Target, progress: Progress, lister: Lister | None) -> None:
        self._target = target
        self._progress = progress
        self._lister = lister
        self._finder = Finder(target, progress)
        self._report = FsckReport()
        self._times: Counter[_Name] = Counter()
        self._refused: dict[_Name, str] = {}

    async def run(self, repair: bool) -> FsckReport:
        problems = await self._check()
        while repair and await self._mend_all(problems):
            problems = await self._check()
        for problem in problems:
            note = self._refused.get((problem.kind, problem.subject), "")
            outcome = Outcome.LEFT if repair else Outcome.FOUND
            await self._add(Finding(problem, outcome, note))
        return self._report

    async def _add(self, found: Finding) -> None:
        self._report.counts[found.outcome] += 1
        if self._lister is None:
            self._report.findings.append(found)
        else:
            await self._lister(found.to_json())

    async def _check(self) -> list[Problem]:
        self._progress({"phase": "checking", "done": 0, "total": None})
        names = self._staged_names()
        problems = await self._target.db.check(names)
        return [problem for problem in problems if not await self._is_over(problem)]

    async def _is_over(self, problem: Problem) -> bool:
        """The staged files were listed a moment before the journal was read."""
        if problem.kind != "missing-staged-file" or not self._target.mounted:
            return False
        (upload_id,) = problem.subject
        assert isinstance(upload_id, int)
        row = await self._target.db.read(lambda tx: uploads.find(tx, upload_id))
        return row is None or row.staged_name in self._staged_names()

    def _staged_names(self) -> set[str]:
        """Under either name: a crash may have come between the seal and its row."""
        names = self._target.tier.staging.names()
        return names | {other for name in names if (other := other_name(name)) is not None}

    async def _mend_all(self, problems: list[Problem]) -> bool:
        """Each one once; whether anything was changed."""
        mended = 0
        if not self._target.mounted:
            await self._finder.look(problems)
        problems = sorted((each for each in problems if each.subject), key=lambda each: ORDER[each.kind])
        for done, problem in enumerate(problems):
            self._progress({"phase": "mending", "done": done, "total": len(problems)})
            mended += await self._mend(problem)
        return mended > 0

    async def _mend(self, problem: Problem) -> bool:
        name = (problem.kind, problem.subject)
        if self._target.mounted and problem.kind not in LIVE_KINDS:
            self._refused[name] = (
                f"not while it is mounted: unmount, then s3blobfs fsck --repair {self._target.settings.uri}"
            )
            return False
        if self._times[name] >= MENDINGS_MAX:
            self._refused[name] = "it comes back"
            return False
        self._times[name] += 1
        evidence = await self._evidence(problem)
        now_ns = self._target.now_ns()
        try:
            note = await self._target.db.write(lambda tx: mend(tx, problem, now_ns, evidence), durable=True)
        except IndexUnavailable:
            raise
        except VolumeIndexError as error:
            self._refused[name] = str(error)
            return False
        if note is None:
            return False
        logger.info("%s: %s: %s", problem.kind, problem.detail, note)
        await self._add(Finding(problem, Outcome.MENDED, note))
        return True

    async def _evidence(self, problem: Problem) -> Evidence:
        if problem.kind in finding.KINDS:
            return Evidence(content=self._finder.content_of(problem))
        if problem.kind == "missing-staged-file":
            return Evidence(staged_names=self._staged_names())
        if problem.kind != "deleting-blob":
            return Evidence()
        blob_id = problem.subject[1]
        assert isinstance(blob_id, int)
        row = await self._target.db.read(lambda tx: blobs.find_id(tx, blob_id))
        store = self._target.stores.get(row.store_id) if row is not None else None
        if row is None or store is None:
            return Evidence()
        there = await store.exists(row.location, row.digests.size_bytes)
        return Evidence(object_is_there=there)
