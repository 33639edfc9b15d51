"""The index's engine: SQLite through apsw, with grouped commits.

Three things make it quick without making it weak:

* *No thread between.* Statements run on the trio thread, on one connection: each takes microseconds, and
  handing it to a worker thread and back would take many times as long. What waits for the disk (syncs,
  checkpoints, checks of the whole file) runs in worker threads on connections and descriptors of its own.
* *Group commit.* ``write(fn)`` runs ``fn`` in a savepoint of a transaction that is open already, or opens
  one; it is committed for all of them together, a moment later (``commit_delay_s``) or when somebody needs
  it on disk. Within the process every later read and write sees them at once.
* *Shared syncs.* A COMMIT hands its pages to the operating system (that survives ``kill -9``) and does not
  wait for the disk (that survives a power cut). Durability is one fdatasync of the write-ahead log for all
  callers who wait for it.

The main database file is never opened here except by SQLite: closing any descriptor of a file drops all
POSIX locks that the process has on it, SQLite's too. The log (``-wal``) has none.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import CoroutineType
from typing import NoReturn, TypeVar

import apsw
import trio

from s3blobfs.errors import FilesystemError, IndexFenced, IndexUnavailable, VolumeIndexError
from s3blobfs.index import connect, schema
from s3blobfs.index.capture import BACKLOG_BYTES, Capture, Changes
from s3blobfs.index.check import Problem, check
from s3blobfs.index.copying import PinnedState
from s3blobfs.index.log import WriteAheadLog
from s3blobfs.index.sharedsync import SharedSync
from s3blobfs.index.transaction import Transaction, mapped
from s3blobfs.trace import Count, Tracer

T = TypeVar("T")

SYNC_INTERVAL_S = 5.0
"""What nobody asked to be durable is so after at most about this long, as on an ordinary filesystem."""

_logger = logging.getLogger(__name__)


class Database:
    """An open index. Its methods are for the trio thread.

    ``read`` and ``write`` are async although today neither waits for the disk: another engine would, and
    :meth:`write` does while the log is being emptied. So callers must not conclude from their not being
    suspended that nothing else has run; what belongs together is done in one ``fn``. For the same reason
    they are no trio checkpoints: do not poll with them.

    After a failed COMMIT or sync nothing that was acknowledged since can be relied on, and nothing more is
    accepted: every call raises :class:`IndexUnavailable` until the volume is mounted again.
    """

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        *,
        tracer: Tracer,
        commit_delay_s: float,
        read_only: bool,
    ) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self._connection = connection
        self._tracer = tracer
        self._commit_delay_s = commit_delay_s
        ((sequence,),) = connection.execute("SELECT sequence FROM counters")
        self._sequence: int = sequence
        self._committed: int = sequence
        self._reading = Transaction(connection, writable=False, sequence=sequence)
        self._writing = Transaction(connection, writable=True, sequence=sequence)
        self._in_fn = False
        self._unusable: VolumeIndexError | None = None
        self._fenced: str | None = None
        self._closed = False
        self._capture: Capture | None = None

        self._group_open = False
        self._group_deadline = 0.0
        self._group_opened = trio.Event()

        # What the process before this one wrote last may not be on disk yet, though it can be read.
        self._durability = SharedSync(self._commit_group, self._sync_log, durable=sequence - 1)
        self._log: WriteAheadLog | None = None if read_only else WriteAheadLog(path, connection)
        self._gate: trio.Event | None = None
        """While this is set, writers wait for it."""

    # -- opening and closing -----------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, tracer: Tracer, commit_delay_s: float = 0.05) -> Database:
        """A new, empty index, readable by its owner alone.

        Raises :class:`UsageError` when the file exists, :class:`IndexUnavailable`."""
        connect.create_file(path)
        try:
            return cls._opened(path, tracer, commit_delay_s, new=True)
        except BaseException:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        tracer: Tracer,
        commit_delay_s: float = 0.05,
        read_only: bool = False,
        damaged: bool = False,
    ) -> Database:
        """Open an index, bringing an older one to the newest version. With ``damaged`` it is not looked
        over first: for a check, which says what is wrong with it.

        Raises :class:`IndexDamaged`, :class:`IndexTooNew`, :class:`IndexUnavailable` (also when there is no
        such file, or when it is older and ``read_only``)."""
        return cls._opened(path, tracer, commit_delay_s, read_only=read_only, damaged=damaged)

    @classmethod
    def _opened(
        cls,
        path: Path,
        tracer: Tracer,
        commit_delay_s: float,
        *,
        new: bool = False,
        read_only: bool = False,
        damaged: bool = False,
    ) -> Database:
        try:
            connection = connect.connect(path, read_only=read_only)
            try:
                if not new:
                    connect.verify(connection, path, quick_check=not damaged)
                if read_only:
                    schema.require_newest(connection, schema.MIGRATIONS)
                else:
                    connect.start_log(connection)
                    schema.migrate(connection, schema.MIGRATIONS)
                return cls(
                    path, connection, tracer=tracer, commit_delay_s=commit_delay_s, read_only=read_only
                )
            except BaseException:
                connection.close(True)
                raise
        except apsw.Error as error:
            failure = mapped(error)
            raise type(failure)(f"{path}: {failure}") from error
        except OSError as error:
            raise IndexUnavailable(f"{path}: {error.strerror}") from error

    async def aclose(self) -> None:
        """Commit, empty the log into the database, close. Cannot be cancelled; a second call does nothing.

        Raises :class:`IndexUnavailable` when the last changes could not be made durable; closed it is."""
        if self._closed:
            return
        with trio.CancelScope(shield=True):
            try:
                if self._log is not None and self._unusable is None:
                    await self.commit()
                    await self._log.checkpoint(truncate=True)
            finally:
                self._close()

    # -- transactions ------------------------------------------------------------------------------------

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run ``fn`` on one state of the index, which includes all writes that have returned.

        ``fn`` must not be async, must not change anything and must not outlive the call. Raises what ``fn``
        raises, :class:`IndexDamaged`, :class:`IndexUnavailable`."""
        if self._unusable is not None or self._in_fn:
            self._refuse()
        self._tracer.count(Count.INDEX_READ)
        self._in_fn = True
        try:
            return _finished(fn(self._reading))
        except apsw.Error as error:
            raise mapped(error) from error
        finally:
            self._in_fn = False

    async def write(self, fn: Callable[[Transaction], T], *, durable: bool = False) -> T:
        """Run ``fn`` in a transaction: all of its changes or, when it raises, none.

        When this returns, every later read sees the changes; they survive the end of the process after
        ``commit_delay_s``, and a power cut after the next :meth:`commit`, or at once with ``durable``.
        When it is cancelled while it waits for the disk, the changes stay, as those of a write that is not
        durable. ``fn`` runs once at most, must not be async and must not nest. Raises what ``fn`` raises,
        :class:`IndexDamaged`, :class:`IndexUnavailable`; EROFS on an index opened read-only."""
        while self._gate is not None:
            await self._gate.wait()
        result = self._write(fn)
        if durable:
            await self._durability.up_to(self._sequence)
        return result

    async def commit(self) -> None:
        """Return when everything written so far is on disk. Raises :class:`IndexUnavailable`."""
        if self._unusable is not None:
            self._refuse()
        if self._log is not None:
            await self._durability.up_to(self._sequence)

    async def flush(self) -> None:
        """Return when everything written so far survives the end of the process, however it comes; it may
        not survive a power cut yet. Raises :class:`IndexUnavailable`."""
        if self._unusable is not None:
            self._refuse()
        if self._log is not None:
            self._commit_group()

    async def note(self, fn: Callable[[Transaction], None]) -> None:
        """As a durable :meth:`write`, for what is about this file and no change of the volume: it gets no
        number and is not captured. Everything written before is durable then as well."""
        while self._gate is not None:
            await self._gate.wait()
        self._write(fn, counted=False)
        reached = self._commit_group()
        await self._sync_log()
        self._durability.durable = max(self._durability.durable, reached)

    @property
    def sequence(self) -> int:
        """The number of the newest write."""
        return self._sequence

    @property
    def unusable(self) -> VolumeIndexError | None:
        """Why nothing is accepted any more until the volume is mounted again; ``None`` while all is well."""
        return self._unusable

    @property
    def schema_version(self) -> int:
        return len(schema.MIGRATIONS)

    def fence(self, reason: str) -> None:
        """Refuse every write from now on with :class:`IndexFenced`; reads go on."""
        self._fenced = reason

    # -- for a copy ----------------------------------------------------------------------------------------

    def capture(
        self,
        on_changes: Callable[[], None],
        *,
        now_ns: Callable[[], int] = time.time_ns,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> Capture:
        """Note what is changed from now on; see :class:`Capture`. Once; the caller looks at it and restarts
        it, and takes changes by :meth:`captured` and :meth:`pin`."""
        assert self._capture is None, "an index is captured once"
        self._commit_group()
        self._capture = Capture(
            self._connection,
            self._committed,
            on_changes=on_changes,
            now_ns=now_ns,
            backlog_bytes=backlog_bytes,
        )
        return self._capture

    async def captured(self) -> list[Changes]:
        """Take what was changed until now. It is committed, and not durable before :meth:`commit` or
        :meth:`note`. Raises :class:`IndexUnavailable`."""
        assert self._capture is not None, "the index is not captured"
        self._commit_group()
        return self._capture.take()

    async def pin(self) -> tuple[PinnedState, list[Changes]]:
        """The present state, to be copied, and what was captured until it: later changes follow on from it.
        Raises :class:`IndexUnavailable`."""
        sequence = self._commit_group()
        try:
            pinned = PinnedState(self.path, sequence)
        except apsw.Error as error:
            raise mapped(error) from error
        if self._capture is None:
            return pinned, []
        changes = self._capture.take()
        if self._capture.lost:
            self._capture.restart()
        return pinned, changes

    # -- aside ---------------------------------------------------------------------------------------------

    async def read_aside(self, fn: Callable[[Transaction], T]) -> T:
        """As :meth:`read`, for what takes long: in a worker thread and on a connection of its own, on the
        state of the index when this is called. ``fn`` must be fit for another thread."""
        if self._unusable is not None:
            self._refuse()
        self._commit_group()
        self._tracer.count(Count.INDEX_READ)

        def in_thread() -> T:
            # SQLite does not even read CHECK constraints where the file is opened read-only, so a check would
            # not find rows that violate one.
            connection = connect.connect(self.path, read_only=self._log is None)
            try:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
                return fn(Transaction(connection, writable=False, sequence=self._committed))
            finally:
                connection.close(True)

        try:
            return await trio.to_thread.run_sync(in_thread)
        except apsw.Error as error:
            raise mapped(error) from error

    async def check(self, staged_names: Collection[str] | None = None) -> list[Problem]:
        """Everything that is wrong with the index, now; see :mod:`s3blobfs.index.check`."""
        return await self.read_aside(lambda tx: check(tx, staged_names))

    # -- in the background -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit open groups in time, sync now and then, and keep the log short, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._log is not None:
                nursery.start_soon(self._commit_in_time)
                nursery.start_soon(self._sync_now_and_then)
                nursery.start_soon(self._keep_log_short)
            task_status.started()
            await trio.sleep_forever()

    async def _commit_in_time(self) -> None:
        while self._unusable is None:
            await self._group_opened.wait()
            await trio.sleep_until(self._group_deadline)
            # The group for which this slept may have been committed, and the one open now be a later one.
            if self._group_open and trio.current_time() >= self._group_deadline:
                # A failure is in the log, and every further call will say so.
                with contextlib.suppress(VolumeIndexError):
                    self._commit_group()

    async def _sync_now_and_then(self) -> None:
        while self._unusable is None:
            if self._durability.durable >= self._sequence:
                await self._group_opened.wait()
            await trio.sleep(SYNC_INTERVAL_S)
            with contextlib.suppress(VolumeIndexError):  # as above
                await self._durability.up_to(self._committed)

    async def _keep_log_short(self) -> None:
        """While anybody writes, the log cannot start anew behind a checkpoint: there is always something in
        it that is not copied yet. So when it has become long in spite of checkpoints, writers are held up
        for the last of them, which has little left to copy."""
        assert self._log is not None
        while True:
            await self._log.wait_grown()
            await self._log.checkpoint(truncate=False)
            if not self._log.too_long:
                continue
            gate = self._gate = trio.Event()
            try:
                self._commit_group()
                await self._log.checkpoint(truncate=True)
            except VolumeIndexError:
                return  # as above
            finally:
                self._gate = None
                gate.set()

    async def _sync_log(self) -> None:
        assert self._log is not None
        try:
            await self._log.sync()
        except OSError as error:
            # Never tried again: the kernel may have dropped the pages, and a second sync would be a lie.
            raise self._fail(f"cannot be synced to disk: {error.strerror}") from error

    # -- the group -------------------------------------------------------------------------------------

    def _write(self, fn: Callable[[Transaction], T], *, counted: bool = True) -> T:
        if self._unusable is not None or self._fenced is not None or self._in_fn or self._log is None:
            self._refuse()
        self._tracer.count(Count.INDEX_WRITE)
        execute = self._connection.execute
        try:
            if not self._group_open:
                execute("BEGIN IMMEDIATE")
                self._group_open = True
                self._group_deadline = trio.current_time() + self._commit_delay_s
                self._group_opened.set()
            execute("SAVEPOINT one_write")
            self._sequence += counted
            self._writing.sequence = self._reading.sequence = self._sequence
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
            raise self._fail(f"lost changes: {error}") from error

    def _commit_group(self) -> int:
        """Hand everything written so far to the operating system; returns the number reached.

        Raises :class:`IndexUnavailable`."""
        if self._unusable is not None or self._in_fn:
            self._refuse()
        if self._group_open:
            try:
                self._connection.execute("UPDATE counters SET sequence = ?", (self._sequence,))
                self._connection.execute("COMMIT")
            except apsw.Error as error:
                raise self._fail(f"cannot commit: {error}") from error
            self._group_open = False
            self._group_opened = trio.Event()
            self._committed = self._sequence
            self._tracer.count(Count.INDEX_COMMIT)
            if self._capture is not None:
                self._capture.committed(self._committed)
        return self._committed

    def _fail(self, detail: str) -> IndexUnavailable:
        """Accept nothing more; returns the error to raise."""
        self._unusable = failure = IndexUnavailable(f"the index {detail}; unmount and mount again")
        _logger.error("%s: %s", self.path, failure)
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                _logger.debug("nor rolled back: %s", error)
        self._group_open = False
        return failure

    def _refuse(self) -> NoReturn:
        if self._unusable is not None:
            raise IndexUnavailable(str(self._unusable)) from self._unusable
        if self._in_fn:
            raise RuntimeError("transactions of the index do not nest")
        if self._fenced is not None:
            raise IndexFenced(self._fenced)
        raise FilesystemError(errno.EROFS)

    def _close(self) -> None:
        self._closed = True
        if self._unusable is None:
            self._unusable = IndexUnavailable("the index is closed")
        if self._capture is not None:
            self._capture.close()
        self._connection.close(True)
        if self._log is not None:
            self._log.close()


def _finished(result: T) -> T:
    """``fn`` ran to its end; an async one only promised to."""
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("a transaction's function must not be async")
    return result
