"""Names that are in core answer without the index, and never longer than they are true."""

from __future__ import annotations

import os

from s3blobfs.fs.names import NameTable
from s3blobfs.trace import Count
from tests.support.rig import ROOT, USER, Rig


async def queries(rig: Rig, parent: int, name: bytes) -> tuple[int | None, int]:
    """The inode id behind a name, and how often the index was asked."""
    before = rig.tracer.counts[Count.INDEX_READ]
    found = await rig.fs.lookup(parent, name)
    return None if found is None else found.inode_id, rig.tracer.counts[Count.INDEX_READ] - before


async def test_a_known_name_costs_no_query(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"content")
    assert await queries(rig, ROOT, b"f") == (made.inode_id, 1)
    assert await queries(rig, ROOT, b"f") == (made.inode_id, 0)
    assert (await rig.fs.lookup(ROOT, b"f")) == await rig.fs.getattr(made.inode_id)


async def test_a_removed_name_is_not_found(rig: Rig) -> None:
    await rig.write_file(b"f", b"content")
    await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    for name in (b"f", b"d"):
        await rig.fs.lookup(ROOT, name)
    await rig.fs.unlink(ROOT, b"f")
    await rig.fs.rmdir(ROOT, b"d")
    for name in (b"f", b"d"):
        assert await rig.fs.lookup(ROOT, name) is None


async def test_renames_are_followed(rig: Rig) -> None:
    ids = {}
    for name in (b"a", b"b", b"c"):
        await rig.write_file(name, name)
        found = await rig.fs.lookup(ROOT, name)
        assert found is not None
        ids[name] = found.inode_id
    await rig.fs.rename(ROOT, b"a", ROOT, b"b")
    assert await rig.fs.lookup(ROOT, b"a") is None
    assert (await queries(rig, ROOT, b"b"))[0] == ids[b"a"]
    await rig.fs.rename(ROOT, b"b", ROOT, b"c", 2)  # RENAME_EXCHANGE
    assert (await queries(rig, ROOT, b"b"))[0] == ids[b"c"]
    assert (await queries(rig, ROOT, b"c"))[0] == ids[b"a"]


async def test_an_open_file_that_was_unlinked_keeps_its_inode_and_not_its_name(rig: Rig) -> None:
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.lookup(ROOT, b"f")
    await rig.fs.unlink(ROOT, b"f")
    assert await rig.fs.lookup(ROOT, b"f") is None
    again, other = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    assert other.inode_id != made.inode_id
    assert (await queries(rig, ROOT, b"f"))[0] == other.inode_id
    for handle in (opened, again):
        await rig.fs.release(handle.handle)


async def test_an_inode_that_left_core_is_asked_for(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"content")
    await rig.fs.lookup(ROOT, b"f")
    await rig.fs.forget([(made.inode_id, 100)])
    assert await queries(rig, ROOT, b"f") == (made.inode_id, 1)


def test_what_was_read_before_a_change_is_not_noted() -> None:
    names = NameTable()
    changes = names.changes
    names.forget((1, b"other"))
    names.note(1, b"f", 2, changes)
    assert names.find(1, b"f") is None
    names.note(1, b"f", 2, names.changes)
    assert names.find(1, b"f") == 2
    names.forget((1, b"f"))
    assert names.find(1, b"f") is None


def test_the_oldest_is_given_up() -> None:
    names = NameTable(kept=2)
    for number in range(3):
        names.note(1, b"%d" % number, number, 0)
    assert [names.find(1, b"%d" % number) for number in range(3)] == [None, 1, 2]
