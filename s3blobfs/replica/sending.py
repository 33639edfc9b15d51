"""Sending a segment so that of two writers one is refused.

Each is a PUT of the next number that must not exist yet. Where the server does not honour that condition, the
key is looked at before instead, which two writers may do at the same moment.
"""

from __future__ import annotations

import enum

from s3blobfs.errors import DamagedContent, ObjectAlreadyExists
from s3blobfs.replica import names
from s3blobfs.replica.history import History, Tip
from s3blobfs.replica.outgoing import Outgoing
from s3blobfs.replica.segment import Segment, time_text
from s3blobfs.s3.protocol import ObjectClient


class Answer(enum.Enum):
    """What became of a segment."""

    SENT = enum.auto()
    """It is in the bucket."""
    LATE = enum.auto()
    """Its number has one that the process before had sent, and that came late."""
    TAKEN = enum.auto()
    """Its number is somebody else's."""


class Sender:
    """Of one mount."""

    def __init__(self, client: ObjectClient, history: History, prefix: str, *, conditional: bool) -> None:
        self._client = client
        self._history = history
        self._prefix = prefix
        self.conditional = conditional

    async def send(self, out: Outgoing, in_doubt: Tip | None) -> tuple[Answer, Segment]:
        """The answer, and the segment that has the number. Raises what S3 does, :class:`DamagedContent`
        and :class:`~s3blobfs.errors.VolumeMismatch`."""
        number = out.segment.number
        key = names.segment_key(self._prefix, number)
        if self.conditional:
            try:
                await self._client.put(key, out.data, if_none_match=True)
            except ObjectAlreadyExists:
                return await self._judge(out, in_doubt)
        elif await self._history.exists(number):
            return await self._judge(out, in_doubt)
        else:
            await self._client.put(key, out.data)
        return Answer.SENT, out.segment

    async def _judge(self, out: Outgoing, in_doubt: Tip | None) -> tuple[Answer, Segment]:
        """The number is taken: by this very segment, whose answer was lost, or by somebody else's."""
        found = await self._history.find(out.segment.number)
        if found is None:
            raise DamagedContent(f"segment {out.segment.number} exists and is not there")
        segment, digest = found
        if digest == out.digest:
            return Answer.SENT, segment
        if in_doubt == Tip(out.segment.number, digest):
            return Answer.LATE, segment
        return Answer.TAKEN, segment

    async def somebody_went_on(self, tip: Tip, out: Outgoing | None) -> bool:
        """Whether there are segments behind ``tip`` that are not this mount's; ``out``: what it sent last,
        perhaps in vain."""
        if not await self._history.is_ahead(tip.number):
            return False
        found = await self._history.find(out.segment.number) if out is not None else None
        return out is None or found is None or found[1] != out.digest


def evidence(segment: Segment) -> str:
    """For the one who is refused."""
    return f"segment {segment.number} is {segment.writer}'s, of {time_text(segment.made_ns)}"
