"""Deleting what gc found, unless somebody came to need it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from s3blobfs.index import explain
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.gc_report import Candidate, GcReport, Kept, Kind
from s3blobfs.maintenance.target import Target
from s3blobfs.s3.limits import DELETE_BATCH_MAX
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.types import Keying

logger = logging.getLogger(__name__)


class Deletion:
    """From one bucket."""

    def __init__(self, target: Target, client: ObjectClient, report: GcReport) -> None:
        self._target = target
        self._client = client
        self._report = report

    async def delete(self, candidates: Sequence[Candidate]) -> None:
        """Raises what S3 does when a whole request fails; what single objects refuse is logged and
        counted."""
        if candidates:
            await self._confirm()
        for start in range(0, len(candidates), DELETE_BATCH_MAX):
            await self._delete_batch(candidates[start : start + DELETE_BATCH_MAX])

    async def _confirm(self) -> None:
        """What this index does not name, a later one may: whoever went on with the volume elsewhere fences
        this process off, which shows when it writes."""
        await self._target.db.write(lambda tx: None)
        await self._target.shipped()

    async def _delete_batch(self, batch: Sequence[Candidate]) -> None:
        claims = self._target.reaper.claims
        names = {(each.store_id, each.sha256) for each in batch}
        # No checkpoint between looking and keeping out.
        free = [
            (store_id, sha256)
            for store_id, sha256 in names
            if store_id is not None and sha256 is not None and claims.is_free(store_id, sha256)
        ]
        with claims.reaping(free):
            wanted = await self._target.db.read(lambda tx: self._wanted(tx, batch))
            doomed = []
            for each in batch:
                held = each.sha256 is not None and (each.store_id, each.sha256) not in free
                if held or each in wanted:
                    self._report.keep(Kept.IN_FLIGHT, each.size_bytes)
                else:
                    doomed.append(each)
            failures = await self._client.delete_many(
                [ObjectId(each.key, each.version_id) for each in doomed]
            )
        failed = {failure.target for failure in failures}
        for failure in failures:
            logger.warning(
                "%s %s was not deleted: %s", failure.target.key, failure.target.version_id or "", failure.code
            )
        self._report.failed += len(failed)
        for each in doomed:
            if ObjectId(each.key, each.version_id) not in failed:
                self._report.delete(each.kind, 1, each.size_bytes)

    def _wanted(self, tx: Transaction, batch: Sequence[Candidate]) -> set[Candidate]:
        """Those that the index has come to name since they were judged, or will: what is journalled."""
        write_ids = explain.journal(tx).write_ids
        of_stores = {each: (each.store_id, each.key) for each in batch if each.store_id is not None}
        rows = explain.rows_of(tx, of_stores.values())
        return {
            each
            for each, key in of_stores.items()
            if each.write_id in write_ids or self._is_named(each, rows.get(key, []))
        }

    def _is_named(self, each: Candidate, rows: Sequence[BlobRow]) -> bool:
        assert each.store_id is not None
        if self._target.stores[each.store_id].config.keying is Keying.VERSIONED:
            return any(row.location.version_id == each.version_id for row in rows)
        # A row of a digest store names the current version.
        return each.kind is Kind.UNNAMED_OBJECT and bool(rows)
