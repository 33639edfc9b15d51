"""The engine: opening, transactions, and what happens when the disk fails."""

from __future__ import annotations

import logging
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
import trio

from s3blobfs.errors import FilesystemError, IndexDamaged, IndexUnavailable, UsageError
from s3blobfs.index import connect, dentries, inodes, log, schema
from s3blobfs.index.database import Database
from s3blobfs.index.log import Checkpoint
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Count, Tracer
from tests.index import volume
from tests.index.volume import ROOT, add_file

# --- opening -------------------------------------------------------------------------------------------


async def test_an_index_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "index.db"
    database = volume.make(path)
    await database.write(volume.fill, durable=True)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {file.name for file in path.parent.iterdir()} == {"index.db", "index.db-wal", "index.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    await database.aclose()
    assert {file.name for file in path.parent.iterdir()} == {"index.db"}


async def test_an_index_is_never_overwritten(db: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never overwritten"):
        volume.make(tmp_path / "index.db")


async def test_where_no_index_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexUnavailable, match="not a directory"):
        volume.make(tmp_path / "file" / "index.db")


async def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", ("CREATE TABLE half (x); CREATE nonsense",))
    with pytest.raises(Exception, match="nonsense"):
        volume.make(tmp_path / "index.db")
    assert list(tmp_path.iterdir()) == []


async def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    database = volume.make(tmp_path / "index.db")
    await database.write(volume.fill)
    row = await database.write(lambda tx: add_file(tx, ROOT, b"file"))
    await database.aclose()
    await database.aclose()
    for read_only in (False, True):
        database = Database.open(tmp_path / "index.db", tracer=Tracer(), read_only=read_only)
        assert await database.read(lambda tx: dentries.lookup(tx, ROOT, b"file")) == row
        assert await database.check() == []
        await database.aclose()
    database = Database.open(tmp_path / "index.db", tracer=Tracer())
    assert (await database.write(lambda tx: inodes.update(tx, row.id, uid=1))).change > row.change
    await database.aclose()


def _empty(path: Path) -> None:
    path.touch()


def _foreign(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (x)")
    connection.close()


def _text(path: Path) -> None:
    path.write_bytes(b"not a database\n" * 1000)


@pytest.mark.parametrize("make", [_empty, _foreign, _text])
async def test_what_is_no_index(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "index.db")
    before = (tmp_path / "index.db").read_bytes()
    with pytest.raises(IndexDamaged, match=r"index\.db"):
        Database.open(tmp_path / "index.db", tracer=Tracer())
    assert (tmp_path / "index.db").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["index.db"]


async def test_an_index_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable, match="No such file"):
        Database.open(tmp_path / "index.db", tracer=Tracer())
    assert list(tmp_path.iterdir()) == []


async def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill)
    await database.write(lambda tx: [add_file(tx, ROOT, b"%d" % n) for n in range(500)])
    await database.aclose()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xa5" * 8192)
    with pytest.raises(IndexDamaged):
        Database.open(path, tracer=Tracer())


async def test_a_large_index_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = volume.make(tmp_path / "index.db")
    await database.aclose()
    monkeypatch.setattr(connect, "QUICK_CHECK_BYTES", 0)
    await Database.open(tmp_path / "index.db", tracer=Tracer()).aclose()


async def test_read_only(tmp_path: Path) -> None:
    database = volume.make(tmp_path / "index.db")
    await database.write(volume.fill)
    await database.aclose()
    database = Database.open(tmp_path / "index.db", tracer=Tracer(), read_only=True)
    with pytest.raises(FilesystemError, match="Read-only"):
        await database.write(lambda tx: add_file(tx, ROOT, b"file"))
    await database.commit()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        nursery.cancel_scope.cancel()
    await database.aclose()


# --- transactions --------------------------------------------------------------------------------------


async def test_a_failed_write_leaves_the_others_alone(db: Database) -> None:
    def fails(tx: Transaction) -> None:
        add_file(tx, ROOT, b"second")
        raise ZeroDivisionError

    first = await db.write(lambda tx: add_file(tx, ROOT, b"first"))
    with pytest.raises(ZeroDivisionError):
        await db.write(fails)
    third = await db.write(lambda tx: add_file(tx, ROOT, b"third"))
    await db.commit()
    page = await db.read(lambda tx: dentries.page(tx, ROOT, 0, 10))
    assert [entry[2] for entry in page] == [first.id, third.id]


async def test_each_write_has_a_larger_number(db: Database) -> None:
    numbers = [await db.write(lambda tx: tx.sequence) for _ in range(3)]
    assert numbers == sorted(set(numbers))
    assert await db.read(lambda tx: tx.sequence) == numbers[-1]


async def test_a_read_cannot_change_anything(db: Database) -> None:
    with pytest.raises(RuntimeError, match=r"belongs in write\(\)"):
        await db.read(lambda tx: add_file(tx, ROOT, b"file"))


async def test_functions_are_not_async(db: Database) -> None:
    async def promise(tx: Transaction) -> None:
        add_file(tx, ROOT, b"file")

    fn: Callable[[Transaction], object] = promise
    for call in (db.read, db.write):
        with pytest.raises(TypeError, match="must not be async"):
            await call(fn)


async def test_transactions_do_not_nest(db: Database) -> None:
    def nest(tx: Transaction) -> None:
        coroutine = db.write(volume.fill)
        coroutine.send(None)

    for call in (db.read, db.write):
        with pytest.raises(RuntimeError, match="do not nest"):
            await call(nest)


async def test_a_long_read_sees_one_state(db: Database) -> None:
    """In its thread, while the trio thread goes on writing."""
    await db.write(lambda tx: add_file(tx, ROOT, b"before"))

    def slow(tx: Transaction) -> tuple[int, int]:
        before = inodes.usage(tx).inodes
        trio.from_thread.run(db.write, lambda tx: add_file(tx, ROOT, b"meanwhile"))
        trio.from_thread.run(db.commit)
        return before, inodes.usage(tx).inodes

    assert await db.read_aside(slow) == (2, 2)
    assert (await db.read(inodes.usage)).inodes == 3


async def test_counts(db: Database, tracer: Tracer) -> None:
    await db.commit()
    tracer.counts.clear()
    for at in range(3):
        await db.write(lambda tx, at=at: add_file(tx, ROOT, b"%d" % at))  # type: ignore[misc]
    await db.read(inodes.usage)
    await db.commit()
    await db.commit()
    assert tracer.counts == {Count.INDEX_WRITE: 3, Count.INDEX_READ: 1, Count.INDEX_COMMIT: 1}


async def test_a_closed_index(tmp_path: Path) -> None:
    database = volume.make(tmp_path / "index.db")
    await database.aclose()
    for call in (database.read, database.write, database.read_aside):
        with pytest.raises(IndexUnavailable, match="closed"):
            await call(inodes.usage)
    with pytest.raises(IndexUnavailable, match="closed"):
        await database.commit()


# --- when the disk fails -------------------------------------------------------------------------------


@contextmanager
def files_at_most(size_bytes: int) -> Iterator[None]:
    """Writing beyond that fails, as on a full disk; reading and writing in place do not."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.expected_log("cannot commit")
async def test_a_failed_commit_is_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill, durable=True)
    await database.write(lambda tx: add_file(tx, ROOT, b"committed"), durable=True)
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            with files_at_most((tmp_path / "index.db-wal").stat().st_size):
                await database.write(lambda tx: [add_file(tx, ROOT, b"%d" % at) for at in range(100)])
                with pytest.raises(IndexUnavailable, match="cannot commit"):
                    await database.commit()
            for call in (database.read, database.write, database.read_aside):
                with pytest.raises(IndexUnavailable, match="mount again"):
                    await call(inodes.usage)
            with pytest.raises(IndexUnavailable, match="mount again"):
                await database.commit()
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        await database.aclose()
    assert len(caplog.records) == 1

    database = Database.open(path, tracer=Tracer())
    assert [entry[1] for entry in await database.read(lambda tx: dentries.page(tx, ROOT, 0, 10))] == [
        b"committed"
    ]
    assert await database.check() == []
    await database.aclose()


@pytest.mark.expected_log("cannot commit")
async def test_a_commit_that_fails_in_the_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = volume.make(tmp_path / "index.db")
    await database.write(volume.fill, durable=True)
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            with files_at_most((tmp_path / "index.db-wal").stat().st_size):
                await database.write(lambda tx: [add_file(tx, ROOT, b"%d" % at) for at in range(100)])
                await trio.sleep(0.2)
            with pytest.raises(IndexUnavailable):
                await database.read(inodes.usage)
            nursery.cancel_scope.cancel()
    assert len(caplog.records) == 1
    await database.aclose()


@pytest.mark.expected_log("cannot be synced")
async def test_a_failed_sync_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = volume.make(tmp_path / "index.db")

    def fdatasync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    failed = 0

    async def write() -> None:
        nonlocal failed
        with pytest.raises(IndexUnavailable):
            await database.write(lambda tx: tx.sequence, durable=True)
        failed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(write)
    assert failed == 3
    monkeypatch.undo()
    with pytest.raises(IndexUnavailable, match="cannot be synced"):
        await database.read(inodes.usage)
    await database.aclose()


@pytest.mark.expected_log("lost changes")
async def test_a_write_that_does_not_fit(tmp_path: Path) -> None:
    """SQLite takes back the whole group with it, of which others were told that it is there."""
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill)
    await database.write(lambda tx: add_file(tx, ROOT, b"durable"), durable=True)
    database._connection.pragma("max_page_count", database._connection.pragma("page_count") + 2)
    await database.write(lambda tx: add_file(tx, ROOT, b"in the group"))
    with pytest.raises(IndexUnavailable, match="lost changes"):
        await database.write(lambda tx: [add_file(tx, ROOT, b"%0200d" % at) for at in range(1000)])
    with pytest.raises(IndexUnavailable, match="lost changes"):
        await database.read(inodes.usage)
    await database.aclose()
    database = Database.open(path, tracer=Tracer())
    page = await database.read(lambda tx: dentries.page(tx, ROOT, 0, 1000))
    assert [entry[1] for entry in page] == [b"durable"]
    assert await database.check() == []
    await database.aclose()


# --- the log -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("truncate_pages", "copying_s"), [(1000, 0.0), (200, 0.0), (1000, 0.1)])
async def test_the_log_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncate_pages: int, copying_s: float
) -> None:
    """Under writing without a pause, when no checkpoint ever finds everything copied; and also where the disk
    takes its time for them."""
    copy = log.WriteAheadLog.checkpoint

    async def copy_slowly(it: log.WriteAheadLog, kind: log.Checkpoint) -> None:
        await trio.sleep(copying_s)
        await copy(it, kind)

    monkeypatch.setattr(log.WriteAheadLog, "checkpoint", copy_slowly)
    monkeypatch.setattr(log, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(log, "RESTART_PAGES", 200)
    monkeypatch.setattr(log, "FULL_PAGES", 300)
    monkeypatch.setattr(log, "TRUNCATE_PAGES", truncate_pages)
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill)
    largest = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)

        async def write(prefix: bytes) -> None:
            nonlocal largest
            for at in range(400):
                await database.write(
                    lambda tx: add_file(tx, ROOT, prefix + b"%d" % at),  # noqa: B023
                    durable=at % 2 == 0,
                )
                largest = max(largest, (tmp_path / "index.db-wal").stat().st_size)

        async with trio.open_nursery() as writers:
            for prefix in (b"a", b"b", b"c"):
                writers.start_soon(write, prefix)
        nursery.cancel_scope.cancel()
    assert largest < 3 * 200 * 4120
    assert path.stat().st_size > 20 * 4096
    assert await database.check() == []
    await database.aclose()


@pytest.mark.expected_log("cannot be copied")
async def test_a_checkpoint_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The database cannot grow; the log has everything all the same."""
    database = volume.make(tmp_path / "index.db")
    await database.write(volume.fill)
    await database.write(lambda tx: [add_file(tx, ROOT, b"%d" % at) for at in range(500)], durable=True)
    assert database._log is not None
    with caplog.at_level(logging.WARNING), files_at_most(8192):
        await database._log.checkpoint(Checkpoint.PASSIVE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (await database.read(inodes.usage)).inodes == 501
    assert await database.check() == []
    await database.aclose()
