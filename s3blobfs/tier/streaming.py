"""Reading what is not to be cached: windows in memory, nothing on the disk.

A small content is fetched whole, shared by its readers and kept while it is open, memory permitting. Of a
larger one every reader has windows of its own: at most ``parallel_windows``, and no window is fetched twice
while it reads on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from s3blobfs.config import ReadOptions
from s3blobfs.tier.memory import MemoryBudget
from s3blobfs.tier.windows import (
    NEAR_BYTES,
    Range,
    RangeSource,
    ReadAhead,
    Spawn,
    Window,
    fetch_checked,
    pieces,
)
from s3blobfs.types import BlobContent, Buffer


class StreamReader:
    """A reader of one content with windows of its own (:class:`~s3blobfs.tier.windows.ContentReader`)."""

    def __init__(
        self,
        blob: BlobContent,
        source: RangeSource,
        options: ReadOptions,
        budget: MemoryBudget,
        spawn: Spawn,
    ) -> None:
        self._blob = blob
        self._source = source
        self._options = options
        self._budget = budget
        self._spawn = spawn
        self._ahead = ReadAhead(blob.size_bytes, options)
        self._windows: list[Window] = []
        self._closed = False

    @property
    def window_count(self) -> int:
        """Windows held or under way."""
        return len(self._windows)

    async def read(self, offset: int, size: int) -> Buffer:
        """See :class:`~s3blobfs.tier.windows.ContentReader`."""
        size = min(size, self._blob.size_bytes - offset)
        parts = []
        for start, length in pieces(offset, max(0, size), self._options.window_bytes):
            self._ahead.note(start, length)
            end = start + length
            while start < end:
                part = await self._read_from_window(start, end)
                parts.append(part)
                start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def aclose(self) -> None:
        self._closed = True
        for window in tuple(self._windows):
            if window.arrived:
                self._drop(window)
            else:
                window.cancel()

    async def _read_from_window(self, start: int, end: int) -> Buffer:
        """Some of the bytes from ``start`` to ``end``, the first of them included."""
        while (window := self._holding(start)) is None:
            if self._make_way(start):
                self._start_demanded(start, end)
            else:
                await self._windows[0].ended()
        self._fetch_ahead()
        await window.wait()
        base = window.range.start
        return window.data[start - base : end - base]

    # -- windows ---------------------------------------------------------------------------------------

    def _holding(self, position: int) -> Window | None:
        return next((w for w in self._windows if w.range.start <= position < w.range.end), None)

    def _missing(self, start: int, end: int) -> Iterator[Range]:
        for window in sorted(self._windows, key=lambda w: w.range.start):
            if window.range.end <= start:
                continue
            if window.range.start >= end:
                break
            if window.range.start > start:
                yield Range(start, window.range.start)
            start = window.range.end
        if start < end:
            yield Range(start, end)

    def _make_way(self, position: int) -> bool:
        """Whether there is room for one more window: drops what was read, else what is the furthest ahead.
        False while all that are held are on their way."""
        if len(self._windows) < self._options.parallel_windows:
            return True
        arrived = [w for w in self._windows if w.arrived]
        if not arrived:
            return False
        behind = [w for w in arrived if w.range.end <= position]
        by_start = sorted(behind or arrived, key=lambda w: w.range.start)
        self._drop(by_start[0] if behind else by_start[-1])
        return True

    def _start_demanded(self, start: int, end: int) -> None:
        demanded = self._ahead.window_at(start, end)
        wanted = next(self._missing(demanded.start, demanded.end))
        if not self._budget.try_take(wanted.end - wanted.start):
            for window in [w for w in self._windows if w.arrived]:
                self._drop(window)
            self._budget.take(wanted.end - wanted.start)
        self._start(wanted)

    def _fetch_ahead(self) -> None:
        if not self._ahead.reads_on:
            return
        done = self._ahead.demand.start - NEAR_BYTES
        for window in [w for w in self._windows if w.arrived and w.range.end <= done]:
            self._drop(window)
        missing = tuple(self._missing(self._ahead.demand.start, self._ahead.until))
        for wanted in self._ahead.cut(missing):
            if len(self._windows) >= self._options.parallel_windows:
                return
            if not self._budget.try_take(wanted.end - wanted.start):
                return
            self._start(wanted)

    def _start(self, wanted: Range) -> None:
        window = Window(wanted)
        work = partial(fetch_checked, self._source, self._blob, wanted)
        self._spawn(partial(window.run, work, self._finished))
        self._windows.append(window)

    def _finished(self, window: Window) -> None:
        if window.error is not None or self._closed:
            self._drop(window)

    def _drop(self, window: Window) -> None:
        self._windows.remove(window)
        self._budget.give_back(window.size_bytes)


class SmallContent:
    """A content that is fetched whole, for all its readers."""

    def __init__(self, blob: BlobContent, budget: MemoryBudget, spawn: Spawn) -> None:
        self._blob = blob
        self._budget = budget
        self._spawn = spawn
        self._window: Window | None = None
        self._data: Buffer | None = None
        self.readers = 0

    async def read(self, source: RangeSource, offset: int, size: int) -> Buffer:
        """See :class:`~s3blobfs.tier.windows.ContentReader`."""
        size = min(size, self._blob.size_bytes - offset)
        if size <= 0:
            return b""
        data = self._data
        if data is None:
            window = self._window or self._start(source)
            await window.wait()
            data = window.data
        if self._data is not None:
            self._budget.keep(self, self._give_up)
        return data[offset : offset + size]

    def close(self) -> None:
        """The last reader is gone."""
        if self._window is not None:
            self._window.cancel()
        if self._data is not None:
            self._budget.forget(self)
            self._give_up()

    def _start(self, source: RangeSource) -> Window:
        whole = Range(0, self._blob.size_bytes)
        window = self._window = Window(whole)
        self._budget.take(window.size_bytes)
        self._spawn(partial(window.run, partial(fetch_checked, source, self._blob, whole), self._finished))
        return window

    def _finished(self, window: Window) -> None:
        self._window = None
        if window.error is not None or self.readers == 0:
            self._budget.give_back(window.size_bytes)
        else:
            self._data = window.data
            self._budget.keep(self, self._give_up)

    def _give_up(self) -> None:
        self._data = None
        self._budget.give_back(self._blob.size_bytes)
