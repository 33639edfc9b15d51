"""SQLite's write-ahead log as a file: syncing it, and copying it into the database before it gets long."""

from __future__ import annotations

import enum
import logging
import os
from functools import partial
from pathlib import Path

import apsw
import trio

from s3blobfs.config import MIB
from s3blobfs.index import connect
from s3blobfs.threads import run_in_thread

_PAGE_BYTES = 4096
CHECKPOINT_PAGES = 4 * MIB // _PAGE_BYTES
"""The log is copied into the database each time it has grown by this much."""
RESTART_PAGES = 8 * MIB // _PAGE_BYTES
"""From here on writers have to wait for a moment so that the log can start anew, from the beginning of the
file that there is. To overwrite takes a third less processor time than to append, and half as long to sync:
the disk's filesystem has nothing to note of blocks that the file has already."""
FULL_PAGES = 32 * MIB // _PAGE_BYTES
"""A log that is so long gets no longer while it is copied: on a disk that is slow to sync, writers would
otherwise be ahead of the copying."""
TRUNCATE_PAGES = 64 * MIB // _PAGE_BYTES
"""A log that has become so long, because something kept it from starting anew, gives its room back."""

_log = logging.getLogger(__name__)


class Checkpoint(enum.Enum):
    """What becomes of the log; the value is SQLite's."""

    PASSIVE = apsw.SQLITE_CHECKPOINT_PASSIVE
    """It goes on growing unless everything was copied."""
    RESTART = apsw.SQLITE_CHECKPOINT_RESTART
    """The next commit begins it anew."""
    TRUNCATE = apsw.SQLITE_CHECKPOINT_TRUNCATE
    """The same, in an empty file."""


class WriteAheadLog:
    """The log of one open index. Owns a descriptor of the ``-wal`` file, which has no locks to lose."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        """``path`` is the index, ``connection`` the one that writes to it. Raises :class:`OSError`."""
        self._path = path
        self._descriptor = os.open(connection.filename_wal, os.O_RDONLY | os.O_CLOEXEC)
        self._limiter = trio.CapacityLimiter(1)
        self._pages = 0
        self._checkpoint_at = CHECKPOINT_PAGES
        self._grown = trio.Event()
        connection.set_wal_hook(self._note_size)
        connect.sync_directory(path.parent)

    def close(self) -> None:
        os.close(self._descriptor)

    async def sync(self) -> None:
        """Bring to the disk what was committed before; in a worker thread. Raises :class:`OSError`."""
        await run_in_thread(partial(os.fdatasync, self._descriptor), self._limiter)

    @property
    def too_long(self) -> bool:
        """It is to start anew, which checkpoints alone do not bring about."""
        return self._pages >= RESTART_PAGES

    @property
    def full(self) -> bool:
        """It is not to grow while it is copied."""
        return self._pages >= FULL_PAGES

    async def restart(self) -> None:
        """Let it start anew, while nobody writes."""
        await self.checkpoint(Checkpoint.TRUNCATE if self._pages >= TRUNCATE_PAGES else Checkpoint.RESTART)

    async def wait_grown(self) -> None:
        """Return when the log has grown enough for the next checkpoint."""
        self._checkpoint_at = self._pages + CHECKPOINT_PAGES
        self._grown = trio.Event()
        await self._grown.wait()

    async def checkpoint(self, kind: Checkpoint) -> None:
        """Copy the log into the database, in a worker thread.

        Not being able to is no misfortune: the log has everything, and the next attempt comes when it has
        grown further."""

        def in_thread() -> None:
            connection = connect.connect(self._path)
            try:
                connection.set_busy_timeout(0)
                connect.start_log(connection)
                connection.wal_checkpoint(mode=kind.value)
            finally:
                connection.close(True)

        try:
            await trio.to_thread.run_sync(in_thread)
        except apsw.BusyError:
            _log.debug("a long read of the index keeps its log from starting anew")
        except apsw.Error as error:
            _log.warning("the log of %s cannot be copied into it: %s", self._path, error)

    def _note_size(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        """Called by SQLite within each COMMIT."""
        if pages < self._pages:
            # It has started anew.
            self._checkpoint_at = CHECKPOINT_PAGES
        self._pages = pages
        if pages >= self._checkpoint_at:
            self._grown.set()
        return apsw.SQLITE_OK
