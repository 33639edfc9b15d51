"""Opening the index's file: permissions, pragmas, and whether it is an index at all."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from s3blobfs.config import MIB
from s3blobfs.errors import IndexDamaged, IndexUnavailable, UsageError
from s3blobfs.index import schema

QUICK_CHECK_BYTES = 16 * MIB
"""Up to here an index is read whole when it is opened, which takes tens of milliseconds. A larger one is
checked by fsck alone: a mount must not take longer the more files there are."""

_PAGE_CACHE_KIB = 16 * 1024
"""Of each connection. What it does not hold the operating system has, as far as there is room: in an index of
6 million inodes a lookup takes as long with 2 MiB as with 64 (docs/scale.md)."""
_STATEMENTS = 256
"""Prepared statements kept; more than the package has."""
_BUSY_MS = 1000
"""How long a foreign program may hold the file (nobody else has a reason to write to it)."""


def create_file(path: Path) -> None:
    """An empty file that only its owner can read, since names are in it. Raises :class:`UsageError` when
    there is one, :class:`IndexUnavailable` when there can be none."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
            sync_directory(path.parent.parent)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    except FileExistsError as error:
        if not path.exists():
            raise IndexUnavailable(f"{path} cannot be made: {path.parent} is not a directory") from error
        raise UsageError(f"{path} exists; an index is never overwritten") from error
    except OSError as error:
        raise IndexUnavailable(f"{path} cannot be made: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """Make the names in it durable. Raises :class:`OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path, *, read_only: bool = False) -> apsw.Connection:
    """A connection to an existing file, set up but not verified. Raises apsw's errors and
    :class:`OSError`."""
    path.stat()  # says more clearly than SQLite would that there is no such file
    connection = apsw.Connection(
        str(path),
        flags=apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE,
        statementcachesize=_STATEMENTS,
    )
    try:
        connection.set_busy_timeout(_BUSY_MS)
        for pragma in (
            "foreign_keys = ON",
            # COMMIT does not wait for the disk; whoever needs that asks for it.
            "synchronous = NORMAL",
            # The originals of pages changed in a savepoint would spill into a file.
            "temp_store = MEMORY",
            f"cache_size = -{_PAGE_CACHE_KIB}",
            # A damaged or malicious file must not make SQLite call functions from its schema.
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
        # A plan must not depend on the parameters: else SQLite prepares a statement anew for each value,
        # which takes several times as long as running it.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        # A COMMIT must not copy the log into the database all of a sudden, on the thread that serves calls.
        connection.wal_autocheckpoint(0)
    except BaseException:
        connection.close()
        raise
    return connection


def start_log(connection: apsw.Connection) -> None:
    """Switch to write-ahead logging (lasting, so a no-op later) and make the log's file exist."""
    connection.pragma("journal_mode", "WAL")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()


def verify(connection: apsw.Connection, path: Path, *, quick_check: bool = True) -> None:
    """Raises :class:`IndexDamaged` for what is no index of ours, or malformed as far as a quick look
    tells, if that is asked for; apsw's errors."""
    if connection.pragma("application_id") != schema.APPLICATION_ID:
        raise IndexDamaged(f"{path} is not an index of this program")
    if quick_check and path.stat().st_size <= QUICK_CHECK_BYTES:
        answer = connection.pragma("quick_check", 1)
        if answer != "ok":
            raise IndexDamaged(f"the index {path} is damaged: {answer}")
