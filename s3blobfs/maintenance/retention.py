"""Letting go of earlier versions of files, by an explicit retention.

The rows are marked in the index; the reaper deletes the objects, as it does of everything that is marked.
"""

from __future__ import annotations

from s3blobfs.index import explain
from s3blobfs.index.explain import Superseded
from s3blobfs.maintenance.gc_report import GcReport, Kind
from s3blobfs.maintenance.target import Target

PAGE_ROWS = 1000


async def retire(target: Target, report: GcReport, *, keep: int | None, older_than_ns: int | None) -> None:
    """Count, and mark if the report is of a deletion, the SUPERSEDED blobs that are let go: all but the
    ``keep`` newest of each file, and of these only what gave way longer ago than ``older_than_ns``."""
    if keep is None and older_than_ns is None:
        return
    before_ns = target.now_ns() - (older_than_ns or 0)
    after: tuple[int, str, int] | None = None
    of_file = 0
    while page := await _page(target, after):
        let_go: list[Superseded] = []
        for row in page:
            same_file = after is not None and after[:2] == (row.store_id, row.object_key)
            of_file = of_file + 1 if same_file else 1
            after = (row.store_id, row.object_key, row.id)
            if of_file > (keep or 0) and row.unreferenced_ns <= before_ns:
                let_go.append(row)
        await _let_go(target, report, let_go)
    if report.deleting:
        target.reaper.wake()


async def _page(target: Target, after: tuple[int, str, int] | None) -> list[Superseded]:
    return await target.db.read(lambda tx: explain.superseded(tx, after, PAGE_ROWS))


async def _let_go(target: Target, report: GcReport, rows: list[Superseded]) -> None:
    size_bytes = sum(row.size_bytes for row in rows)
    report.add(Kind.SUPERSEDED, len(rows), size_bytes)
    if report.deleting and rows:
        marked = await target.db.write(lambda tx: explain.mark_superseded(tx, [row.id for row in rows]))
        report.delete(Kind.SUPERSEDED, marked, size_bytes)
