"""What a caller holds of an upload that runs behind: tickets, and the barrier over many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from s3blobfs.errors import S3BlobFSError


@dataclass(eq=False, slots=True)
class _Waiter:
    event: trio.Event = field(default_factory=trio.Event)
    error: S3BlobFSError | None = None


class UploadTicket:
    """One content on its way to S3. When a later content of the same file takes its place, the ticket goes
    on to that one's upload.

    The uploader calls everything but :meth:`wait`."""

    __slots__ = ("_error", "_on_done", "_waiters", "done", "inode_id", "size_bytes", "upload_id")

    def __init__(self, upload_id: int, inode_id: int, size_bytes: int) -> None:
        self.upload_id = upload_id
        self.inode_id = inode_id
        self.size_bytes = size_bytes
        self.done = False
        """The content, or a later one of the file, is in S3 and in the index; or the file is gone."""
        self._error: S3BlobFSError | None = None
        self._waiters: set[_Waiter] = set()
        self._on_done: list[Callable[[UploadTicket], None]] = []

    async def wait(self) -> None:
        """Return when it is done. Raises the error of the first attempt that fails meanwhile; the upload
        stays queued all the same and is tried again."""
        if self.done:
            await trio.lowlevel.checkpoint()
            return
        if self._error is not None:
            await trio.lowlevel.checkpoint()
            raise self._error
        waiter = _Waiter()
        self._waiters.add(waiter)
        try:
            await waiter.event.wait()
        finally:
            self._waiters.discard(waiter)
        if waiter.error is not None:
            raise waiter.error

    def succeed(self) -> None:
        self.done = True
        self._wake(None)
        callbacks, self._on_done = self._on_done, []
        for callback in callbacks:
            callback(self)

    def fail(self, error: S3BlobFSError) -> None:
        """An attempt failed: those who wait now hear of it, those who begin later wait for the next one."""
        self._wake(error)

    def stop(self, error: S3BlobFSError) -> None:
        """No further attempt will be made: whoever waits, now or later, hears of it."""
        self._error = error
        self._wake(error)
        callbacks, self._on_done = self._on_done, []
        for callback in callbacks:
            callback(self)

    @property
    def error(self) -> S3BlobFSError | None:
        """Why no further attempt is made; ``None`` while it is not so."""
        return self._error

    def on_done(self, callback: Callable[[UploadTicket], None]) -> None:
        """Call back once, when it is done or stopped. Only for a ticket that is neither."""
        self._on_done.append(callback)

    def _wake(self, error: S3BlobFSError | None) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            waiter.error = error
            waiter.event.set()


class Barrier:
    """Counts a number of tickets down."""

    def __init__(self, tickets: list[UploadTicket]) -> None:
        self.files_left = len(tickets)
        self.bytes_left = sum(ticket.size_bytes for ticket in tickets)
        self._error: S3BlobFSError | None = None
        self._changed = trio.Event()
        for ticket in tickets:
            if ticket.error is None:
                ticket.on_done(self._count_down)
            else:
                self._count_down(ticket)

    def _count_down(self, ticket: UploadTicket) -> None:
        if ticket.error is not None:
            self._error = ticket.error
        else:
            self.files_left -= 1
            self.bytes_left -= ticket.size_bytes
        self._changed.set()

    async def changed(self) -> None:
        """Return after at least one more ticket is done; raises the error of one that is stopped."""
        await self._changed.wait()
        if self._error is not None:
            raise self._error
        self._changed = trio.Event()
