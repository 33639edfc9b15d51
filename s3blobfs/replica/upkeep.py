"""Looking after the copy of an index in its bucket: snapshots now and then, what is old, and whether it is
sound."""

from __future__ import annotations

import logging
from collections.abc import Callable

from s3blobfs.config import DAY_S
from s3blobfs.errors import (
    DamagedContent,
    ObjectStoreError,
    TierUnavailable,
    VolumeIndexError,
    VolumeMismatch,
)
from s3blobfs.index.copying import PinnedState
from s3blobfs.replica.history import History, Tip
from s3blobfs.replica.options import Limits
from s3blobfs.replica.outgoing import Maker
from s3blobfs.replica.retention import tidy
from s3blobfs.replica.verification import Depth, Verdict, Verifier
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo

logger = logging.getLogger(__name__)

_NS = 10**9


class Upkeep:
    """Of one mount."""

    def __init__(
        self,
        client: ObjectClient,
        history: History,
        maker: Maker,
        *,
        prefix: str,
        retention_s: float,
        limits: Limits,
        newest: ObjectInfo | None,
        now_ns: Callable[[], int],
    ) -> None:
        """``newest``: the newest snapshot in the bucket."""
        self._client = client
        self._history = history
        self._maker = maker
        self._prefix = prefix
        self._retention_s = retention_s
        self._limits = limits
        self._now_ns = now_ns
        self.snapshot_ns = newest.last_modified_ns if newest is not None else None
        """When the newest snapshot was made."""
        self._snapshot_bytes = newest.size_bytes if newest is not None else 0
        self._segments = 0
        self._segments_bytes = 0
        self._tidied_ns: int | None = None
        self._verified_ns = now_ns()

    # -- when ------------------------------------------------------------------------------------------

    def note_segment(self, size_bytes: int) -> None:
        self._segments += 1
        self._segments_bytes += size_bytes

    def note_snapshot(self, size_bytes: int) -> None:
        self.snapshot_ns = self._now_ns()
        self._snapshot_bytes = size_bytes
        self._segments = self._segments_bytes = 0

    @property
    def snapshot_is_due(self) -> bool:
        limits, size_bytes = self._limits, self._snapshot_bytes
        if self.snapshot_ns is None:
            return True
        if self._segments >= max(limits.snapshot_segments, size_bytes // limits.segment_bytes):
            return True
        if self._segments_bytes >= max(limits.snapshot_bytes, size_bytes):
            return True
        return self._segments > 0 and self._now_ns() - self.snapshot_ns > DAY_S * _NS

    @property
    def verification_is_due(self) -> bool:
        return self._now_ns() - self._verified_ns >= self._limits.look_s * _NS

    @property
    def tidying_is_due(self) -> bool:
        return self._tidied_ns is None or self._now_ns() - self._tidied_ns >= self._limits.tidy_s * _NS

    # -- what ------------------------------------------------------------------------------------------

    async def snapshot(self, tip: Tip, pinned: PinnedState) -> None:
        """Send the state behind a segment; closes it. A failure is logged, and the next one is due at
        once."""
        try:
            self.note_snapshot(await self._maker.send_snapshot_of(tip, self._now_ns(), pinned))
        except (ObjectStoreError, OSError, VolumeIndexError) as error:
            logger.warning("no snapshot of the index could be made, which is tried again: %s", error)

    async def tidy(self) -> None:
        """Remove what no recovery within the retention asks for. A failure is logged."""
        retention_ns = round(self._retention_s * _NS)
        try:
            await tidy(
                self._client, self._history, self._prefix, now_ns=self._now_ns(), retention_ns=retention_ns
            )
        except (ObjectStoreError, DamagedContent, VolumeMismatch) as error:
            logger.warning("old segments of the index stay in the bucket for now: %s", error)

    def note_tidying(self) -> None:
        """One is begun."""
        self._tidied_ns = self._now_ns()

    async def verify(self, tip: Tip, depth: Depth, progress: Callable[[int, int], None]) -> Verdict:
        """See :class:`Verifier`. Raises what that does, the disk's errors as :class:`TierUnavailable`."""
        verifier = Verifier(self._client, self._history, self._prefix, self._maker.directory, progress)
        try:
            verdict = await verifier.verify(tip, depth)
        except OSError as error:
            raise TierUnavailable(f"a snapshot of the index cannot be looked at: {error.strerror}") from error
        self._verified_ns = self._now_ns()
        return verdict
