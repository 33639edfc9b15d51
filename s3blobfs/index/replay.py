"""Bringing a copy of an index up to date with changesets (:mod:`s3blobfs.index.capture`).

Exactly: triggers and foreign keys are off meanwhile, because what they did is in the changeset; each changed
row is compared with what the changeset says it was, so that one which does not belong here is refused whole.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from s3blobfs.errors import IndexDamaged
from s3blobfs.index import connect, schema
from s3blobfs.index.capture import LOCAL_TABLE, Changes
from s3blobfs.index.transaction import mapped


class Replay:
    """A copy that nobody else has open. Blocking; for a worker thread."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`IndexDamaged` for what is no index, :class:`VolumeIndexError`."""
        try:
            self._connection = connect.connect(path)
            try:
                connect.verify(self._connection, path)
                schema.require_ours(self._connection)
                self._connection.execute("PRAGMA foreign_keys = OFF")
                self._connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
                self._connection.pragma("journal_mode", "WAL")
                ((self.sequence,),) = self._connection.execute("SELECT sequence FROM counters")
            except BaseException:
                self._connection.close(True)
                raise
        except apsw.Error as error:
            raise mapped(error) from error

    sequence: int
    """``counters.sequence`` of the state reached."""

    @property
    def schema_version(self) -> int:
        return schema.known_version(self._connection, schema.MIGRATIONS)

    def apply(self, changes: Changes) -> None:
        """Wholly or, when it raises, not at all. Raises :class:`IndexDamaged` when they do not follow on
        from the present state."""
        connection = self._connection
        try:
            with connection:
                apsw.Changeset.apply(
                    changes.changeset,
                    connection,
                    conflict=_refuse,
                    flags=apsw.SQLITE_CHANGESETAPPLY_FKNOACTION,
                )
                for table, last_id in changes.ids.items():
                    connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
                    connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last_id))
                ((sequence,),) = connection.execute("SELECT sequence FROM counters")
                if sequence != changes.sequence:
                    raise IndexDamaged(
                        f"changes up to {changes.sequence} lead to a state that calls itself {sequence}"
                    )
        except (apsw.AbortError, apsw.ConstraintError) as error:
            raise IndexDamaged(
                f"changes up to {changes.sequence} do not follow on from the state {self.sequence}"
            ) from error
        except apsw.Error as error:
            raise mapped(error) from error
        self.sequence = changes.sequence

    def finish(self) -> None:
        """Make it an ordinary index again: references checked, everything in the one file, nothing in it
        about the file it was copied from. Raises :class:`IndexDamaged`; closed it is."""
        try:
            try:
                self._connection.execute(f"DELETE FROM {LOCAL_TABLE}")  # noqa: S608
                stray = self._connection.execute("PRAGMA foreign_key_check").fetchall()
                if stray:
                    raise IndexDamaged(f"the recovered index has stray rows in its table {stray[0][0]}")
                self._connection.pragma("journal_mode", "DELETE")
            finally:
                self._connection.close(True)
        except apsw.Error as error:
            raise mapped(error) from error

    def close(self) -> None:
        """Give up."""
        self._connection.close(True)


def _refuse(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT
