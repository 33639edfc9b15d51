"""After a crash of the machine, what may have lost bytes is not used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from s3blobfs.tier.cache import Cache
from s3blobfs.tier.session import Session, current_boot
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from tests.tier.conftest import MakeTier

SECOND = 10**9


class Machine:
    """A machine with boots and a clock."""

    def __init__(self) -> None:
        self.boot = "first"
        self.now_ns = 1_700_000_000 * SECOND

    def cache_of(self, tier: Tier) -> Cache:
        session = Session(tier.layout, boot=lambda: self.boot, now_ns=self.clock)
        return Cache(tier.layout, tier.space, Tracer(), session=session, now_ns=self.clock)

    def clock(self) -> int:
        return self.now_ns

    async def add(self, tier: Tier, cache: Cache, name: str) -> None:
        self.now_ns += 10 * SECOND
        staged = await tier.staging.create(Local.CACHE)
        await staged.write(0, b"abc")
        await staged.seal(rename=True)
        entry = await cache.promote(staged, 1, name)
        assert entry is not None
        entry.unpin()

    async def sync(self, cache: Cache) -> None:
        self.now_ns += 10 * SECOND
        await cache.sync()

    async def found(self, tier: Tier) -> list[str]:
        self.now_ns += 10 * SECOND
        cache = self.cache_of(tier)
        await cache.start()
        return [name for name in ("old", "young") if cache.contains(1, name)]


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_a_crash_of_the_process_costs_nothing(make_tier: MakeTier, machine: Machine) -> None:
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "young")
    assert await machine.found(make_tier()) == ["young"]


async def test_a_crash_of_the_machine_costs_what_was_not_synced(
    make_tier: MakeTier, machine: Machine
) -> None:
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "old")
    await machine.sync(cache)
    await machine.add(tier, cache, "young")
    machine.boot = "second"
    assert await machine.found(make_tier()) == ["old"]
    machine.boot = "third"  # and what is left stays good
    assert await machine.found(make_tier()) == ["old"]


async def test_an_orderly_end_costs_nothing(make_tier: MakeTier, machine: Machine) -> None:
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "young")
    await machine.sync(cache)
    machine.boot = "second"
    assert await machine.found(make_tier()) == ["young"]


@pytest.mark.parametrize(
    "record", ["", "{", '{"boot": "first"}', "[]", '{"boot": "first", "synced_ns": "x"}']
)
async def test_without_a_good_record_nothing_is_trusted(
    make_tier: MakeTier, machine: Machine, record: str
) -> None:
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "old")
    await machine.sync(cache)
    path = tier.layout.directory / "session.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(record)
    tier = make_tier()
    assert await machine.found(tier) == []
    assert tier.space.used_bytes == 0


async def test_a_machine_without_boot_ids_trusts_what_was_synced(
    make_tier: MakeTier, machine: Machine
) -> None:
    machine.boot = ""
    tier = make_tier()
    cache = machine.cache_of(tier)
    await cache.start()
    await machine.add(tier, cache, "old")
    await machine.sync(cache)
    await machine.add(tier, cache, "young")
    assert await machine.found(make_tier()) == ["old"]


@pytest.mark.expected_log("cached files will be dropped after the next boot: .*scripted")
async def test_a_full_disk_does_not_keep_from_mounting(
    tier: Tier, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "scripted")

    monkeypatch.setattr(os, "fsync", fsync)
    await machine.cache_of(tier).start()


@pytest.mark.expected_log("may be dropped at the next mount")
async def test_a_broken_disk_does_not_keep_from_unmounting(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tier.start()
    staged = await tier.staging.create(Local.CACHE)
    await staged.seal(rename=True)
    entry = await tier.cache.promote(staged, 1, "id1@v1")
    assert entry is not None

    def sync(_: Session) -> None:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(Session, "sync", sync)
    await tier.aclose()


def test_the_boot_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_boot() == current_boot() != ""
    monkeypatch.setattr("s3blobfs.tier.session._BOOT_ID", Path("/nowhere"))
    assert current_boot() == ""
