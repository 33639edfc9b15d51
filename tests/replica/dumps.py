"""Everything an index says, in a form that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from s3blobfs.index.capture import LOCAL_TABLE

Dump = dict[str, list[Any]]


def dump(path: Path) -> Dump:
    """Every table but the one about the file, the schema and SQLite's own counters included."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        tables: list[Any] = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> ? ORDER BY name", (LOCAL_TABLE,)
        ).fetchall()
        found = {
            name: sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr)
            for (name,) in tables
        }
        found["sqlite_schema"] = sorted(
            connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall(), key=repr
        )
        return found
    finally:
        connection.close()


def tables_without_key(path: Path) -> list[str]:
    """Tables of ours that a session cannot see."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows: list[Any] = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            " AND NOT EXISTS (SELECT 1 FROM pragma_table_info(sqlite_schema.name) WHERE pk > 0)"
        ).fetchall()
        return [name for (name,) in rows]
    finally:
        connection.close()
