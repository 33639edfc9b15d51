"""Direct copies: inside a store, between stores, onto what is there."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.types import Keying
from tests.fs.calls import find, make_file, names, opened_file, pattern, refused, xattr
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, add_store, open_rig

DATA = b"the content"


async def copy(rig: Rig, source: int, name: bytes, parent: int = ROOT, *, over: bool = False) -> int:
    return await rig.fs.copy_file(source, parent, name, replace=over, caller=USER)


async def directory_of_another_store(rig: Rig, **changes: object) -> int:
    other = await add_store(rig, "other", "other/", **changes)
    made = await rig.fs.mkdir(ROOT, b"other", 0o755, USER)
    await rig.fs.bind_store(made.inode_id, other.config.id)
    return made.inode_id


async def test_a_copy_is_a_file_of_its_own(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    await rig.fs.setattr(made.inode_id, AttributeChanges(mode=0o4750))
    copied = await copy(rig, made.inode_id, b"g")
    assert copied != made.inode_id
    attributes = await rig.fs.getattr(copied)
    assert (attributes.size_bytes, attributes.nlink, stat.S_IMODE(attributes.mode)) == (len(DATA), 1, 0o750)
    await rig.write_file(b"f", b"changed")
    assert await rig.read_file(b"g") == DATA
    await rig.write_file(b"g", b"changed too")
    assert await rig.read_file(b"f") == b"changed"
    assert await rig.read_file(b"g") == b"changed too"


@pytest.mark.parametrize("gone_first", ["source", "copy"])
async def test_one_of_the_two_is_unlinked(any_setup: Setup, gone_first: str) -> None:
    async with open_rig(replace(any_setup, grace_s=0.0)) as rig:
        made = await rig.write_file(b"source", DATA)
        await copy(rig, made.inode_id, b"copy")
        left = b"copy" if gone_first == "source" else b"source"
        await rig.fs.unlink(ROOT, gone_first.encode())
        assert await rig.reaper.drain() == 0
        assert await rig.read_file(left) == DATA
        await rig.fs.unlink(ROOT, left)
        assert await rig.reaper.drain() == 0
        assert rig.setup.server.bucket(BUCKET).versions == {}


@pytest.mark.parametrize("to", [(k, c) for k in Keying for c in (True, False)], ids=str)
async def test_between_stores_of_every_kind(any_rig: Rig, to: tuple[Keying, bool]) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    other = await directory_of_another_store(rig, keying=to[0], cached=to[1])
    if to[0] is Keying.VERSIONED:
        await rig.setup.server.client(BUCKET).enable_versioning()
    copied = await copy(rig, made.inode_id, b"g", other)
    assert await xattr(rig, copied, "store") == "other"
    assert (await xattr(rig, copied, "key")).startswith("other/")
    assert await rig.read_file(b"g", other) == DATA
    back = await copy(rig, copied, b"back")
    assert await xattr(rig, back, "store") == "default"
    assert await rig.read_file(b"back") == DATA
    await rig.fs.unlink(ROOT, b"f")
    await rig.fs.unlink(ROOT, b"back")
    await rig.reaper.drain()
    assert await rig.read_file(b"g", other) == DATA


async def test_over_what_is_there(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    there = await rig.write_file(b"g", b"older and longer than it")
    with refused(errno.EEXIST):
        await copy(rig, made.inode_id, b"g")
    assert await rig.read_file(b"g") == b"older and longer than it"
    assert await copy(rig, made.inode_id, b"g", over=True) == there.inode_id
    assert await rig.read_file(b"g") == DATA
    assert (await find(rig, b"g")).size_bytes == len(DATA)
    again = await copy(rig, made.inode_id, b"g", over=True)
    assert again == there.inode_id
    assert await rig.read_file(b"g") == DATA


async def test_over_a_file_that_is_open(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    there = await rig.write_file(b"g", b"older")
    async with opened_file(rig, there.inode_id, os.O_RDONLY) as handle:
        assert await rig.fs.read(handle, 0, 100) == b"older"
        await copy(rig, made.inode_id, b"g", over=True)
        assert await rig.fs.read(handle, 0, 100) == DATA
    async with opened_file(rig, there.inode_id, os.O_WRONLY):
        with refused(errno.ETXTBSY):
            await copy(rig, made.inode_id, b"g", over=True)
    assert await rig.read_file(b"g") == DATA


async def test_onto_itself(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", DATA)
    await rig.fs.link(made.inode_id, ROOT, b"g")
    for name in (b"f", b"g"):
        with refused(errno.EINVAL):
            await copy(rig, made.inode_id, name, over=True)
    assert await rig.read_file(b"f") == DATA


async def test_of_empty_files(any_rig: Rig) -> None:
    rig = any_rig
    empty = await make_file(rig, b"empty")
    copied = await copy(rig, empty.inode_id, b"copy")
    assert (await rig.fs.getattr(copied)).size_bytes == 0
    full = await rig.write_file(b"full", DATA)
    await copy(rig, empty.inode_id, b"full", over=True)
    assert await rig.read_file(b"full") == b""
    await rig.write_file(b"full", DATA)
    await copy(rig, full.inode_id, b"copy", over=True)
    assert await rig.read_file(b"copy") == DATA
    other = await directory_of_another_store(rig)
    copied = await copy(rig, empty.inode_id, b"copy", other)
    assert await rig.read_file(b"copy", other) == b""
    assert await xattr(rig, copied, "store") == "other"


async def test_of_a_file_that_is_being_written(any_rig: Rig) -> None:
    """The copy is of what was written so far; the source is stored first."""
    rig = any_rig
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, DATA)
    await copy(rig, made.inode_id, b"g")
    await rig.fs.write(opened.handle, 0, b"CHANGED")
    assert await rig.read_file(b"g") == DATA
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    assert await rig.read_file(b"f") == b"CHANGED" + DATA[7:]


async def test_while_the_source_is_uploading(any_rig: Rig) -> None:
    rig = any_rig
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, DATA)
    stall = rig.faults.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fs.flush, opened.handle)
        await stall.arrived.wait()
        nursery.start_soon(copy, rig, made.inode_id, b"g")
        await trio.testing.wait_all_tasks_blocked(0.02)
        stall.release()
    await rig.fs.release(opened.handle)
    assert await rig.read_file(b"g") == DATA


async def test_only_of_regular_files(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    link = await rig.fs.symlink(ROOT, b"s", b"f", USER)
    for source in (directory.inode_id, link.inode_id):
        with refused(errno.EINVAL):
            await copy(rig, source, b"x")
    for name in (b"d", b"s"):
        with refused(errno.EINVAL):
            await copy(rig, made.inode_id, name, over=True)
    with refused(errno.ESTALE):
        await copy(rig, 987_654, b"x")
    with refused(errno.ENAMETOOLONG):
        await copy(rig, made.inode_id, b"x" * 256)
    assert sorted(await names(rig)) == [b"d", b"f", b"s"]


async def test_a_copy_survives_a_remount(any_setup: Setup) -> None:
    async with open_rig(any_setup) as rig:
        made = await rig.write_file(b"f", pattern(300_000))
        await copy(rig, made.inode_id, b"g")
        await rig.fs.unlink(ROOT, b"f")
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"g") == pattern(300_000)


async def test_a_versioned_copy_links_the_cached_file(tmp_path: Path) -> None:
    async with open_rig(Setup(tmp_path / "volume", keying=Keying.VERSIONED)) as rig:
        made = await rig.write_file(b"f", pattern(300_000))
        other = await directory_of_another_store(rig)
        copied = await copy(rig, made.inode_id, b"g", other)
        version = await xattr(rig, copied, "version_id")
        held = [path for path in (tmp_path / "volume" / "tier").rglob("*") if path.is_file()]
        (linked,) = [path for path in held if path.name.endswith(f"@{version}")]
        assert linked.stat().st_nlink == 2
        assert linked.read_bytes() == pattern(300_000)
