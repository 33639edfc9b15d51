"""Looking whether the copy of the index in the bucket would do, before it is needed.

What is looked at grows with the depth. A *glance* lists: are there segments without a gap, is the newest the
one that was sent, is there a snapshot. The *chain* is every segment since the newest snapshot, read: what a
recovery of the newest state reads but for the snapshot's body. *All* is every segment and every byte of every
snapshot, what recoveries of earlier times read too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from s3blobfs.errors import DamagedContent, ObjectNotFound
from s3blobfs.replica import names, snapshot
from s3blobfs.replica.history import History, Tip
from s3blobfs.replica.numbers import Numbers
from s3blobfs.replica.segment import Kind, Segment
from s3blobfs.replica.stored import for_each
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo

BATCH = 64
"""Segments read at a time."""


class Depth(enum.IntEnum):
    """How much is looked at."""

    GLANCE = 1
    CHAIN = 2
    ALL = 3


@dataclass(slots=True)
class Verdict:
    """What a look found."""

    segments: int = 0
    snapshots: int = 0
    """In the bucket."""
    bytes_read: int = 0
    damage: list[str] = field(default_factory=list)
    """Why the newest state could not be recovered; a new snapshot mends it."""
    gaps: list[str] = field(default_factory=list)
    """What keeps some earlier time from being recovered. Nothing brings it back."""
    taken: Segment | None = None
    """Somebody else's segment in the place of the newest one."""


@dataclass(frozen=True, slots=True)
class _Read:
    segment: Segment
    digest: str


class Verifier:
    """Looks at the copy of one index."""

    def __init__(
        self,
        client: ObjectClient,
        history: History,
        prefix: str,
        directory: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """``directory``: for a snapshot at a time, while it is read. ``progress`` is told of segments and
        snapshots."""
        self._client = client
        self._history = history
        self._prefix = prefix
        self._directory = directory
        self._progress = progress
        self._segments = Numbers()
        self._read: dict[int, _Read] = {}
        self._bad: dict[int, str] = {}
        """Segments that no recovery gets past, with the reason."""
        self._verdict = Verdict()
        self._done = self._total = 0

    async def verify(self, tip: Tip, depth: Depth) -> Verdict:
        """``tip``: the newest segment that is known to have been sent; what is behind it is on its way.
        Raises what S3 and the disk raise, :class:`~s3blobfs.errors.VolumeMismatch` for segments of another
        volume."""
        if tip.number == 0:
            return self._verdict  # nothing was ever sent
        self._segments = await self._listed()
        snapshots = [each for each in await self._history.snapshots() if each[0] <= tip.number]
        self._verdict.segments, self._verdict.snapshots = len(self._segments), len(snapshots)
        first = self._segments.first or tip.number
        if depth is Depth.ALL:
            self._total = tip.number - first + 1 + len(snapshots)
        for number in self._segments.missing(first, tip.number):
            self._bad[number] = f"segment {number} is missing"
        await self._read_all([tip.number])
        self._check_tip(tip)
        base = await self._base(snapshots, depth)
        if depth is not Depth.GLANCE:
            start = first if depth is Depth.ALL else base or first
            await self._read_all(list(range(start, tip.number + 1)))
            self._check_links(start, tip.number, {number for number, _ in snapshots})
        await self._forgive_retention()
        self._conclude(base, tip.number)
        return self._verdict

    async def _listed(self) -> Numbers:
        found = Numbers()
        async for info in self._client.list_objects(names.segments_prefix(self._prefix)):
            number = names.segment_number(self._prefix, info.key)
            if number is not None:
                found.add(number)
        return found

    # -- reading ---------------------------------------------------------------------------------------

    async def _read_all(self, numbers: list[int]) -> None:
        wanted = [number for number in numbers if number not in self._read and number not in self._bad]
        for at in range(0, len(wanted), BATCH):
            await for_each(wanted[at : at + BATCH], self._read_one)

    async def _read_one(self, number: int) -> None:
        try:
            found = await self._history.find(number)
            if found is None:
                raise DamagedContent(f"segment {number} is missing")
            segment, digest = found
            if segment.number != number:
                raise DamagedContent(f"segment {number} says that it is segment {segment.number}")
            self._verdict.bytes_read += len(segment.payload)
            # What is kept of each is small: the changes themselves are of no interest.
            self._read[number] = _Read(replace(segment, payload=b""), digest)
        except DamagedContent as error:
            self._bad[number] = str(error)
        self._advance()

    def _check_tip(self, tip: Tip) -> None:
        found = self._read.get(tip.number)
        if found is not None and found.digest != tip.digest:
            self._verdict.taken = found.segment

    def _check_links(self, first: int, last: int, snapshots: set[int]) -> None:
        for number in range(first, last + 1):
            now, before = self._read.get(number), self._read.get(number - 1)
            if now is None:
                continue
            if before is not None and now.segment.previous != before.digest:
                self._bad[number] = f"segment {number} does not follow on from segment {number - 1} as it is"
            if now.segment.kind is Kind.BREAK and number not in snapshots:
                self._bad[number] = f"segment {number} goes on from a snapshot that is missing"

    async def _base(self, snapshots: list[tuple[int, ObjectInfo]], depth: Depth) -> int | None:
        """The newest snapshot from which a recovery can begin."""
        base: int | None = None
        for number, info in reversed(snapshots):
            if base is not None and depth is not Depth.ALL:
                break
            try:
                if await self._is_usable(number, info, whole=depth is Depth.ALL):
                    base = base if base is not None else number
            except ObjectNotFound:
                pass  # removed since it was listed: then a newer one is there
            except DamagedContent as error:
                (self._verdict.damage if base is None else self._verdict.gaps).append(str(error))
            self._advance()
        return base

    async def _is_usable(self, number: int, info: ObjectInfo, *, whole: bool) -> bool:
        header = await snapshot.read_header(self._client, info)
        await self._read_all([number])
        found = self._read.get(number)
        if found is None or found.digest != header.digest:
            return False  # of a mount that lost its place to another, or its segment is what is wrong
        if whole:
            target = self._directory / f"verify-{number}"
            try:
                await snapshot.fetch(self._client, info, target, self._count)
            finally:
                target.unlink(missing_ok=True)
        return True

    def _count(self, size_bytes: int) -> None:
        self._verdict.bytes_read += size_bytes

    # -- concluding ------------------------------------------------------------------------------------

    async def _forgive_retention(self) -> None:
        """What was removed meanwhile since nobody needs it any more is not missing."""
        if not self._bad:
            return
        oldest = (await self._listed()).first or 0
        self._bad = {number: why for number, why in self._bad.items() if number >= oldest}

    def _conclude(self, base: int | None, last: int) -> None:
        damage, gaps = self._verdict.damage, self._verdict.gaps
        for number, why in sorted(self._bad.items()):
            (damage if base is None or number > base or number == last else gaps).append(why)
        if base is None:
            damage.append("no snapshot is there from which a recovery could begin")
        elif not any(number > base or number == last for number in self._bad):
            # A newer snapshot that is no good costs nothing while the segments since an earlier one are good.
            gaps += damage
            damage.clear()

    def _advance(self) -> None:
        self._done += 1
        self._progress(self._done, max(self._total, self._done))
