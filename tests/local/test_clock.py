"""The wall clock jumps by years while a volume is mounted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.replica.history import History
from s3blobfs.replica.retention import tidy
from s3blobfs.types import Durability, Keying
from s3blobfs.writeback.grace import Grace
from tests.local.conftest import WallClock
from tests.replica import kit
from tests.replica.kit import NEVER, Site, now_ns
from tests.support.rig import Setup, open_rig
from tests.tier.conftest import MakeTier
from tests.tier.test_session import Machine
from tests.writeback.bench import FOO_MD5, GRACE_S, Volume

YEAR_S = 365 * 86400
JUMPS = pytest.mark.parametrize("jump_s", [10 * YEAR_S, -10 * YEAR_S])


# --- garbage ------------------------------------------------------------------------------------------


@JUMPS
async def test_garbage_keeps_its_grace(
    clock: MockClock, wall: WallClock, digest: Volume, jump_s: int
) -> None:
    await digest.start()
    inode = await digest.make_file()
    await digest.write(inode, b"foo")
    await digest.unlink(inode)
    await trio.sleep(GRACE_S / 2)
    wall.jump(jump_s)
    other = await digest.make_file("other")
    await digest.write(other, b"bar")
    await digest.unlink(other)  # wakes the reaper
    jumped = trio.current_time()
    while trio.current_time() < jumped + GRACE_S - 1:
        assert digest.keys() >= {FOO_MD5}
        await trio.sleep(GRACE_S / 10)
    await trio.sleep(GRACE_S)
    assert digest.keys() == set()


@JUMPS
async def test_garbage_that_is_made_while_the_clock_is_wrong(
    clock: MockClock, wall: WallClock, digest: Volume, jump_s: int
) -> None:
    await digest.start()
    inode = await digest.make_file()
    await digest.write(inode, b"foo")
    await trio.sleep(10 * GRACE_S)
    wall.jump(jump_s)
    await digest.unlink(inode)
    await trio.sleep(GRACE_S / 2)
    wall.jump(-jump_s)
    digest.reaper.wake()
    await trio.sleep(GRACE_S - 10)
    assert digest.keys() == {FOO_MD5}
    await trio.sleep(GRACE_S)
    assert digest.keys() == set()


async def test_a_clock_that_is_slewed_does_not_jump(clock: MockClock) -> None:
    off_s = 0.0
    grace = Grace(10**9, lambda: round((trio.current_time() + off_s) * 10**9))
    for _ in range(100):
        grace.look()
        off_s += 50
        await trio.sleep(3600)
    assert grace.due_before_ns() is not None
    off_s -= 100
    assert grace.due_before_ns() is None
    await trio.sleep(1)
    assert grace.due_before_ns() is not None


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keying", [Keying.DIGEST, Keying.VERSIONED])
@pytest.mark.parametrize("durability", [Durability.S3, Durability.DISK])
@JUMPS
async def test_uploads_go_on_in_order(
    tmp_path: Path, keying: Keying, durability: Durability, jump_s: int
) -> None:
    now_s = [1_800_000_000]

    def now_ns() -> int:
        now_s[0] += 1
        return now_s[0] * 10**9

    setup = Setup(tmp_path / "volume", keying, durability=durability, now_ns=now_ns)
    with trio.fail_after(60):
        async with open_rig(setup) as rig:
            for number in range(4):
                now_s[0] += jump_s * (-1) ** number
                before_ns = now_s[0] * 10**9
                file = await rig.write_file(b"f", b"content %d" % number)
                assert before_ns < file.mtime_ns <= now_s[0] * 10**9
                assert await rig.read_file(b"f") == b"content %d" % number
            now_s[0] += jump_s
            await rig.fs.sync(None, None)
        now_s[0] -= 2 * jump_s
        async with open_rig(setup) as rig:
            assert await rig.read_file(b"f") == b"content 3"
            await rig.write_file(b"f", b"the last")
            assert await rig.read_file(b"f") == b"the last"


# --- the cache ----------------------------------------------------------------------------------------


async def test_after_a_crash_nothing_young_is_taken_for_old(make_tier: MakeTier) -> None:
    """The clock was put back, so that what was cached afterwards looks older than what is known to be on the
    disk."""
    machine = Machine()
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "old")
    await machine.sync(cache)
    machine.now_ns -= 10 * YEAR_S * 10**9
    await machine.add(tier, cache, "young")
    machine.boot = "second"
    assert await machine.found(make_tier()) == ["old"]


async def test_after_a_jump_forth_and_back_the_cache_is_kept(make_tier: MakeTier) -> None:
    machine = Machine()
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    machine.now_ns += 10 * YEAR_S * 10**9
    await machine.add(tier, cache, "old")
    machine.now_ns -= 10 * YEAR_S * 10**9
    await machine.add(tier, cache, "young")
    tier = make_tier()
    assert await machine.found(tier) == ["old", "young"]


# --- the copy of the index ----------------------------------------------------------------------------


@JUMPS
async def test_changes_are_sent_in_time(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    off_ns = 0
    monkeypatch.setattr(kit, "now_ns", lambda: now_ns() + off_ns)
    site = Site(tmp_path, limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        before = max(site.numbers())
        stall = site.faults.on("put").stalls()
        await mount.add(b"first")
        await stall.arrived.wait()
        await mount.add(b"second")
        await trio.sleep(1)
        off_ns = jump_s * 10**9
        stall.release()
        await trio.sleep(5)
        assert max(site.numbers()) == before + 2


async def test_the_history_is_not_taken_for_old(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, limits=replace(NEVER, snapshot_segments=2))
    await site.make()
    async with site.mount() as mount:
        for number in range(8):
            await mount.add(b"%d" % number)
            await mount.settle()
            await trio.sleep(1)
    before = site.numbers()
    assert len(site.snapshots()) > 1
    history = History(site.client, "", site.settings.volume_id)
    day_ns = 86400 * 10**9
    far = now_ns() + 10 * YEAR_S * 10**9
    assert await tidy(site.client, history, "", now_ns=far, retention_ns=7 * day_ns) == 0
    assert site.numbers() == before
    assert await tidy(site.client, history, "", now_ns=far, retention_ns=0) > 0
