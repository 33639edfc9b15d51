"""A consistent copy of an index that is in use: a reader pins a state, and SQLite's backup copies it page by
page in a worker thread while others write on."""

from __future__ import annotations

from pathlib import Path

import apsw
import trio

from s3blobfs.index import connect
from s3blobfs.index.capture import LOCAL_TABLE
from s3blobfs.index.transaction import mapped

_PAGES_PER_STEP = 4096


class PinnedState:
    """One state of an index, readable until :meth:`close`. It keeps the write-ahead log from starting anew,
    so it is not to be kept for long."""

    def __init__(self, path: Path, sequence: int) -> None:
        """``sequence``: that of the last commit. Raises apsw's errors."""
        self.sequence = sequence
        self._connection = connect.connect(path, read_only=True)
        try:
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT sequence FROM counters").fetchall()
        except BaseException:
            self._connection.close(True)
            raise

    @property
    def schema_version(self) -> int:
        version: int = self._connection.pragma("user_version")
        return version

    async def copy_to(self, path: Path) -> None:
        """Make ``path`` an index of this state, one file without a log; whoever asks removes it when this
        raises (:class:`VolumeIndexError`) or is cancelled, which ends it soon however large the index is."""
        connect.create_file(path)
        try:
            await trio.to_thread.run_sync(self._copy, path)
        except apsw.Error as error:
            raise mapped(error) from error

    def _copy(self, path: Path) -> None:
        copy = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            with copy.backup("main", self._connection, "main") as backup:
                while not backup.done:
                    trio.from_thread.check_cancelled()
                    backup.step(_PAGES_PER_STEP)
            copy.pragma("journal_mode", "DELETE")
            copy.execute(f"DELETE FROM {LOCAL_TABLE}")  # noqa: S608
        finally:
            copy.close(True)

    def close(self) -> None:
        """Again is harmless; not while it is being copied."""
        self._connection.close(True)
