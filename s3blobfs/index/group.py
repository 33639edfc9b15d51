"""The transactions of an index on its one connection: reads, and writes that are committed in groups.

``write`` runs its function in a savepoint of a transaction that is open already, or opens one; it is
committed for all of them together, a moment later or when somebody needs that. A COMMIT hands the pages to
the operating system and does not wait for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from types import CoroutineType
from typing import NoReturn, TypeVar

import apsw
import trio

from s3blobfs.errors import FilesystemError, IndexFenced, IndexUnavailable, VolumeIndexError
from s3blobfs.index.transaction import Transaction, mapped
from s3blobfs.trace import Count, Tracer

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Group:
    """Writes that are committed together, one group after the other. For the trio thread.

    After a failure nothing more is accepted: every call raises :class:`IndexUnavailable`."""

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        *,
        tracer: Tracer,
        commit_delay_s: float,
        read_only: bool,
    ) -> None:
        self._path = path
        self._connection = connection
        self._tracer = tracer
        self._commit_delay_s = commit_delay_s
        self._read_only = read_only
        ((sequence,),) = connection.execute("SELECT sequence FROM counters")
        self.sequence: int = sequence
        """The number of the newest write."""
        self.committed: int = sequence
        """The number of the newest one that is committed."""
        self.opened = trio.Event()
        """Set while a group is open; another one for each."""
        self.on_commit: Callable[[int], None] | None = None
        """Told of the number that a commit reached."""
        self.fenced: str | None = None
        """Why no write is accepted any more."""
        self.unusable: VolumeIndexError | None = None
        self._reading = Transaction(connection, writable=False, sequence=sequence)
        self._writing = Transaction(connection, writable=True, sequence=sequence)
        self._in_fn = False
        self._is_open = False
        self._deadline = 0.0

    def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run ``fn`` on what was written so far. Raises what it raises, :class:`IndexDamaged`,
        :class:`IndexUnavailable`."""
        if self.unusable is not None or self._in_fn:
            self._refuse()
        self._tracer.count(Count.INDEX_READ)
        self._in_fn = True
        try:
            return _finished(fn(self._reading))
        except apsw.Error as error:
            raise mapped(error) from error
        finally:
            self._in_fn = False

    def write(self, fn: Callable[[Transaction], T], *, counted: bool = True) -> T:
        """Run ``fn`` in the open group: all of its changes or, when it raises, none. One that is not counted
        gets no number. Raises as :meth:`read`; :class:`IndexFenced`; EROFS on an index opened read-only."""
        if self.unusable is not None or self.fenced is not None or self._in_fn or self._read_only:
            self._refuse()
        self._tracer.count(Count.INDEX_WRITE)
        execute = self._connection.execute
        try:
            if not self._is_open:
                execute("BEGIN IMMEDIATE")
                self._is_open = True
                self._deadline = trio.current_time() + self._commit_delay_s
                self.opened.set()
            execute("SAVEPOINT one_write")
            self.sequence += counted
            self._writing.sequence = self._reading.sequence = self.sequence
            self._in_fn = True
            try:
                result = _finished(fn(self._writing))
                execute("RELEASE one_write")
            except BaseException as error:
                self._undo(error)
                raise
            finally:
                self._in_fn = False
        except apsw.Error as error:
            raise mapped(error) from error
        return result

    def _undo(self, error: BaseException) -> None:
        """Take back what the failed ``fn`` did, and nothing else."""
        try:
            self._connection.execute("ROLLBACK TO one_write")
            self._connection.execute("RELEASE one_write")
        except apsw.Error:
            # After some errors SQLite has rolled back the whole transaction, with what earlier writes were
            # told is there.
            raise self.fail(f"lost changes: {error}") from error

    def commit(self) -> int:
        """Hand everything written so far to the operating system; returns the number reached.

        Raises :class:`IndexUnavailable`."""
        if self.unusable is not None or self._in_fn:
            self._refuse()
        if self._is_open:
            try:
                self._connection.execute("UPDATE counters SET sequence = ?", (self.sequence,))
                self._connection.execute("COMMIT")
            except apsw.Error as error:
                raise self.fail(f"cannot commit: {error}") from error
            self._is_open = False
            self.opened = trio.Event()
            self.committed = self.sequence
            self._tracer.count(Count.INDEX_COMMIT)
            if self.on_commit is not None:
                self.on_commit(self.committed)
        return self.committed

    async def commit_in_time(self) -> None:
        """Commit each group when it is due, until cancelled or unusable."""
        while self.unusable is None:
            await self.opened.wait()
            await trio.sleep_until(self._deadline)
            # The group for which this slept may have been committed, and the one open now be a later one.
            if self._is_open and trio.current_time() >= self._deadline:
                # A failure is in the log, and every further call will say so.
                with contextlib.suppress(VolumeIndexError):
                    self.commit()

    def fail(self, detail: str) -> IndexUnavailable:
        """Accept nothing more; returns the error to raise."""
        self.unusable = failure = IndexUnavailable(f"the index {detail}; unmount and mount again")
        _logger.error("%s: %s", self._path, failure)
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                _logger.debug("nor rolled back: %s", error)
        self._is_open = False
        return failure

    def require_usable(self) -> None:
        """Raises :class:`IndexUnavailable`."""
        if self.unusable is not None:
            self._refuse()

    def end(self) -> None:
        """Nothing is accepted any more; what is open is the caller's to have committed."""
        if self.unusable is None:
            self.unusable = IndexUnavailable("the index is closed")

    def _refuse(self) -> NoReturn:
        if self.unusable is not None:
            raise IndexUnavailable(str(self.unusable)) from self.unusable
        if self._in_fn:
            raise RuntimeError("transactions of the index do not nest")
        if self.fenced is not None:
            raise IndexFenced(self.fenced)
        raise FilesystemError(errno.EROFS)


def _finished(result: T) -> T:
    """``fn`` ran to its end; an async one only promised to."""
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("a transaction's function must not be async")
    return result
