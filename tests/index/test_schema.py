"""Migrations, with versions that do not exist yet."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from s3blobfs.errors import IndexDamaged, IndexTooNew, IndexUnavailable, VolumeIndexError
from s3blobfs.index import inodes, schema, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import ROOT, add_file

REBUILD_XATTRS = """
CREATE TABLE renewed (
    inode_id INTEGER NOT NULL REFERENCES inodes ON DELETE CASCADE,
    name     BLOB    NOT NULL,
    value    BLOB    NOT NULL,
    flags    INTEGER NOT NULL,
    PRIMARY KEY (inode_id, name)
) STRICT, WITHOUT ROWID;
INSERT INTO renewed SELECT inode_id, name, value, 7 FROM xattrs;
DROP TABLE xattrs;
ALTER TABLE renewed RENAME TO xattrs;
"""


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """An index of version 1, with a file in it."""

    def write(tx: Transaction) -> None:
        volume.fill(tx)
        xattrs.set(tx, add_file(tx, ROOT, b"file").id, b"user.x", b"1")

    database = volume.make(tmp_path / "index.db")
    await database.write(write)
    await database.aclose()
    return tmp_path / "index.db"


def _state(path: Path) -> tuple[int, int, list[str]]:
    connection = apsw.Connection(str(path))
    try:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        return (
            connection.pragma("user_version"),
            connection.pragma("application_id"),
            [name for (name,) in tables],
        )
    finally:
        connection.close()


async def test_a_new_index_is_of_the_newest_version(path: Path) -> None:
    version, application_id, _ = _state(path)
    assert (version, application_id) == (len(schema.MIGRATIONS), schema.APPLICATION_ID)


async def test_an_older_index_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = (*schema.MIGRATIONS, REBUILD_XATTRS)
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with pytest.raises(IndexUnavailable, match="older version"):
        Database.open(path, tracer=Tracer(), read_only=True)
    for _ in range(2):
        database = Database.open(path, tracer=Tracer())
        rows = await database.read(lambda tx: tx.execute("SELECT name, flags FROM xattrs").fetchall())
        assert rows == [(b"user.x", 7)]
        assert (await database.read(inodes.usage)).inodes == 2
        assert await database.check() == []
        # Foreign keys, off for the migration, are on again.
        with pytest.raises(VolumeIndexError, match="FOREIGN KEY"):
            await database.write(lambda tx: tx.modify("INSERT INTO xattrs VALUES (99, x'00', x'', 0)"))
        await database.aclose()
    assert _state(path)[0] == len(later)

    # And made anew it is the same.
    anew = Database.create(path.with_name("anew.db"), tracer=Tracer())
    await anew.aclose()
    assert _state(path.with_name("anew.db")) == _state(path)


@pytest.mark.parametrize(
    ("migration", "error"),
    [
        (REBUILD_XATTRS + "nonsense", VolumeIndexError),
        (REBUILD_XATTRS + "DELETE FROM inodes WHERE id = 2", IndexDamaged),
    ],
)
async def test_a_failed_migration_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, migration: str, error: type[Exception]
) -> None:
    before = _state(path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, migration))
        with pytest.raises(error):
            Database.open(path, tracer=Tracer())
    assert _state(path) == before
    database = Database.open(path, tracer=Tracer())
    assert await database.read(lambda tx: xattrs.names(tx, 2)) == [b"user.x"]
    assert await database.check() == []
    await database.aclose()


async def test_an_index_of_a_later_version_is_refused(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    known = len(schema.MIGRATIONS)
    with pytest.raises(IndexTooNew, match=f"version 1000 and this program knows versions up to {known}"):
        Database.open(path, tracer=Tracer())


async def test_the_prose_is_kept_beside_the_data(path: Path) -> None:
    connection = apsw.Connection(str(path))
    ((sql,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'inodes'")
    connection.close()
    assert "-- st_mode" in sql
