"""The index's engine: SQLite through apsw, with grouped commits.

Three things make it quick without making it weak:

* *No thread between.* Statements run on the trio thread, on one connection: each takes microseconds, and
  handing it to a worker thread and back would take many times as long. What waits for the disk (syncs,
  checkpoints, checks of the whole file) runs in worker threads on connections and descriptors of its own.
* *Group commit* (:mod:`s3blobfs.index.group`). Writes are committed together, a moment later
  (``commit_delay_s``) or when somebody needs them on disk. Within the process every later read and write
  sees them at once.
* *Shared syncs.* A COMMIT hands its pages to the operating system (that survives ``kill -9``) and does not
  wait for the disk (that survives a power cut). Durability is one fdatasync of the write-ahead log for all
  callers who wait for it.

The main database file is never opened here except by SQLite: closing any descriptor of a file drops all
POSIX locks that the process has on it, SQLite's too. The log (``-wal``) has none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import apsw
import trio

from s3blobfs.errors import IndexUnavailable, VolumeIndexError
from s3blobfs.index import connect, schema
from s3blobfs.index.capture import BACKLOG_BYTES, Capture, Changes
from s3blobfs.index.check import Problem, check
from s3blobfs.index.copying import PinnedState
from s3blobfs.index.group import Group
from s3blobfs.index.log import Checkpoint, WriteAheadLog
from s3blobfs.index.sharedsync import SharedSync
from s3blobfs.index.transaction import Transaction, mapped
from s3blobfs.trace import Count, Tracer

T = TypeVar("T")

SYNC_INTERVAL_S = 5.0
"""What nobody asked to be durable is so after at most about this long, as on an ordinary filesystem."""


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
        self._group = Group(
            path, connection, tracer=tracer, commit_delay_s=commit_delay_s, read_only=read_only
        )
        self._closed = False
        self._capture: Capture | None = None

        # What the process before this one wrote last may not be on disk yet, though it can be read.
        self._durability = SharedSync(self._group.commit, self._sync_log, durable=self._group.sequence - 1)
        self._log: WriteAheadLog | None = None if read_only else WriteAheadLog(path, connection)
        self._copied: trio.Event | None = None
        """Of the log's copying that is under way."""
        self._restarting = False
        """It ends with a new beginning of the log, for which nobody may write."""

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
                if self._log is not None and self._group.unusable is None:
                    await self.commit()
                    await self._log.checkpoint(Checkpoint.TRUNCATE)
            finally:
                self._close()

    # -- transactions ------------------------------------------------------------------------------------

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run ``fn`` on one state of the index, which includes all writes that have returned.

        ``fn`` must not be async, must not change anything and must not outlive the call. Raises what ``fn``
        raises, :class:`IndexDamaged`, :class:`IndexUnavailable`."""
        return self._group.read(fn)

    async def write(self, fn: Callable[[Transaction], T], *, durable: bool = False) -> T:
        """Run ``fn`` in a transaction: all of its changes or, when it raises, none.

        When this returns, every later read sees the changes; they survive the end of the process after
        ``commit_delay_s``, and a power cut after the next :meth:`commit`, or at once with ``durable``.
        When it is cancelled while it waits for the disk, the changes stay, as those of a write that is not
        durable. ``fn`` runs once at most, must not be async and must not nest. Raises what ``fn`` raises,
        :class:`IndexDamaged`, :class:`IndexUnavailable`; EROFS on an index opened read-only."""
        while self._copied is not None and self._holds_up:
            await self._copied.wait()
        result = self._group.write(fn)
        if durable:
            await self._durability.up_to(self._group.sequence)
        return result

    @property
    def _holds_up(self) -> bool:
        return self._restarting or (self._log is not None and self._log.full)

    async def commit(self) -> None:
        """Return when everything written so far is on disk. Raises :class:`IndexUnavailable`."""
        self._group.require_usable()
        if self._log is not None:
            await self._durability.up_to(self._group.sequence)

    async def flush(self, up_to: int | None = None) -> None:
        """Return when everything written so far, or until the transaction of this number, survives the end of
        the process, however it comes; it may not survive a power cut yet. Raises
        :class:`IndexUnavailable`."""
        self._group.require_usable()
        if self._log is not None and (up_to is None or up_to > self._group.committed):
            self._group.commit()

    async def note(self, fn: Callable[[Transaction], None]) -> None:
        """As a durable :meth:`write`, for what is about this file and no change of the volume: it gets no
        number and is not captured. Everything written before is durable then as well."""
        while self._copied is not None and self._holds_up:
            await self._copied.wait()
        self._group.write(fn, counted=False)
        reached = self._group.commit()
        await self._sync_log()
        self._durability.durable = max(self._durability.durable, reached)

    @property
    def sequence(self) -> int:
        """The number of the newest write."""
        return self._group.sequence

    @property
    def unusable(self) -> VolumeIndexError | None:
        """Why nothing is accepted any more until the volume is mounted again; ``None`` while all is well."""
        return self._group.unusable

    @property
    def schema_version(self) -> int:
        return len(schema.MIGRATIONS)

    def fence(self, reason: str) -> None:
        """Refuse every write from now on with :class:`IndexFenced`; reads go on."""
        self._group.fenced = reason

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
        self._group.commit()
        self._capture = Capture(
            self._connection,
            self._group.committed,
            on_changes=on_changes,
            now_ns=now_ns,
            backlog_bytes=backlog_bytes,
        )
        self._group.on_commit = self._capture.committed
        return self._capture

    async def captured(self) -> list[Changes]:
        """Take what was changed until now. It is committed, and not durable before :meth:`commit` or
        :meth:`note`. Raises :class:`IndexUnavailable`."""
        assert self._capture is not None, "the index is not captured"
        self._group.commit()
        return self._capture.take()

    async def pin(self) -> tuple[PinnedState, list[Changes]]:
        """The present state, to be copied, and what was captured until it: later changes follow on from it.
        Raises :class:`IndexUnavailable`."""
        sequence = self._group.commit()
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
        self._group.require_usable()
        self._group.commit()
        self._tracer.count(Count.INDEX_READ)

        def in_thread() -> T:
            # SQLite does not even read CHECK constraints where the file is opened read-only, so a check would
            # not find rows that violate one.
            connection = connect.connect(self.path, read_only=self._log is None)
            try:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
                return fn(Transaction(connection, writable=False, sequence=self._group.committed))
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
                nursery.start_soon(self._group.commit_in_time)
                nursery.start_soon(self._sync_now_and_then)
                nursery.start_soon(self._keep_log_short)
            task_status.started()
            await trio.sleep_forever()

    async def _sync_now_and_then(self) -> None:
        while self._group.unusable is None:
            if self._durability.durable >= self._group.sequence:
                await self._group.opened.wait()
            await trio.sleep(SYNC_INTERVAL_S)
            with contextlib.suppress(VolumeIndexError):  # as above
                await self._durability.up_to(self._group.committed)

    async def _keep_log_short(self) -> None:
        """While anybody writes, the log cannot start anew behind a checkpoint: there is always something in
        it that is not copied yet. So when it has become long in spite of checkpoints, writers are held up
        for the last of them, which has little left to copy; and already for those before it when it is
        full."""
        assert self._log is not None
        while True:
            await self._log.wait_grown()
            copied = self._copied = trio.Event()
            try:
                await self._log.checkpoint(Checkpoint.PASSIVE)
                if self._log.too_long:
                    self._restarting = True
                    self._group.commit()
                    await self._log.restart()
            except VolumeIndexError:
                return  # as above
            finally:
                self._copied, self._restarting = None, False
                copied.set()

    async def _sync_log(self) -> None:
        assert self._log is not None
        try:
            await self._log.sync()
        except OSError as error:
            # Never tried again: the kernel may have dropped the pages, and a second sync would be a lie.
            raise self._group.fail(f"cannot be synced to disk: {error.strerror}") from error

    def _close(self) -> None:
        self._closed = True
        self._group.end()
        if self._capture is not None:
            self._capture.close()
        self._connection.close(True)
        if self._log is not None:
            self._log.close()
