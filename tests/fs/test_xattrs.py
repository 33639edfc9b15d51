"""Extended attributes: those of users, and the filesystem's own."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from s3blobfs.index import xattrs
from s3blobfs.types import Durability, Keying
from tests.fs.calls import Clock, find, make_file, refused, versions, xattr
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, add_store, open_rig

OURS = ("state", "key", "version_id", "digest", "sha256", "store")


async def test_set_get_list_remove(any_setup: Setup) -> None:
    values = {
        b"user.text": b"value",
        b"user.empty": b"",
        b"trusted.bin": bytes(range(256)),
        b"security.x": b"y",
    }
    async with open_rig(any_setup) as rig:
        made = await make_file(rig, b"f")
        for name, value in values.items():
            await rig.fs.setxattr(made.inode_id, name, value, USER)
        await rig.fs.setxattr(made.inode_id, b"user.text", b"replaced", USER)
        assert sorted(await rig.fs.listxattr(made.inode_id)) == sorted(values)
        await rig.fs.removexattr(made.inode_id, b"security.x")
        with refused(errno.ENODATA):
            await rig.fs.getxattr(made.inode_id, b"security.x")
    async with open_rig(any_setup) as rig:
        made = await find(rig, b"f")
        for name, value in {**values, b"user.text": b"replaced"}.items():
            if name != b"security.x":
                assert await rig.fs.getxattr(made.inode_id, name) == value
        assert b"security.x" not in await rig.fs.listxattr(made.inode_id)


async def test_what_is_missing_is_enodata(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    for name in (b"user.none", b"user.s3blobfs.none", b"security.capability", b"system.posix_acl_access"):
        with refused(errno.ENODATA):
            await rig.fs.getxattr(made.inode_id, name)
    with refused(errno.ENODATA):
        await rig.fs.removexattr(made.inode_id, b"user.none")


async def test_limits(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    longest = b"user." + b"n" * 250
    await rig.fs.setxattr(made.inode_id, longest, bytes(65_536), USER)
    assert await rig.fs.getxattr(made.inode_id, longest) == bytes(65_536)
    with refused(errno.ERANGE):
        await rig.fs.setxattr(made.inode_id, longest + b"n", b"", USER)
    with refused(errno.E2BIG):
        await rig.fs.setxattr(made.inode_id, b"user.x", bytes(65_537), USER)
    assert await rig.fs.listxattr(made.inode_id) == [longest]


@pytest.mark.parametrize("name", [b"system.posix_acl", b"system.x", b"other.x", b"user", b"plain"])
async def test_other_namespaces_are_refused(rig: Rig, name: bytes) -> None:
    made = await make_file(rig, b"f")
    with refused(errno.EOPNOTSUPP):
        await rig.fs.setxattr(made.inode_id, name, b"x", USER)
    with refused(errno.EOPNOTSUPP):
        await rig.fs.removexattr(made.inode_id, name)


async def test_user_attributes_are_for_files_and_directories(rig: Rig) -> None:
    link = await rig.fs.symlink(ROOT, b"s", b"target", USER)
    fifo = await rig.fs.mknod(ROOT, b"p", stat.S_IFIFO | 0o600, 0, USER)
    for inode_id in (link.inode_id, fifo.inode_id):
        with refused(errno.EPERM):
            await rig.fs.setxattr(inode_id, b"user.x", b"y", USER)
        await rig.fs.setxattr(inode_id, b"trusted.x", b"y", USER)
        assert await rig.fs.getxattr(inode_id, b"trusted.x") == b"y"
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    await rig.fs.setxattr(directory.inode_id, b"user.x", b"y", USER)
    assert await rig.fs.listxattr(directory.inode_id) == [b"user.x"]


async def test_changes_mark_ctime_only(tmp_path: Path) -> None:
    clock = Clock()
    async with open_rig(Setup(tmp_path / "volume", now_ns=clock)) as rig:
        made = await make_file(rig, b"f")
        for call in (
            partial(rig.fs.setxattr, made.inode_id, b"user.x", b"y", USER),
            partial(rig.fs.removexattr, made.inode_id, b"user.x"),
        ):
            now = clock.tick()
            await call()
            after = await rig.fs.getattr(made.inode_id)
            assert (after.ctime_ns, after.mtime_ns) == (now, made.mtime_ns)


async def test_attributes_go_with_the_file(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setxattr(made.inode_id, b"user.x", b"y", USER)
    await rig.fs.unlink(ROOT, b"f")
    await rig.fs.forget([(made.inode_id, 1)])
    other = await make_file(rig, b"f")
    assert await rig.fs.listxattr(other.inode_id) == []


async def test_attributes_of_an_unlinked_open_file(rig: Rig) -> None:
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.setxattr(made.inode_id, b"user.x", b"y", USER)
    await rig.fs.unlink(ROOT, b"f")
    await rig.fs.setxattr(made.inode_id, b"user.x", b"z", USER)
    assert await rig.fs.getxattr(made.inode_id, b"user.x") == b"z"
    await rig.fs.release(opened.handle)


# -- ours ----------------------------------------------------------------------------------------------


async def test_ours_tell_where_the_content_is(any_rig: Rig) -> None:
    rig = any_rig
    data = b"some content"
    made = await rig.write_file(b"f", data)
    assert await xattr(rig, made.inode_id, "digest") == hashlib.md5(data).hexdigest()
    assert await xattr(rig, made.inode_id, "sha256") == hashlib.sha256(data).hexdigest()
    assert await xattr(rig, made.inode_id, "store") == "default"
    assert await xattr(rig, made.inode_id, "state") == "stored"
    key = await xattr(rig, made.inode_id, "key")
    assert versions(rig, key) == [data]
    if rig.setup.keying is Keying.VERSIONED:
        newest = rig.setup.server.bucket(BUCKET).versions[key][-1].info.version_id
        assert await xattr(rig, made.inode_id, "version_id") == newest
    else:
        assert key == hashlib.md5(data).hexdigest()
        with refused(errno.ENODATA):
            await xattr(rig, made.inode_id, "version_id")


async def test_ours_are_read_only_and_not_listed(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"content")
    await rig.fs.setxattr(made.inode_id, b"user.s3blob", b"not ours", USER)
    for name in (*OURS, "control", "anything"):
        with refused(errno.EPERM):
            await rig.fs.setxattr(made.inode_id, f"user.s3blobfs.{name}".encode(), b"x", USER)
        with refused(errno.EPERM):
            await rig.fs.removexattr(made.inode_id, f"user.s3blobfs.{name}".encode())
    assert await rig.fs.listxattr(made.inode_id) == [b"user.s3blob"]


async def test_ours_are_of_regular_files(rig: Rig) -> None:
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    link = await rig.fs.symlink(ROOT, b"s", b"target", USER)
    for inode_id in (directory.inode_id, link.inode_id):
        for name in OURS:
            with refused(errno.ENODATA):
                await xattr(rig, inode_id, name)


async def test_state_from_staged_to_stored(any_setup: Setup) -> None:
    async with open_rig(any_setup) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        assert await xattr(rig, made.inode_id, "state") == "stored"  # empty: nothing is missing in S3
        await rig.fs.write(opened.handle, 0, b"content")
        assert await xattr(rig, made.inode_id, "state") == "staged"
        with refused(errno.ENODATA):
            await xattr(rig, made.inode_id, "key")
        stall = rig.faults.on("put").stalls()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.flush, opened.handle)
            await stall.arrived.wait()
            assert await xattr(rig, made.inode_id, "state") == "uploading"
            stall.release()
        assert await xattr(rig, made.inode_id, "state") == "stored"
        await rig.fs.release(opened.handle)


async def test_state_of_a_file_whose_upload_waits(tmp_path: Path) -> None:
    """More files than are uploaded at once: the last ones are staged, and say so."""
    async with open_rig(Setup(tmp_path / "volume", durability=Durability.DISK)) as rig:
        stall = rig.faults.on("put").stalls()
        made = [await rig.write_file(b"f%d" % number, b"%d" % number) for number in range(200)]
        await stall.arrived.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        states = {await xattr(rig, each.inode_id, "state") for each in made}
        stall.release()
        assert states == {"staged", "uploading"}
        await rig.fs.sync(None, None)
        assert {await xattr(rig, each.inode_id, "state") for each in made} == {"stored"}


async def test_the_store_is_that_of_the_directory(rig: Rig) -> None:
    other = await add_store(rig, "other", "other/")
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    await rig.fs.bind_store(directory.inode_id, other.config.id)
    made = await rig.write_file(b"f", b"content", directory.inode_id)
    assert await xattr(rig, made.inode_id, "store") == "other"
    assert (await xattr(rig, made.inode_id, "key")).startswith("other/")
    await rig.fs.rename(directory.inode_id, b"f", ROOT, b"f")
    assert await xattr(rig, made.inode_id, "store") == "other"


async def test_truncation_by_open_drops_file_capabilities(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"content")
    await rig.fs.setxattr(made.inode_id, b"security.capability", b"cap", USER)
    await rig.fs.setxattr(made.inode_id, b"user.other", b"stays", USER)
    opened = await rig.fs.open(made.inode_id, os.O_WRONLY)
    assert await rig.fs.getxattr(made.inode_id, b"security.capability") == b"cap"
    async with trio.open_nursery() as nursery:
        for _ in range(2):  # of which neither fails because the other was quicker
            nursery.start_soon(rig.fs.open, made.inode_id, os.O_WRONLY | os.O_TRUNC)
    assert await rig.fs.listxattr(made.inode_id) == [b"user.other"]
    assert await rig.db.read(lambda tx: xattrs.every(tx, made.inode_id)) == {b"user.other": b"stays"}
    await rig.fs.release(opened.handle)
