"""Uploads and deletions of one content exclude each other.

In a ``digest`` store an upload that finds its object there (HEAD) counts on it from that moment, and says so
in the index only later. In between the object must not be deleted, even if nothing in the index refers to it:

    upload                          reaper
    HEAD → exists
                                    DELETE, forget the row
    a new row names the object      ... which is gone

So whoever stores a content holds a claim on it from before the first request until after the commit; the
reaper deletes only what nobody claims, and a claim waits while the reaper deletes. An upload that then still
meets a row marked as DELETING waits for it (:meth:`ContentClaims.wait_reaped`), its claim given back.

This orders the tasks of one process; a volume is written by one process at a time.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import trio

ContentName = tuple[int, bytes]
"""Store id and SHA-256."""


@dataclass(slots=True)
class ContentClaims:
    """Who is at work on which content; shared by all that store or delete."""

    _uploads: collections.Counter[ContentName] = field(default_factory=collections.Counter)
    _reaping: dict[ContentName, trio.Event] = field(default_factory=dict)
    _reaped: trio.Event = field(default_factory=trio.Event)

    @contextlib.asynccontextmanager
    async def storing(self, store_id: int, sha256: bytes) -> AsyncIterator[None]:
        """Hold a claim; any number may, for the same content too. Waits while it is being deleted."""
        while (reaping := self._reaping.get((store_id, sha256))) is not None:
            await reaping.wait()
        claimed = self.try_claim(store_id, sha256)
        assert claimed, "nobody deletes it"
        try:
            yield
        finally:
            self.release(store_id, sha256)

    def try_claim(self, store_id: int, sha256: bytes) -> bool:
        """Take a claim, to be given back by :meth:`release`; not while the content is being deleted."""
        name = (store_id, sha256)
        if name in self._reaping:
            return False
        self._uploads[name] += 1
        return True

    def release(self, store_id: int, sha256: bytes) -> None:
        name = (store_id, sha256)
        self._uploads[name] -= 1
        if not self._uploads[name]:
            del self._uploads[name]

    def is_claimed(self, store_id: int, sha256: bytes) -> bool:
        return (store_id, sha256) in self._uploads

    def is_free(self, store_id: int, sha256: bytes) -> bool:
        """Whether nobody stores or deletes the content now, so that it can be kept out of claims."""
        name = (store_id, sha256)
        return name not in self._uploads and name not in self._reaping

    @contextlib.contextmanager
    def reaping(self, names: list[ContentName]) -> Iterator[None]:
        """Keep claims on these contents waiting; none of them may be claimed."""
        assert not any(name in self._uploads for name in names)
        over = trio.Event()
        self._reaping.update(dict.fromkeys(names, over))
        try:
            yield
        finally:
            for name in names:
                self._reaping.pop(name, None)
            over.set()
            self._reaped.set()
            self._reaped = trio.Event()

    async def wait_reaped(self, timeout_s: float) -> None:
        """Return after the reaper has next ended a batch, or after ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            await self._reaped.wait()
