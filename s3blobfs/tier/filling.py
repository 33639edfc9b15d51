"""One content on its way into the cache, for all who read it meanwhile.

No byte is fetched twice while a reader is there: what is missing, coming and present is known per checksum
block. The windows go into a sparse file, out of which all readers are served; when it is whole, and its
digest is right, it gets its name in the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from s3blobfs.config import ReadOptions
from s3blobfs.errors import DamagedContent, S3BlobFSError, TierError
from s3blobfs.tier.digest import file_is_content
from s3blobfs.tier.entry import Fill
from s3blobfs.tier.localio import local_errors
from s3blobfs.tier.memory import MemoryBudget
from s3blobfs.tier.windows import (
    Range,
    RangeSource,
    ReadAhead,
    Spawn,
    Window,
    blocks_in,
    fetch_checked,
    pieces,
)
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, BlobContent, Buffer

log = logging.getLogger(__name__)

_MISSING, _COMING, _HERE = 0, 1, 2
_NEARLY = 8
"""A fill without readers is completed when less than one part in so many is missing."""


class SharedFill:
    """One fill and what is known of its blocks. ``ended`` is called once, when nobody may join it any more:
    it is in the cache, or cannot come there, or is given up."""

    def __init__(
        self,
        blob: BlobContent,
        fill: Fill,
        options: ReadOptions,
        budget: MemoryBudget,
        spawn: Spawn,
        ended: Callable[[], object],
    ) -> None:
        self.blob = blob
        self.fill = fill
        self.options = options
        self._budget = budget
        self._spawn = spawn
        self._ended: Callable[[], object] | None = ended
        self._blocks = bytearray(blocks_in(blob.size_bytes))
        self._missing_bytes = blob.size_bytes
        self._windows: list[Window] = []
        self._readers = 0
        self._tasks = 0
        self._completing = False
        self._reached_end = False
        self._verifying = False
        self._closed = False
        self.error: DamagedContent | None = None
        """The content, now that it is whole, turned out not to be the stored one."""

    # -- readers ---------------------------------------------------------------------------------------

    def join(self) -> None:
        self._readers += 1

    def leave(self, source: RangeSource) -> None:
        """A reader is done. After the last one a fill that lacks little is completed (from that reader's
        source), any other is given up."""
        self._readers -= 1
        if self._readers == 0 and self._missing_bytes and self._ended is not None:
            if self._missing_bytes * _NEARLY <= self.blob.size_bytes:
                if not self._completing:
                    self._completing = True
                    self._run(partial(self._complete, source))
            else:
                self._give_up()
        self._verify_when_read()
        self._close_if_unused()

    def was_read_until(self, end: int) -> None:
        """A reader was given the bytes before ``end``."""
        if end == self.blob.size_bytes:
            self._reached_end = True
            self._verify_when_read()

    def missing(self, start: int, end: int) -> Iterator[Range]:
        """What nobody fetches yet. The windows made of it may be started while this is iterated."""
        last = blocks_in(end)
        block = self._blocks.find(_MISSING, start // CHECKSUM_BLOCK_BYTES, last)
        while block >= 0:
            stop = block
            while stop < last and self._blocks[stop] == _MISSING:
                stop += 1
            yield Range(block * CHECKSUM_BLOCK_BYTES, min(stop * CHECKSUM_BLOCK_BYTES, self.blob.size_bytes))
            block = self._blocks.find(_MISSING, stop, last)

    def coming(self, wanted: Range) -> list[Window]:
        """The windows under way that have bytes of ``wanted``."""
        return [window for window in self._windows if window.overlaps(wanted)]

    # -- windows ---------------------------------------------------------------------------------------

    def start(self, wanted: Range, source: RangeSource) -> Window:
        """Fetch a window, whose memory was taken from the budget."""
        window = Window(wanted)
        self._run(partial(window.run, partial(self._fetch, wanted, source), self._finished))
        self._windows.append(window)
        self._mark(wanted, _COMING)
        return window

    async def _fetch(self, wanted: Range, source: RangeSource) -> bytes:
        length = wanted.end - wanted.start
        await self.fill.reserve(length)
        try:
            data = await fetch_checked(source, self.blob, wanted)
            await self.fill.write(wanted.start, data)
        except BaseException:
            self.fill.unreserve(length)
            raise
        self._mark(wanted, _HERE)
        self._missing_bytes -= length
        if self._missing_bytes == 0:
            if length == self.blob.size_bytes:
                self._commit()  # its digest was checked on arrival
            else:
                self._verify_when_read()
        return b""

    def _finished(self, window: Window) -> None:
        self._windows.remove(window)
        self._budget.give_back(window.size_bytes)
        if window.error is not None:
            self._mark(window.range, _MISSING)

    def _mark(self, wanted: Range, state: int) -> None:
        first, last = wanted.start // CHECKSUM_BLOCK_BYTES, blocks_in(wanted.end)
        self._blocks[first:last] = bytes([state]) * (last - first)

    # -- the end ---------------------------------------------------------------------------------------

    def _verify_when_read(self) -> None:
        """No reader has to wait for the digest of the whole. It is computed when one of them is through, or
        all have left: before that it would take the processor from what they wait for."""
        if self._missing_bytes or self._verifying or self._ended is None:
            return
        if self._reached_end or self._readers == 0:
            self._verifying = True
            self._run(self._verify_and_commit)

    async def _verify_and_commit(self) -> None:
        try:
            with local_errors(f"reading {self.fill.path}"):
                is_whole = await file_is_content(self.fill.file.fd, self.blob.digests)
        except TierError as error:
            log.warning("%s cannot be cached: %s", self.blob.location.object_key, error)
            self._end()
            return
        if is_whole:
            self._commit()
            return
        key = self.blob.location.object_key
        self.error = DamagedContent(f"{key}: the content's digest is not the stored one")
        log.warning("%s", self.error)
        self._end()

    def _commit(self) -> None:
        try:
            self.fill.commit()
        except TierError as error:
            # Its readers have it all the same, until they close.
            log.warning("%s cannot be cached: %s", self.blob.location.object_key, error)
        self._end()

    async def _complete(self, source: RangeSource) -> None:
        """Fetch what is missing though nobody reads."""
        while self._missing_bytes and self._ended is not None:
            for part in self.missing(0, self.blob.size_bytes):
                wanted = Range(part.start, min(part.end, part.start + self.options.window_bytes))
                if len(self._windows) >= self.options.parallel_windows:
                    break
                self._budget.take(wanted.end - wanted.start)
                self.start(wanted, source)
            try:
                await self._windows[0].wait()
            except S3BlobFSError as error:
                log.info("%s is not cached: %s", self.blob.location.object_key, error)
                if self._readers == 0:
                    self._give_up()
                break
        self._completing = False

    def _give_up(self) -> None:
        self._end()
        for window in self._windows:
            window.cancel()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await task()
            finally:
                self._tasks -= 1
                self._close_if_unused()

        self._spawn(run)
        self._tasks += 1

    def _close_if_unused(self) -> None:
        """The file stays open as long as a reader or a task may touch it."""
        if self._readers or self._tasks or self._closed:
            return
        self._closed = True
        self._end()
        try:
            self.fill.close()
        except TierError as error:
            log.warning("%s", error)


class FillReader:
    """One reader of a fill."""

    def __init__(self, shared: SharedFill, source: RangeSource, budget: MemoryBudget) -> None:
        self._shared = shared
        self._source = source
        self._budget = budget
        self._ahead = ReadAhead(shared.blob.size_bytes, shared.options)
        self._own: list[Window] = []  # started for this reader; those that are still on their way count
        shared.join()

    @property
    def damaged(self) -> bool:
        """Nothing can be read here any more."""
        return self._shared.error is not None

    async def read(self, offset: int, size: int) -> Buffer:
        """See :class:`~s3blobfs.tier.windows.ContentReader`; within the content."""
        parts = []
        for start, length in pieces(offset, size, self._shared.options.window_bytes):
            self._ahead.note(start, length)
            wanted = self._ahead.demand
            self._start_windows()
            for window in self._shared.coming(wanted):
                await window.wait()
            if self._shared.error is not None:
                raise self._shared.error
            parts.append(await self._shared.fill.read(start, length))
            self._shared.was_read_until(start + length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self._shared.leave(self._source)

    def _start_windows(self) -> None:
        shared, demand = self._shared, self._ahead.demand
        if shared.blob.size_bytes <= shared.options.small_file_bytes:
            for whole in shared.missing(0, shared.blob.size_bytes):
                self._budget.take(shared.blob.size_bytes)
                shared.start(whole, self._source)
            return
        self._own = [window for window in self._own if not window.arrived]
        for wanted in self._ahead.cut(shared.missing(demand.start, self._ahead.until)):
            length = wanted.end - wanted.start
            if wanted.start < demand.end:
                self._budget.take(length)
            elif len(self._own) >= shared.options.parallel_windows or not self._budget.try_take(length):
                return
            self._own.append(shared.start(wanted, self._source))
