"""Access control lists: their format, and how they and the mode follow each other."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.fs.acl import ACCESS, DEFAULT, Acl, Tag
from s3blobfs.fs.attributes import AttributeChanges, Caller
from tests.fs.calls import find, make_file, refused
from tests.support.acls import acl, valid_acls
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

OTHER_USER = Caller(uid=2000, gid=2000)
NAMED = acl("u::rwx,u:2000:rw-,g::r-x,m::rwx,o::---")


def raw(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@given(valid_acls)
def test_decodes_what_it_encodes(value: Acl) -> None:
    assert Acl.decode(value.encode()) == value


def test_the_layout_is_the_kernels() -> None:
    value = bytes.fromhex("0200000001000700ffffffff02000600d007000004000500ffffffff")
    value += bytes.fromhex("10000700ffffffff20000000ffffffff")
    assert NAMED.encode() == value


def test_a_list_without_entries_is_none() -> None:
    assert Acl.decode(raw()) is None


NO_ID = 0xFFFFFFFF
OWNER, GROUP, OTHER, MASK = (1, 6, NO_ID), (4, 4, NO_ID), (0x20, 4, NO_ID), (0x10, 7, NO_ID)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        raw(OWNER, GROUP, OTHER)[:-1],
        raw(OWNER, GROUP),
        raw(GROUP, OTHER),
        raw(OWNER, OTHER),
        raw(GROUP, OWNER, OTHER),
        raw(OWNER, OWNER, GROUP, OTHER),
        raw(OWNER, GROUP, MASK, MASK, OTHER),
        raw(OWNER, (2, 4, 5), GROUP, OTHER),
        raw(OWNER, GROUP, (8, 4, 5), OTHER),
        raw(OWNER, (2, 4, NO_ID), GROUP, MASK, OTHER),
        raw((1, 8, NO_ID), GROUP, OTHER),
        raw((3, 4, NO_ID), GROUP, OTHER),
    ],
)
def test_what_is_no_valid_list_is_refused(value: bytes) -> None:
    with refused(errno.EINVAL):
        Acl.decode(value)


def test_other_versions_are_refused() -> None:
    with refused(errno.EOPNOTSUPP):
        Acl.decode(raw(OWNER, GROUP, OTHER, version=1))


@given(valid_acls, st.integers(0, 0o7777))
def test_a_list_follows_chmod(value: Acl, mode: int) -> None:
    changed = value.with_permission_bits(mode)
    assert changed.permission_bits == mode & 0o777
    named = [entry for entry in value.entries if entry.tag in (Tag.USER, Tag.GROUP)]
    assert [entry for entry in changed.entries if entry.tag in (Tag.USER, Tag.GROUP)] == named


@given(valid_acls, st.integers(0, 0o7777))
def test_what_is_inherited_gives_no_more_than_either(value: Acl, mode: int) -> None:
    access, made_mode = value.inherited(mode)
    assert made_mode & ~mode == 0
    assert made_mode & 0o777 & ~value.permission_bits == 0
    assert made_mode & ~0o777 == mode & ~0o777
    assert access is None or (access.permission_bits == made_mode & 0o777 and not access.is_minimal)


@pytest.mark.parametrize(
    ("text", "caller", "mask", "allowed"),
    [
        ("u::r--,g::rw-,o::rwx", Caller(1000, 5), os.R_OK, True),
        ("u::r--,g::rw-,o::rwx", Caller(1000, 1000), os.W_OK, False),
        ("u::r--,g::rw-,o::rwx", Caller(5, 1000), os.W_OK, True),
        ("u::r--,g::---,o::rwx", Caller(5, 1000), os.R_OK, False),
        ("u::---,g::---,o::r-x", Caller(5, 5), os.R_OK | os.X_OK, True),
        ("u::---,u:5:rw-,g::---,m::r--,o::rwx", Caller(5, 5), os.R_OK, True),
        ("u::---,u:5:rw-,g::---,m::r--,o::rwx", Caller(5, 5), os.W_OK, False),
        ("u::---,g::r--,g:7:-w-,m::rwx,o::---", Caller(5, 1000, groups=frozenset({7})), os.W_OK, True),
        ("u::---,g::r--,g:7:-w-,m::rwx,o::---", Caller(5, 1000, groups=frozenset({7})), 6, False),
        ("u::---,g::---,g:7:rwx,m::r--,o::rwx", Caller(5, 7), os.X_OK, False),
        ("u::---,g::---,g:7:rwx,m::r--,o::rwx", Caller(5, 8), os.X_OK, True),
    ],
)
def test_who_may(text: str, caller: Caller, mask: int, *, allowed: bool) -> None:
    assert acl(text).allows(1000, 1000, mask, caller) is allowed


async def test_an_access_list_sets_the_mode(any_setup: Setup) -> None:
    async with open_rig(any_setup) as rig:
        made = await make_file(rig, b"f")
        await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
        assert stat.S_IMODE((await rig.fs.getattr(made.inode_id)).mode) == 0o770
        assert await rig.fs.listxattr(made.inode_id) == [ACCESS]
    async with open_rig(any_setup) as rig:
        made = await find(rig, b"f")
        assert await rig.fs.getxattr(made.inode_id, ACCESS) == NAMED.encode()
        assert stat.S_IMODE(made.mode) == 0o770


async def test_a_minimal_list_is_the_mode(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
    await rig.fs.setxattr(made.inode_id, ACCESS, acl("u::rw-,g::r--,o::--x").encode(), USER)
    assert await rig.fs.listxattr(made.inode_id) == []
    assert stat.S_IMODE((await rig.fs.getattr(made.inode_id)).mode) == 0o641


async def test_chmod_changes_the_list(any_setup: Setup) -> None:
    expected = acl("u::r--,u:2000:rw-,g::r-x,m::--x,o::-w-").encode()
    async with open_rig(any_setup) as rig:
        made = await make_file(rig, b"f")
        await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
        await rig.fs.setattr(made.inode_id, AttributeChanges(mode=0o412))
        assert await rig.fs.getxattr(made.inode_id, ACCESS) == expected
    async with open_rig(any_setup) as rig:
        assert await rig.fs.getxattr((await find(rig, b"f")).inode_id, ACCESS) == expected


async def test_access_asks_the_list(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    assert not await rig.fs.access(made.inode_id, os.W_OK, OTHER_USER)
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
    assert await rig.fs.access(made.inode_id, os.W_OK, OTHER_USER)
    assert not await rig.fs.access(made.inode_id, os.X_OK, OTHER_USER)


async def test_what_is_made_inherits(any_setup: Setup) -> None:
    default = acl("u::rwx,u:2000:rwx,g::r-x,m::rwx,o::---")
    masked = Caller(uid=1000, gid=1000, umask=0o077)
    async with open_rig(any_setup) as rig:
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        await rig.fs.setxattr(directory.inode_id, DEFAULT, default.encode(), USER)
        opened, _ = await rig.fs.create(directory.inode_id, b"f", 0o664, os.O_RDWR, masked)
        await rig.fs.release(opened.handle)
        await rig.fs.mkdir(directory.inode_id, b"sub", 0o777, masked)
        await rig.fs.symlink(directory.inode_id, b"link", b"f", masked)
    async with open_rig(any_setup) as rig:
        directory = await find(rig, b"d")
        made = await rig.fs.lookup(directory.inode_id, b"f")
        sub = await rig.fs.lookup(directory.inode_id, b"sub")
        link = await rig.fs.lookup(directory.inode_id, b"link")
        assert made is not None
        assert sub is not None
        assert link is not None
        assert stat.S_IMODE(made.mode) == 0o660
        expected = acl("u::rw-,u:2000:rwx,g::r-x,m::rw-,o::---").encode()
        assert await rig.fs.getxattr(made.inode_id, ACCESS) == expected
        assert await rig.fs.listxattr(made.inode_id) == [ACCESS]
        assert stat.S_IMODE(sub.mode) == 0o770
        assert await rig.fs.getxattr(sub.inode_id, DEFAULT) == default.encode()
        assert await rig.fs.listxattr(link.inode_id) == []


async def test_without_a_default_list_the_umask_counts(rig: Rig) -> None:
    masked = Caller(uid=1000, gid=1000, umask=0o027)
    opened, made = await rig.fs.create(ROOT, b"f", 0o666, os.O_RDWR, masked)
    await rig.fs.release(opened.handle)
    assert stat.S_IMODE(made.mode) == 0o640
    assert stat.S_IMODE((await rig.fs.mkdir(ROOT, b"d", 0o777, masked)).mode) == 0o750
    node = await rig.fs.mknod(ROOT, b"p", stat.S_IFIFO | 0o666, 0, masked)
    assert stat.S_IMODE(node.mode) == 0o640


async def test_a_default_list_is_for_directories(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    with refused(errno.EACCES):
        await rig.fs.setxattr(made.inode_id, DEFAULT, NAMED.encode(), USER)
    link = await rig.fs.symlink(ROOT, b"link", b"f", USER)
    for name in (ACCESS, DEFAULT):
        with refused(errno.EOPNOTSUPP):
            await rig.fs.setxattr(link.inode_id, name, NAMED.encode(), USER)


async def test_removing_a_list_leaves_the_mode(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
    for _ in range(2):
        await rig.fs.removexattr(made.inode_id, ACCESS)
        assert await rig.fs.listxattr(made.inode_id) == []
        assert stat.S_IMODE((await rig.fs.getattr(made.inode_id)).mode) == 0o770
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
    await rig.fs.setxattr(made.inode_id, ACCESS, raw(), USER)
    assert await rig.fs.listxattr(made.inode_id) == []


async def test_a_refused_list_changes_nothing(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), USER)
    with refused(errno.EINVAL):
        await rig.fs.setxattr(made.inode_id, ACCESS, raw(OWNER, GROUP), USER)
    assert await rig.fs.getxattr(made.inode_id, ACCESS) == NAMED.encode()


@pytest.mark.parametrize(
    ("caller", "kept"),
    [
        (Caller(0, 0), True),
        (Caller(1000, 1000), True),
        (Caller(1000, 5, groups=frozenset({1000})), True),
        (Caller(1000, 5), False),
    ],
)
async def test_set_group_id_is_for_members(rig: Rig, caller: Caller, *, kept: bool) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setattr(made.inode_id, AttributeChanges(mode=0o2755))
    await rig.fs.setxattr(made.inode_id, ACCESS, NAMED.encode(), caller)
    assert bool((await rig.fs.getattr(made.inode_id)).mode & stat.S_ISGID) is kept
