"""Putting an index together again from the bucket: a snapshot, and every segment behind it.

Nothing is believed that does not prove itself: each object by its checksum, each segment by naming the digest
of the one before, each changeset by fitting the rows that it changes. The first that does not ends the
reconstruction there, and what is wrong is said; an earlier snapshot is tried when a later one is no good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from s3blobfs.errors import DamagedContent, IndexDamaged, ObjectNotFound, VolumeMismatch
from s3blobfs.index.replay import Replay
from s3blobfs.replica import names, snapshot
from s3blobfs.replica.history import History, Tip
from s3blobfs.replica.segment import Kind, Segment, unpack
from s3blobfs.replica.snapshot import SnapshotHeader
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo

SENDING_NS = 3600 * 10**9
"""A segment, or a snapshot, takes less time to arrive."""
Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


@dataclass(slots=True)
class Reconstruction:
    """What came of it."""

    snapshot: str = ""
    """Key of the one that was begun from; empty when there was none."""
    segments: int = 0
    """Applied."""
    sequence: int = 0
    made_ns: int = 0
    """The state that was reached, and when it was the newest."""
    newest: Tip = field(default_factory=lambda: Tip(0, ""))
    """The last segment in the bucket, whether it could be read or not."""
    newest_ns: int = 0
    """When that was written, by S3's clock; 0 when there is none."""
    known_until_ns: int = 0
    """By S3's clock: everything that was begun to be stored before is in the state that was reached, or in
    its journal."""
    complete: bool = False
    """The state is the newest, or that of the time asked for."""
    is_newest: bool = False
    problems: list[str] = field(default_factory=list)
    """What is missing or damaged; one that does not keep from being complete is among them."""


class Reader:
    """Reconstructs the index of one volume."""

    def __init__(
        self,
        client: ObjectClient,
        prefix: str,
        volume_id: str,
        *,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._volume_id = volume_id
        self._history = History(client, prefix, volume_id)
        self._progress = progress
        self._done = self._total = 0
        self._segments: dict[int, ObjectInfo] = {}

    async def reconstruct(self, target: Path, at_ns: int | None) -> Reconstruction:
        """Make ``target``, which must not exist, the index at that time, or the newest. Without any usable
        snapshot there is no file afterwards. Raises what S3 does, :class:`VolumeIndexError`, ``OSError``."""
        result = Reconstruction()
        self._segments = {
            number: info
            async for info in self._client.list_objects(names.segments_prefix(self._prefix))
            if (number := names.segment_number(self._prefix, info.key)) is not None
        }
        newest = max(self._segments, default=0)
        result.newest = Tip(newest, await self._digest_of(newest))
        result.newest_ns = self._segments[newest].last_modified_ns if newest else 0
        for number, info in reversed(await self._history.snapshots()):
            begun = await self._begin(number, info, target, at_ns, result)
            if begun is not None:
                result.snapshot = info.key
                reached = await self._follow(begun, target, at_ns, result)
                result.known_until_ns = self._known_until_ns(reached, info)
                return result
        result.problems.append("there is no snapshot in the bucket from which this state could be reached")
        return result

    def _known_until_ns(self, reached: int, snapshot_: ObjectInfo) -> int:
        """A segment is made when the one before has arrived, and holds all that was committed then. So what
        came to S3 before that one is known; of the time in between nobody can tell."""
        before, last = self._segments.get(reached - 1), self._segments.get(reached)
        if before is not None:
            return before.last_modified_ns
        return (last or snapshot_).last_modified_ns - SENDING_NS

    async def _digest_of(self, number: int) -> str:
        """Empty for a segment that cannot be read; that is found out again when it is applied."""
        try:
            found = await self._history.find(number)
        except (DamagedContent, VolumeMismatch):
            return ""
        return found[1] if found is not None else ""

    async def _begin(
        self, number: int, info: ObjectInfo, target: Path, at_ns: int | None, result: Reconstruction
    ) -> SnapshotHeader | None:
        """Fetch a snapshot if it is whole, of this history, and not too late."""
        try:
            header = await snapshot.read_header(self._client, info)
            if header.volume_id != self._volume_id:
                raise DamagedContent(f"{info.key} is of volume {header.volume_id}")
            if at_ns is not None and header.made_ns > at_ns:
                return None
            if not await self._is_of_this_history(number, header):
                return None
            later = (each for segment, each in self._segments.items() if segment > number)
            self._done, self._total = 0, info.size_bytes + sum(each.size_bytes for each in later)
            return await snapshot.fetch(self._client, info, target, self._advance)
        except (DamagedContent, ObjectNotFound) as error:
            result.problems.append(str(error))
            target.unlink(missing_ok=True)
            return None
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    async def _is_of_this_history(self, number: int, header: SnapshotHeader) -> bool:
        """One that was made by a mount that then lost its place to another is not."""
        if number not in self._segments:
            # Its segment never came: the process ended between the two. Or everything is gone.
            return not self._segments
        found = await self._history.find(number)
        return found is not None and found[1] == header.digest

    async def _follow(
        self, header: SnapshotHeader, target: Path, at_ns: int | None, result: Reconstruction
    ) -> int:
        """Apply the segments behind a snapshot; answers the number of the last."""
        replay = await trio.to_thread.run_sync(Replay, target)
        try:
            result.sequence, result.made_ns = replay.sequence, header.made_ns
            tip = Tip(header.number, header.digest)
            ended = False
            while tip.number < result.newest.number and not ended:
                try:
                    tip, ended = await self._step(tip, replay, at_ns, result)
                except (DamagedContent, IndexDamaged, VolumeMismatch) as error:
                    result.problems.append(str(error))
                    break
            result.complete = ended or tip.number >= result.newest.number
            if not self._segments:
                result.complete = False
                result.problems.append(
                    "there are no segments in the bucket: what came after the snapshot is lost"
                )
            result.is_newest = result.complete and not ended
            await trio.to_thread.run_sync(replay.finish)
            return tip.number
        except BaseException:
            replay.close()
            raise

    async def _step(
        self, tip: Tip, replay: Replay, at_ns: int | None, result: Reconstruction
    ) -> tuple[Tip, bool]:
        """Apply the segment behind ``tip``; whether the time asked for is reached. Raises
        :class:`DamagedContent`, :class:`IndexDamaged`, :class:`VolumeMismatch`."""
        number = tip.number + 1
        found = await self._history.find(number)
        if found is None:
            raise DamagedContent(
                f"segment {number} is missing ({names.segment_key(self._prefix, number)}), though there are"
                f" segments up to {result.newest.number}"
            )
        segment, digest = found
        self._advance(self._segments[number].size_bytes if number in self._segments else 0)
        self._check(segment, tip, number, replay)
        if segment.kind is Kind.BREAK:
            if at_ns is not None and segment.made_ns > at_ns:
                return tip, True
            raise DamagedContent(
                f"segment {number} goes on from a snapshot of its own, which is missing or damaged"
            )
        for changes in unpack(segment):
            if at_ns is not None and changes.made_ns > at_ns:
                return tip, True
            await trio.to_thread.run_sync(replay.apply, changes)
            result.sequence, result.made_ns = changes.sequence, changes.made_ns
        result.segments += 1
        if at_ns is None or segment.made_ns <= at_ns:
            result.made_ns = segment.made_ns
        return Tip(number, digest), False

    def _check(self, segment: Segment, tip: Tip, number: int, replay: Replay) -> None:
        if segment.number != number:
            raise DamagedContent(f"segment {number} says that it is segment {segment.number}")
        if segment.previous != tip.digest:
            raise DamagedContent(f"segment {number} does not follow on from segment {tip.number} as it is")
        if segment.kind is not Kind.BREAK and segment.after_sequence != replay.sequence:
            raise DamagedContent(
                f"segment {number} begins at state {segment.after_sequence}, not at {replay.sequence}"
            )
        if segment.kind is not Kind.BREAK and segment.schema_version != replay.schema_version:
            raise DamagedContent(f"segment {number} is of another version of the index than its snapshot")

    def _advance(self, size_bytes: int) -> None:
        self._done += size_bytes
        self._progress(min(self._done, self._total), self._total)
