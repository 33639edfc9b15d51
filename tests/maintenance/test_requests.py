"""The tools' requests on the control socket: their arguments, their answers, one tool at a time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio

from s3blobfs.control.maintenance import MaintenanceRequests, options_of
from s3blobfs.control.messages import PART_BYTES, Json, MalformedMessage, encode
from s3blobfs.control.server import Call, Peer
from s3blobfs.errors import IndexFenced, UsageError
from s3blobfs.maintenance.gc import GcOptions, gc
from s3blobfs.maintenance.scrub import ScrubOptions
from s3blobfs.types import Keying
from tests.maintenance.kit import contents, live
from tests.maintenance.test_gc import DELETE, World
from tests.support.rig import ROOT, USER, Setup, open_rig


async def no_part(name: str, entries: list[Json]) -> None:
    raise AssertionError(f"{name}: {entries}")


def call(part: Callable[[str, list[Json]], Awaitable[None]] = no_part, /, **arguments: object) -> Call:
    return Call(dict(arguments), Peer(1, 0, 0), lambda progress: None, part)


@pytest.mark.parametrize(
    "options",
    [
        ScrubOptions(),
        ScrubOptions(read=True, heal=True, restart=True, requests_per_s=2.5, bytes_per_s=100, concurrency=3),
        GcOptions(),
        GcOptions(delete=True, grace_s=0.5, keep_versions=3, older_than_s=7),
    ],
)
def test_options_go_over_the_socket(options: ScrubOptions | GcOptions) -> None:
    arguments: Json = json.loads(encode({"request": "x", **asdict(options)}))
    assert options_of(type(options), arguments) == options


@pytest.mark.parametrize(
    "arguments",
    [{"delete": 1}, {"delete": None}, {"keep_versions": True}, {"keep_versions": 1.5}, {"grace_s": "1d"}],
)
def test_options_of_other_types_are_refused(arguments: Json) -> None:
    with pytest.raises(MalformedMessage, match=next(iter(arguments))):
        options_of(GcOptions, arguments)


async def test_long_lists_come_in_parts(tmp_path: Path) -> None:
    """More than any message holds, with nothing left out, and no more in memory than a part."""
    count = 700
    names = [f"{number:03} {'n' * 200}".encode() for number in range(count)]
    parts: list[list[Json]] = []

    async def part(name: str, entries: list[Json]) -> None:
        assert name == "problems"
        parts.append(entries)

    setup = Setup(tmp_path / "volume")
    async with open_rig(setup, check=False) as rig:
        for name in names:
            await rig.fs.mkdir(ROOT, name, 0o755, USER)
        await rig.db.write(lambda tx: tx.modify("UPDATE inodes SET nlink = 7 WHERE id > 1"))
        answer = await MaintenanceRequests(live(rig)).handlers()["fsck"](call(part, repair=False))
        await rig.db.write(lambda tx: tx.modify("UPDATE inodes SET nlink = 2 WHERE id > 1"))
    assert answer["problems"] == [] and answer["counts"]["found"] == count
    assert sum(map(len, parts)) == count and len(parts) > 2
    assert len({entry["detail"] for entries in parts for entry in entries}) == count
    assert all(len(json.dumps(entries)) < 2 * PART_BYTES for entries in parts)


async def test_every_tool_answers(tmp_path: Path) -> None:
    async with open_rig(Setup(tmp_path / "volume")) as rig:
        await rig.write_file(b"file", b"content")
        handlers = MaintenanceRequests(live(rig)).handlers()
        assert (await handlers["fsck"](call(repair=True)))["problems"] == []
        assert (await handlers["scrub"](call(read=True)))["checked"] == 1
        assert (await handlers["gc"](call()))["kept"]["named"]["count"] == 1
        with pytest.raises(MalformedMessage, match="repair"):
            await handlers["fsck"](call())


async def test_one_tool_at_a_time(tmp_path: Path) -> None:
    async with open_rig(Setup(tmp_path / "volume")) as rig:
        await rig.write_file(b"file", b"content")
        handlers = MaintenanceRequests(live(rig)).handlers()
        stall = rig.faults.on("head").stalls()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers["scrub"], call())
            await stall.arrived.wait()
            with pytest.raises(UsageError, match="a scrub of this volume is running"):
                await handlers["gc"](call())
            stall.release()
        assert (await handlers["gc"](call()))["failed"] == 0


async def test_a_volume_that_was_taken_over_deletes_nothing(tmp_path: Path) -> None:
    """What this index does not name, the one that went on may."""
    world = World(Keying.DIGEST, tmp_path / "volume")

    async def fenced() -> None:
        await trio.lowlevel.checkpoint()
        raise IndexFenced("another mount has gone on")

    async with open_rig(world.setup) as rig:
        await world.stray(b"stray")
        world.later()
        before = contents(world.bucket)
        with pytest.raises(IndexFenced):
            await gc(replace(live(rig), shipped=fenced), DELETE)
        assert contents(world.bucket) == before
