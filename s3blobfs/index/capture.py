"""What changed in an index, as SQLite's session extension sees it: changesets that a copy can be brought up
to date with (:mod:`s3blobfs.index.replay`).

A session notes, for each row that is changed, what it was before; the changeset compares that with what the
row is when it is cut. So changes of one row in one cut become one, and what a trigger or a foreign key does
is in it like everything else. It is cut where no transaction is open, between commits: each cut is a state
that the index had.

What a session does not see is said beside it: ``sqlite_sequence`` has no primary key, and without it a
copy might give an id a second time. Changes of the schema are seen by nobody: after a migration a new copy is
made. The table ``replica`` is about the file and is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import apsw

from s3blobfs.config import KIB, MIB

LOCAL_TABLE = "replica"
CUT_BYTES = 512 * KIB
"""Of a session's memory: from here on it is cut, which takes some milliseconds on the thread that serves
calls."""
BACKLOG_BYTES = 64 * MIB
"""Of changesets that nobody has taken: from here on they are given up, and a new copy has to be made."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """From one state of the index to a later one."""

    sequence: int
    """``counters.sequence`` of the state that they lead to."""
    made_ns: int
    """When that state was cut: it holds what was committed until then."""
    ids: Mapping[str, int]
    """``sqlite_sequence``: the largest id that each table has given."""
    changeset: bytes = field(repr=False)


class Capture:
    """Notes what is changed through one connection. Its owner is the database, whose methods call it where no
    transaction is open."""

    def __init__(
        self,
        connection: apsw.Connection,
        sequence: int,
        *,
        on_changes: Callable[[], None],
        now_ns: Callable[[], int],
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        """``sequence`` is that of the present state; ``on_changes`` is called at the first commit after
        :meth:`take` or the beginning."""
        self._connection = connection
        self._on_changes = on_changes
        self._now_ns = now_ns
        self._backlog_limit = backlog_bytes
        self._cut_bytes = min(CUT_BYTES, backlog_bytes)
        self._cut: list[Changes] = []
        self._cut_size = 0
        self._noted = sequence
        self._taken = sequence
        self.lost = False
        """The backlog was given up: :meth:`restart` together with a new copy."""
        self.since_ns: int | None = None
        """When the oldest change that was not taken was committed; ``None`` when there is none."""
        self._session: apsw.Session | None = self._new_session()

    def committed(self, sequence: int) -> None:
        """Called after each COMMIT."""
        if sequence == self._noted:
            return  # nothing of the volume's: a note of this file
        self._noted = sequence
        if self.since_ns is None:
            self.since_ns = self._now_ns()
            self._on_changes()
        if self._session is None:
            return
        memory = self._session.memory_used
        if self._cut_size + memory > self._backlog_limit:
            self._give_up("nobody took them for too long")
        elif memory > self._cut_bytes:
            self.cut()

    @property
    def backlog_bytes(self) -> int:
        """What is held in memory for changes that were not taken."""
        if self._session is None or self._noted == self._taken:
            return self._cut_size
        return self._cut_size + self._session.memory_used

    def take(self) -> list[Changes]:
        """Everything until now, in order; empty when nothing was changed, or when they are :attr:`lost`."""
        self.cut()
        taken, self._cut, self._cut_size = self._cut, [], 0
        self.since_ns = None
        return taken

    def cut(self) -> None:
        """End one changeset here and begin the next."""
        if self._session is None or self._noted == self._taken:
            return
        try:
            changeset = self._session.changeset()
            rows: list[Any] = self._connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
            self._session.close()
            self._session = self._new_session()
        except apsw.Error as error:
            self._give_up(str(error))
            return
        self._cut.append(Changes(self._noted, self._now_ns(), dict(rows), changeset))
        self._cut_size += len(changeset)
        self._taken = self._noted

    def restart(self) -> None:
        """Forget what was not taken: somebody makes a copy of the present state."""
        self._end_session()
        self._cut, self._cut_size = [], 0
        self._taken = self._noted
        self.since_ns = None
        self.lost = False
        self._session = self._new_session()

    def close(self) -> None:
        """Before the connection is closed."""
        self._end_session()

    def _give_up(self, reason: str) -> None:
        """Memory is bounded, and what is not noted costs nothing."""
        _logger.info("changes of the index are not noted any more: %s; a new copy will be made", reason)
        self._end_session()
        self._cut, self._cut_size = [], 0
        self.lost = True

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _new_session(self) -> apsw.Session:
        session = apsw.Session(self._connection, "main")
        session.table_filter(_is_shared)
        session.attach()
        return session


def _is_shared(table: str) -> bool:
    return table != LOCAL_TABLE
