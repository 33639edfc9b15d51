"""What the index's modules are handed: a transaction, and the one place where apsw's errors become ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import apsw

from s3blobfs.errors import IndexDamaged, IndexUnavailable, VolumeIndexError

Value = int | str | bytes | None
"""What a column of ours holds: every table is STRICT and none holds a floating-point number in secret."""


class Execute(Protocol):
    """One statement with its parameters, run on the connection."""

    def __call__(self, statements: str, bindings: tuple[Value | float, ...] | None = None) -> apsw.Cursor: ...


class Transaction:
    """One transaction, for the modules of this package alone; other layers pass it through.

    The members are the connection's own functions, not wrappers of them: a call in Python costs about as
    much as a small statement. ``sequence`` is set anew for each write, so a transaction must not be kept
    after the function that was handed it has returned.
    """

    __slots__ = ("changes", "execute", "last_id", "modify", "sequence")

    execute: Execute
    """Run a query. Take all its rows, or drop the cursor at once."""
    modify: Execute
    """Run a statement that changes something; refused in a ``read``."""
    changes: Callable[[], int]
    """How many rows the last ``modify`` changed."""
    last_id: Callable[[], int]
    """The row id made by the last INSERT."""
    sequence: int
    """The number of this write transaction: larger than every earlier one's, across mounts too. In a read,
    the newest number given."""

    def __init__(self, connection: apsw.Connection, *, writable: bool, sequence: int) -> None:
        self.execute = connection.execute
        self.modify = _refuse
        if writable:
            self.modify = connection.execute
        self.changes = connection.changes
        self.last_id = connection.last_insert_rowid
        self.sequence = sequence


def _refuse(statements: str, bindings: tuple[Value | float, ...] | None = None) -> NoReturn:
    raise RuntimeError("a change of the index belongs in write(), not in read()")


def one(cursor: apsw.Cursor) -> Any | None:
    """The only row of a result, or ``None``.

    The cursor is read to its end: a changing statement with RETURNING reports a violated constraint only
    when it finishes."""
    rows = cursor.fetchall()
    return rows[0] if rows else None


def extended_result(error: apsw.Error) -> int:
    """SQLite's extended result code, which tells the constraints apart (apsw's stubs do not know of it)."""
    code: int = getattr(error, "extendedresult", 0)
    return code


def mapped(error: apsw.Error) -> VolumeIndexError:
    """The error of ours for one of SQLite's; raise it ``from`` the original."""
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)):
        return IndexDamaged(f"the index is damaged: {error}")
    if isinstance(error, apsw.FullError):
        return IndexUnavailable(f"no room for the index: {error}")
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return IndexUnavailable(f"another program holds the index: {error}")
    if isinstance(
        error, (apsw.IOError, apsw.CantOpenError, apsw.NoMemError, apsw.ReadOnlyError, apsw.PermissionsError)
    ):
        return IndexUnavailable(f"the index cannot be used: {error}")
    return VolumeIndexError(f"the index refuses: {error}")
