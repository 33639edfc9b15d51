"""What a mount sends, when, and what it does after an interruption."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from s3blobfs.config import IndexCopyOptions
from s3blobfs.errors import TransientS3Error, UsageError
from s3blobfs.index import replica
from s3blobfs.replica import names
from s3blobfs.replica.options import Limits
from s3blobfs.replica.segment import Kind
from tests.replica.dumps import dump
from tests.replica.kit import NEVER, OUTAGE_LOG, Site

Clock = trio.testing.MockClock
DOWN = TransientS3Error("503")
MakeSite = Callable[..., Site]


async def assert_recoverable(site: Site, name: str = "index") -> None:
    """The bucket has the index as it is."""
    result = await site.reconstruct(f"copy of {name}")
    assert result.problems == [] and result.complete and result.is_newest
    assert dump(site.directory / f"copy of {name}.db") == dump(site.directory / f"{name}.db")
    (site.directory / f"copy of {name}.db").unlink()


async def test_a_first_mount_sends_a_snapshot_then_changes(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.settle()
        assert (site.numbers(), site.snapshots()) == ([1], [1])
        assert (await site.segment(1)).kind is Kind.BREAK
        await mount.add(b"a", b"b")
        await mount.settle()
        second = await site.segment(2)
        assert second.kind is Kind.CHANGES and second.sequence == mount.db.sequence
        status = mount.shipper.status()
        assert (status.segment, status.behind, status.lag_s, status.backlog_bytes) == (2, 0, 0.0, 0)
        assert status.fencing == "conditional" and status.fenced is None
    await assert_recoverable(site)


async def test_changes_wait_for_company_but_not_long(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.settle()
        for at in range(30):
            await mount.add(b"%d" % at)
            await trio.sleep(0.1)
            assert mount.shipper.status().lag_s <= 1.0
        await trio.sleep(1.0)
        assert mount.shipper.status().behind == 0
        assert len(site.numbers()) <= 8
    await assert_recoverable(site)


async def test_nothing_is_sent_when_nothing_changes(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.add(b"a")
    before = site.numbers()
    async with site.mount():
        await trio.sleep(600)
    assert site.numbers() == before


async def test_who_waits_is_not_kept_waiting(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(options=IndexCopyOptions(lag_s=1000))
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for at in range(20):
                await mount.add(b"%d" % at)
                nursery.start_soon(mount.shipper.shipped)
        assert trio.current_time() - begun < 1
        assert len(site.numbers()) <= 3


# --- interruptions -------------------------------------------------------------------------------------


async def test_what_was_not_sent_before_a_kill_is_sent_after_it(site: Site, autojump_clock: Clock) -> None:
    async with site.mount(kill=True) as mount:
        await mount.settle()
        await mount.add(b"a")
        await mount.db.commit()
    assert site.numbers() == [1]
    async with site.mount() as mount:
        await mount.settle()
        assert (await site.segment(2)).kind is Kind.BREAK
        await mount.add(b"b")
    assert site.snapshots() == [1, 2]
    await assert_recoverable(site)


async def test_a_kill_before_the_segment_arrived(site: Site, autojump_clock: Clock) -> None:
    async with site.mount(kill=True) as mount:
        await mount.settle()
        stall = site.faults.on("put", key=names.segment_key("", 2)).stalls()
        await mount.add(b"a")
        await stall.arrived.wait()
        row = await mount.db.read(replica.find)
        assert row is not None and row.number == 2
    site.faults.clear()
    async with site.mount() as mount:
        await mount.settle()
        assert (await site.segment(2)).kind is Kind.BREAK
    await assert_recoverable(site)


@pytest.mark.expected_log(OUTAGE_LOG)
async def test_a_kill_after_the_segment_arrived(site: Site, autojump_clock: Clock) -> None:
    async with site.mount(kill=True) as mount:
        await mount.settle()
        site.faults.on("put", key=names.segment_key("", 2), nth=1).applies_then_raises(DOWN)
        site.faults.on("put", key=names.segment_key("", 2), nth=2).stalls()
        await mount.add(b"a")
        await trio.sleep(0.9)
    site.faults.clear()
    assert site.numbers() == [1, 2]
    async with site.mount() as mount:
        await mount.add(b"b")
        await mount.settle()
        assert (await site.segment(3)).kind is Kind.CHANGES
    await assert_recoverable(site)


async def test_a_segment_of_the_process_before_may_come_late(site: Site, autojump_clock: Clock) -> None:
    late: list[bytes] = []
    async with site.mount(kill=True) as mount:
        await mount.settle()
        site.faults.on("put", key=names.segment_key("", 2)).stalls()
        await mount.add(b"a")
        await trio.sleep(0.9)
        out = mount.shipper._out
        assert out is not None
        late.append(out.data)
    site.faults.clear()
    stall = site.faults.on("put", key=f"{names.snapshots_prefix('')}*", nth=1).stalls()
    async with site.mount() as mount:
        await stall.arrived.wait()
        await site.server.client("bucket").put(names.segment_key("", 2), late[0])
        stall.release()
        await mount.settle()
        assert (await site.segment(2)).kind is Kind.CHANGES
        assert (await site.segment(3)).kind is Kind.BREAK
        assert mount.fenced == []
    await assert_recoverable(site)


@pytest.mark.expected_log(OUTAGE_LOG)
async def test_a_lost_answer_is_not_taken_for_somebody_else(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.settle()
        site.faults.on("put", key=names.segment_key("", 2), nth=1).applies_then_raises(DOWN)
        await mount.add(b"a")
        await mount.settle()
        assert mount.fenced == [] and site.numbers() == [1, 2]
    await assert_recoverable(site)


# --- outages -------------------------------------------------------------------------------------------


@pytest.mark.expected_log(OUTAGE_LOG)
async def test_a_short_outage_delays(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.settle()
        site.faults.on("put").raises(DOWN)
        for at in range(30):
            await mount.add(b"%d" % at)
            await trio.sleep(1)
        status = mount.shipper.status()
        assert status.lag_s > 25 and status.behind > 25 and status.last_error == "503"
        with pytest.raises(TransientS3Error):
            await mount.shipper.shipped()
        site.faults.clear()
        await mount.settle()
        assert not mount.shipper.status().snapshot_pending
        assert all([(await site.segment(number)).kind is Kind.CHANGES for number in site.numbers()[1:]])
    await assert_recoverable(site)


@pytest.mark.expected_log(OUTAGE_LOG)
async def test_a_long_outage_does_not_fill_memory(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=Limits(backlog_bytes=30_000))
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        site.faults.on("put").raises(DOWN)
        for at in range(30):
            await mount.add(*(b"%d.%d" % (at, each) for each in range(30)))
            await trio.sleep(10)
            assert mount.shipper.status().backlog_bytes < 60_000
        assert mount.shipper.status().snapshot_pending
        site.faults.clear()
        await mount.settle()
        assert site.snapshots() == [1, max(site.numbers())]
        await mount.add(b"after")
    await assert_recoverable(site)


# --- snapshots and what is old -------------------------------------------------------------------------


async def test_snapshots_are_made_now_and_then(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=Limits(snapshot_segments=10, snapshot_bytes=2**62))
    await site.make()
    async with site.mount() as mount:
        for at in range(35):
            await mount.add(b"%d" % at)
            await trio.sleep(1)
        assert 3 <= len(site.snapshots()) <= 5
        assert mount.shipper.status().last_snapshot_ns is not None
    assert max(site.snapshots()) >= 30
    await assert_recoverable(site)


@pytest.mark.parametrize("versioning", [False, True])
async def test_what_is_old_is_removed(make_site: MakeSite, autojump_clock: Clock, versioning: bool) -> None:
    site = make_site(
        versioning=versioning,
        options=IndexCopyOptions(retention_s=1000),
        limits=Limits(snapshot_segments=5, snapshot_bytes=2**62, tidy_s=100),
    )
    await site.make()
    async with site.mount() as mount:
        for at in range(40):
            await mount.add(b"%d" % at)
            await trio.sleep(100)
        await trio.sleep(1)
    base = min(site.snapshots())
    assert 20 < base == min(site.numbers()) <= max(site.numbers()) - 10
    assert site.every_version() == len(site.numbers()) + len(site.snapshots())
    now = max([(await site.segment(number)).made_ns for number in site.numbers()])
    for back_s in (0, 500, 999):
        result = await site.reconstruct(f"back {back_s}", now - back_s * 10**9)
        assert result.complete and abs(now - back_s * 10**9 - result.made_ns) <= 101 * 10**9
    async with site.mount() as mount:
        await mount.add(b"goes on")
    await assert_recoverable(site)


# --- what does not fit ---------------------------------------------------------------------------------


async def test_an_older_copy_of_the_index_is_refused(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.add(b"a")
    old = (site.directory / "index.db").read_bytes()
    async with site.mount() as mount:
        await mount.add(b"b")
    (site.directory / "old.db").write_bytes(old)
    with pytest.raises(UsageError, match=r"segment 3, by .*recover.*--take-over"):
        async with site.mount("old"):
            pass
    async with site.mount("old", take_over=True) as mount:
        await mount.add(b"other b")
    assert (await site.segment(4)).kind is Kind.BREAK
    await assert_recoverable(site, "old")
    with pytest.raises(UsageError, match="later state"):
        async with site.mount():
            pass


@pytest.mark.expected_log("segments of the index are missing in the bucket, up to number 2")
async def test_lost_segments_are_noticed_and_made_up_for(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        await mount.add(b"a")
    for key in site.keys(names.index_prefix("")):
        await site.remove(key)
    async with site.mount() as mount:
        await mount.settle()
        assert (await site.segment(3)).kind is Kind.BREAK
    await assert_recoverable(site)
