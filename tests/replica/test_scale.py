"""A snapshot of a large index: in little memory, not too often, and given up when nobody waits for it."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
import trio
import trio.testing

from s3blobfs.config import MIB
from s3blobfs.index import copying, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.replica import names, snapshot
from s3blobfs.replica.options import Limits
from s3blobfs.replica.snapshot import SnapshotHeader, write_file
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import ROOT
from tests.replica.kit import Site

Clock = trio.testing.MockClock
MakeSite = Callable[..., Site]

LARGE_BYTES = 48 * MIB
LITTLE_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of about ``LARGE_BYTES``, closed."""
    path = tmp_path_factory.mktemp("large") / "index.db"
    value_bytes = 48 * 1024

    def transaction(tx: Transaction) -> None:
        volume.fill(tx)
        for number in range(LARGE_BYTES // value_bytes):
            xattrs.set(tx, ROOT, b"user.%d" % number, bytes(value_bytes))

    async def make() -> None:
        db = volume.make(path)
        try:
            await db.write(transaction)
        finally:
            await db.aclose()

    trio.run(make)
    assert path.stat().st_size > LARGE_BYTES * 0.9
    return path


def header(size_bytes: int) -> SnapshotHeader:
    return SnapshotHeader("0" * 32, 1, "", 1, 1, 1, size_bytes)


async def test_a_copy_of_the_index_takes_little_memory(large: Path, tmp_path: Path) -> None:
    db = Database.open(large, tracer=Tracer())
    try:
        pinned, _ = await db.pin()
        before = apsw.memory_used()
        apsw.memory_high_water(True)
        await pinned.copy_to(tmp_path / "copy.db")
        assert apsw.memory_high_water() - before < LITTLE_BYTES
        pinned.close()
    finally:
        await db.aclose()


async def test_packing_takes_little_memory(large: Path, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        await trio.to_thread.run_sync(
            write_file, large, header(large.stat().st_size), tmp_path / "packed", abandon_on_cancel=False
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LITTLE_BYTES


# --- given up ------------------------------------------------------------------------------------------


@pytest.fixture
def check_cancelled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    checks = Checks(trio.from_thread.check_cancelled)
    monkeypatch.setattr(trio.from_thread, "check_cancelled", checks)
    yield checks


class Checks:
    """Stands between a worker thread and its question whether anybody waits for it."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self.asked = 0
        self.on_third: Callable[[], object] | None = None

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == 3 and self.on_third is not None:
            trio.from_thread.run_sync(self.on_third)
        self._ask()


async def test_a_copy_that_nobody_waits_for_ends(
    large: Path, tmp_path: Path, check_cancelled: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_PAGES_PER_STEP", 16)
    db = Database.open(large, tracer=Tracer())
    try:
        pinned, _ = await db.pin()
        with trio.CancelScope() as scope:
            check_cancelled.on_third = scope.cancel
            await pinned.copy_to(tmp_path / "copy.db")
        assert scope.cancelled_caught and check_cancelled.asked == 3
        pinned.close()
    finally:
        await db.aclose()


async def test_packing_that_nobody_waits_for_ends(
    large: Path, tmp_path: Path, check_cancelled: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", MIB)
    with trio.CancelScope() as scope:
        check_cancelled.on_third = scope.cancel
        await trio.to_thread.run_sync(write_file, large, header(1), tmp_path / "packed")
    assert scope.cancelled_caught and check_cancelled.asked == 3


async def test_an_unmount_does_not_wait_for_a_snapshot(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is due now and then; what was written is in the bucket without it."""
    site = make_site(limits=Limits(snapshot_segments=1, segment_bytes=2**62))
    await site.make()
    ask = trio.from_thread.check_cancelled
    begun = trio.Event()

    def take_for_ever() -> None:
        """As copying an index without end would."""
        trio.from_thread.run_sync(begun.set)
        while True:
            ask()
            time.sleep(0.001)

    async with site.mount() as mount:
        await mount.settle()
        await mount.add(b"a")
        await mount.settle()
        monkeypatch.setattr(trio.from_thread, "check_cancelled", take_for_ever)
        await mount.add(b"b")
        await mount.settle()
        await begun.wait()
    assert list((site.directory / "index.copy").iterdir()) == []
    monkeypatch.undo()
    assert (await site.reconstruct()).is_newest


# --- not too often -------------------------------------------------------------------------------------


async def test_a_large_snapshot_is_made_less_often(make_site: MakeSite, autojump_clock: Clock) -> None:
    limits = Limits(snapshot_segments=2, snapshot_bytes=2**62, segment_bytes=300)
    site = make_site(limits=limits)
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        (first,) = [each async for each in site.client.list_objects(names.snapshots_prefix(""))]
        wait_for = first.size_bytes // limits.segment_bytes
        assert wait_for > 2 * limits.snapshot_segments
        for number in range(wait_for):
            await mount.add(b"%d" % number)
            await mount.settle()
        assert (len(site.numbers()), site.snapshots()) == (1 + wait_for, [1])
        another = site.faults.on("put", key=f"{names.snapshots_prefix('')}*").stalls()
        await mount.add(b"one more")
        await another.arrived.wait()
        another.release()
