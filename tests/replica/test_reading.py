"""Reconstruction of an index: at any time, and when something is damaged or missing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from s3blobfs.errors import DamagedContent
from s3blobfs.replica import names
from s3blobfs.replica.segment import Kind, Segment, decode, encode, pack, unpack
from tests.replica.dumps import Dump, dump
from tests.replica.kit import NEVER, START_NS, Site

Clock = trio.testing.MockClock
MakeSite = Callable[..., Site]
SEGMENT = Segment(7, Kind.MARK, "0" * 32, "p" * 64, 3, 3, 2, START_NS, "host")


async def history(site: Site) -> dict[int, tuple[int, Dump]]:
    """Five segments, 100 seconds apart; of each its time and what the index was."""
    states = {}
    async with site.mount() as mount:
        for number in range(1, 6):
            await mount.settle()
            segment = await site.segment(number)
            states[number] = segment.made_ns, dump(site.directory / "index.db")
            if number < 5:
                await trio.sleep(100)
                await mount.add(b"file %d" % number)
    return states


async def test_every_moment_can_be_reached(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    states = await history(site)
    for number, (made_ns, state) in states.items():
        for later_s in (0, 50):
            name = f"{number} and {later_s}"
            result = await site.reconstruct(name, made_ns + later_s * 10**9)
            assert result.problems == [] and result.complete, name
            assert dump(site.directory / f"{name}.db") == state
            assert result.is_newest == (number == 5)
    before = await site.reconstruct("too early", START_NS - 1)
    assert before.snapshot == "" and "no snapshot" in before.problems[0]
    assert not (site.directory / "too early.db").exists()


@pytest.mark.parametrize("what", ["damage", "remove"])
async def test_a_segment_that_is_no_good_ends_it_there(
    make_site: MakeSite, autojump_clock: Clock, what: str
) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    states = await history(site)
    await getattr(site, what)(names.segment_key("", 4))
    result = await site.reconstruct()
    assert not result.complete and result.made_ns == states[3][0]
    assert dump(site.directory / "recovered.db") == states[3][1]
    (problem,) = result.problems
    assert "segments/0000000000000004" in problem
    assert ("checksum" if what == "damage" else "is missing") in problem
    # What came before can be reached without complaint.
    assert (await site.reconstruct("earlier", states[3][0])).problems in ([], [problem])


async def test_a_forged_segment_breaks_the_chain(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    states = await history(site)
    forged, _ = encode(replace(await site.segment(3), writer="somebody"))
    await site.client.put(names.segment_key("", 3), forged)
    result = await site.reconstruct()
    assert not result.complete and dump(site.directory / "recovered.db") == states[3][1]
    assert result.problems == ["segment 4 does not follow on from segment 3 as it is"]


async def test_an_earlier_snapshot_stands_in(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site()
    await site.make()
    async with site.mount() as mount:
        await mount.settle()
        mount.shipper._upkeep._segments = 10**9
        await mount.add(b"a")
        await mount.settle()
        await trio.sleep(10)
        await mount.add(b"b")
    assert site.snapshots() == [1, 2]
    await site.damage(site.keys(names.snapshots_prefix(""))[1])
    result = await site.reconstruct()
    assert result.complete and "/0000000000000001-" in result.snapshot
    assert len(result.problems) == 1 and "checksum" in result.problems[0]
    assert dump(site.directory / "recovered.db") == dump(site.directory / "index.db")


async def test_the_snapshot_of_a_break_is_needed(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    states = await history(site)
    async with site.mount(take_over=True) as mount:
        await mount.settle()
    await site.remove(site.keys(names.snapshots_prefix(""))[1])
    result = await site.reconstruct()
    assert not result.complete and "goes on from a snapshot of its own" in result.problems[0]
    assert dump(site.directory / "recovered.db") == states[5][1]


async def test_without_segments_the_snapshot_is_all(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=NEVER)
    await site.make()
    states = await history(site)
    for number in site.numbers():
        await site.remove(names.segment_key("", number))
    result = await site.reconstruct()
    assert not result.complete and "no segments" in result.problems[0]
    assert dump(site.directory / "recovered.db") == states[1][1]


# --- the format ----------------------------------------------------------------------------------------


def test_a_segment_reads_back() -> None:
    data, digest = encode(SEGMENT)
    assert decode(data, "it") == (SEGMENT, digest)


@pytest.mark.parametrize("at", [0, 9, 30, -33, -1])
def test_no_byte_of_a_segment_can_change(at: int) -> None:
    data = bytearray(encode(SEGMENT)[0])
    data[at] ^= 1
    with pytest.raises(DamagedContent):
        decode(bytes(data), "it")


@pytest.mark.parametrize("data", [b"", b"x" * 10, b"x" * 100])
def test_other_objects_are_no_segments(data: bytes) -> None:
    with pytest.raises(DamagedContent):
        decode(data, "it")


def test_a_payload_is_what_it_claims_to_be(tmp_path: Path) -> None:
    payload, size = pack([])
    assert unpack(replace(SEGMENT, kind=Kind.CHANGES, payload=payload, payload_bytes=size)) == []
    bomb = zlib.compress(bytes(10**6))
    for claimed in (0, 10, 10**6 + 1, 10**15, -1):
        with pytest.raises(DamagedContent):
            unpack(replace(SEGMENT, kind=Kind.CHANGES, payload=bomb, payload_bytes=claimed))
    with pytest.raises(DamagedContent, match="not what its writer meant"):
        unpack(replace(SEGMENT, kind=Kind.CHANGES, payload=bomb, payload_bytes=10**6))
