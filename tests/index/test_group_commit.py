"""Group commit, on a clock of the test's own; and the sync that callers share."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.index.database import Database
from s3blobfs.index.sharedsync import SharedSync
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Count, Tracer
from tests.index.volume import ROOT, add_file

DELAY_S = 0.05


class _Outsider:
    """What another process would find: committed data alone."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)

    def names(self) -> list[bytes]:
        return [name for (name,) in self._connection.execute("SELECT name FROM dentries ORDER BY cookie")]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def outsider(db: Database) -> _Outsider:
    return _Outsider(db.path)


async def test_writes_close_together_are_one_commit(
    mock_clock: MockClock, db: Database, outsider: _Outsider, tracer: Tracer
) -> None:
    await db.commit()
    tracer.counts.clear()
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        for name in (b"a", b"b", b"c"):
            await db.write(lambda tx, name=name: add_file(tx, ROOT, name))  # type: ignore[misc]
            mock_clock.jump(DELAY_S / 4)
            await wait_all_tasks_blocked()
        assert outsider.names() == []
        assert tracer.counts[Count.INDEX_COMMIT] == 0
        mock_clock.jump(DELAY_S / 4)
        await wait_all_tasks_blocked()
        assert outsider.names() == [b"a", b"b", b"c"]
        assert tracer.counts[Count.INDEX_COMMIT] == 1

        # The next group has a deadline of its own.
        await db.write(lambda tx: add_file(tx, ROOT, b"d"))
        mock_clock.jump(DELAY_S * 0.9)
        await wait_all_tasks_blocked()
        assert outsider.names() == [b"a", b"b", b"c"]
        mock_clock.jump(DELAY_S * 0.2)
        await wait_all_tasks_blocked()
        assert outsider.names() == [b"a", b"b", b"c", b"d"]
        nursery.cancel_scope.cancel()
    outsider.close()


async def test_a_durable_write_takes_the_group_along(
    mock_clock: MockClock, db: Database, outsider: _Outsider, tracer: Tracer
) -> None:
    await db.commit()
    tracer.counts.clear()
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        await db.write(lambda tx: add_file(tx, ROOT, b"a"))
        mock_clock.jump(DELAY_S / 2)
        await db.write(lambda tx: add_file(tx, ROOT, b"b"), durable=True)
        assert outsider.names() == [b"a", b"b"]
        # The committer slept for the first group; the second must not be cut short by that.
        await db.write(lambda tx: add_file(tx, ROOT, b"c"))
        mock_clock.jump(DELAY_S / 2)
        await wait_all_tasks_blocked()
        assert outsider.names() == [b"a", b"b"]
        mock_clock.jump(DELAY_S / 2)
        await wait_all_tasks_blocked()
        assert outsider.names() == [b"a", b"b", b"c"]
        assert tracer.counts[Count.INDEX_COMMIT] == 2
        nursery.cancel_scope.cancel()
    outsider.close()


async def test_flush_commits_and_waits_for_no_sync(
    db: Database, outsider: _Outsider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_sync() -> None:
        raise AssertionError("flush() does not wait for the disk")

    await db.commit()
    monkeypatch.setattr(db, "_sync_log", no_sync)
    await db.write(lambda tx: add_file(tx, ROOT, b"a"))
    assert outsider.names() == []
    await db.flush()
    assert outsider.names() == [b"a"]
    await db.flush()
    outsider.close()


async def test_a_failed_write_commits_nothing(
    mock_clock: MockClock, db: Database, outsider: _Outsider
) -> None:
    def fails(tx: Transaction) -> None:
        add_file(tx, ROOT, b"x")
        raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        with pytest.raises(ZeroDivisionError):
            await db.write(fails)
        mock_clock.jump(DELAY_S)
        await wait_all_tasks_blocked()
        assert outsider.names() == []
        nursery.cancel_scope.cancel()
    outsider.close()


async def test_what_nobody_asked_for_is_synced_too(mock_clock: MockClock, db: Database) -> None:
    await db.commit()
    durable = db._durability.durable
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        written = await db.write(lambda tx: (add_file(tx, ROOT, b"a"), tx.sequence)[1])
        mock_clock.jump(DELAY_S)
        await wait_all_tasks_blocked()
        assert db._durability.durable == durable
        mock_clock.jump(5)
        # A real thread syncs, for which a mocked clock does not wait.
        while db._durability.durable < written:
            await trio.lowlevel.checkpoint()
        # With nothing to sync it does not even wake up.
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()


async def test_cancelled_while_waiting_for_the_disk(db: Database) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await db.write(lambda tx: add_file(tx, ROOT, b"a"), durable=True)
    assert scope.cancelled_caught
    names = await db.read(lambda tx: tx.execute("SELECT name FROM dentries").fetchall())
    assert names == [(b"a",)]


# --- SharedSync alone ----------------------------------------------------------------------------------


class _Disk:
    """Syncs end when the test says so."""

    def __init__(self) -> None:
        self.written = 0
        self.syncs: list[trio.Event] = []
        self.fail = False
        self.shared = SharedSync(lambda: self.written, self._sync, durable=0)

    async def _sync(self) -> None:
        event = trio.Event()
        self.syncs.append(event)
        await event.wait()
        if self.fail:
            raise ZeroDivisionError

    async def write(self, finished: list[int]) -> None:
        self.written += 1
        mark = self.written
        await self.shared.up_to(mark)
        finished.append(mark)


async def test_concurrent_callers_share_a_sync() -> None:
    disk, finished = _Disk(), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.write, finished)
        await wait_all_tasks_blocked()
        # These come too late for the sync that runs; one more is enough for them all.
        for _ in range(5):
            nursery.start_soon(disk.write, finished)
        await wait_all_tasks_blocked()
        assert (len(disk.syncs), finished) == (1, [])
        disk.syncs[0].set()
        await wait_all_tasks_blocked()
        assert (len(disk.syncs), finished) == (2, [1])
        disk.syncs[1].set()
        await wait_all_tasks_blocked()
        assert sorted(finished) == [1, 2, 3, 4, 5, 6]
    await disk.shared.up_to(6)
    assert len(disk.syncs) == 2


async def test_a_cancelled_leader_leaves_the_lead() -> None:
    disk, finished = _Disk(), list[int]()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def lead() -> None:
            with scope:
                await disk.write(finished)

        nursery.start_soon(lead)
        await wait_all_tasks_blocked()
        nursery.start_soon(disk.write, finished)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert (len(disk.syncs), finished) == (2, [])
        disk.syncs[1].set()
        await wait_all_tasks_blocked()
    assert finished == [2]


async def test_a_failed_sync_is_not_taken_for_one() -> None:
    disk, finished = _Disk(), list[int]()
    disk.fail = True

    async def write() -> None:
        with pytest.raises(ZeroDivisionError):
            await disk.write(finished)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(write)
        await wait_all_tasks_blocked()
        disk.syncs[0].set()
        await wait_all_tasks_blocked()
        disk.syncs[1].set()
    assert (disk.shared.durable, finished) == (0, [])
