"""Damage to the copy in the bucket is found while the volume is mounted, said, and mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.errors import IndexFenced
from s3blobfs.replica import names
from s3blobfs.replica.options import Limits
from s3blobfs.replica.segment import Kind, decode, encode
from s3blobfs.replica.verification import Depth
from tests.replica.dumps import dump
from tests.replica.kit import CONFLICT_LOG, NEVER, Mount, Site

MakeSite = Callable[..., Site]
HOUR_S = 3600.0


async def fill(mount: Mount, count: int = 4) -> None:
    """That many segments behind the first."""
    for number in range(count):
        await mount.add(b"%d" % number)
        await mount.settle()


@pytest.mark.parametrize("depth", list(Depth))
async def test_a_sound_copy_has_nothing_to_be_said_of(
    make_site: MakeSite, autojump_clock: MockClock, depth: Depth
) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        assert (await mount.shipper.verify(depth)).damage == []  # nothing was sent yet
        await fill(mount)
        verdict = await mount.shipper.verify(depth)
        assert (verdict.damage, verdict.gaps, verdict.taken) == ([], [], None)
        assert (verdict.segments, verdict.snapshots) == (5, 1)
        assert mount.shipper.status().damage is None
        assert not [path for path in (site.directory / "index.copy").iterdir() if "verify" in path.name]


DAMAGES: list[tuple[str, Depth, str]] = [
    ("lose 3", Depth.GLANCE, "segment 3 is missing"),
    ("lose 5", Depth.GLANCE, "segment 5 is missing"),
    ("damage 5", Depth.GLANCE, "0005 is damaged"),
    ("lose snapshot", Depth.GLANCE, "no snapshot is there"),
    ("damage snapshot header", Depth.GLANCE, "no snapshot is there"),
    ("damage 3", Depth.CHAIN, "0003 is damaged"),
    ("forge 3", Depth.CHAIN, "segment 4 does not follow on from segment 3"),
    ("damage snapshot body", Depth.ALL, "checksum does not match"),
]


async def break_(site: Site, damage: str) -> None:
    what, _, where = damage.partition(" ")
    if where.startswith("snapshot"):
        (key,) = site.keys(names.snapshots_prefix(""))
        if what == "lose":
            await site.remove(key)
        else:
            await site.damage(key, at=20 if where.endswith("header") else -40)
    elif what == "forge":
        key = names.segment_key("", 3)
        await site.client.put(key, reencoded((await site.client.get(key)).data))
    else:
        key = names.segment_key("", int(where))
        await (site.remove(key) if what == "lose" else site.damage(key))


def reencoded(data: bytes) -> bytes:
    """A whole segment, with its own checksum, that is not the one that was sent."""
    return encode(replace(decode(data, "it")[0], writer="somebody"))[0]


@pytest.mark.parametrize(("damage", "depth", "said"), DAMAGES)
async def test_damage_is_found_and_mended(
    make_site: MakeSite, autojump_clock: MockClock, damage: str, depth: Depth, said: str
) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        await fill(mount)
        await break_(site, damage)
        if depth is not Depth.GLANCE:
            assert (await mount.shipper.verify(Depth(depth - 1))).damage == []
        for deeper in [each for each in Depth if each >= depth]:
            found = await mount.shipper.verify(deeper)
            assert any(said in each for each in found.damage), found
        status = mount.shipper.status()
        assert status.damage is not None and said in status.damage

        await mount.shipper.renew()
        assert (await site.segment(6)).kind is Kind.BREAK
        for each in Depth:
            assert (await mount.shipper.verify(each)).damage == []
        assert mount.shipper.status().damage is None
        await mount.add(b"goes on")
    result = await site.reconstruct()
    assert result.complete
    assert dump(site.directory / "recovered.db") == dump(site.directory / "index.db")


async def test_what_only_earlier_times_need_is_told_apart(
    make_site: MakeSite, autojump_clock: MockClock
) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        await fill(mount)
        await mount.shipper.renew()
        await site.damage(names.segment_key("", 3))
        await site.remove(names.segment_key("", 4))
        verdict = await mount.shipper.verify(Depth.ALL)
        assert verdict.damage == []
        assert ["0003 is damaged" in verdict.gaps[0], "segment 4 is missing" in verdict.gaps[1]] == [True] * 2


@pytest.mark.expected_log("copy of the index in the bucket is damaged")
async def test_a_mount_looks_by_itself(
    make_site: MakeSite, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(limits=Limits(look_s=HOUR_S))
    await site.make()
    async with site.mount() as mount:
        await fill(mount)
        await site.remove(names.segment_key("", 3))
        await trio.sleep(HOUR_S / 2)
        assert len(site.snapshots()) == 1
        while len(site.numbers()) < 5:  # noqa: ASYNC110 - one of five is missing; nobody tells of a sixth
            await trio.sleep(HOUR_S / 4)
        assert len(site.snapshots()) == 2 and mount.shipper.status().damage is None
    assert "segment 3 is missing" in caplog.text
    result = await site.reconstruct()
    assert result.complete


@pytest.mark.expected_log(CONFLICT_LOG)
async def test_somebody_elses_segment_is_no_damage(make_site: MakeSite, autojump_clock: MockClock) -> None:
    """It is not overwritten, and nothing is put on top of it."""
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount(kill=True) as mount:
        await fill(mount)
        key = names.segment_key("", 5)
        await site.client.put(key, reencoded((await site.client.get(key)).data))
        with pytest.raises(IndexFenced):
            await mount.shipper.verify(Depth.GLANCE)
        assert mount.fenced and site.numbers() == [1, 2, 3, 4, 5]


async def test_what_retention_removes_meanwhile_is_not_missing(
    make_site: MakeSite, autojump_clock: MockClock
) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    async with site.mount() as mount:
        await fill(mount)
        await mount.shipper.renew()
        stall = site.faults.on("get", key="*/segments/*").stalls()
        async with trio.open_nursery() as nursery:

            async def verify() -> None:
                verdict = await mount.shipper.verify(Depth.ALL)
                assert (verdict.damage, verdict.gaps) == ([], [])

            nursery.start_soon(verify)
            await stall.arrived.wait()
            for number in range(1, 6):
                await site.remove(names.segment_key("", number))
            for key in site.keys(names.snapshots_prefix(""))[:1]:
                await site.remove(key)
            stall.release()
