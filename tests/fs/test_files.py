"""Regular files: attributes one by one, sizes, handles, and what becomes of the objects behind them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3blobfs.config import OBJECT_MAX_BYTES, AccessTimes
from s3blobfs.fs.attributes import AttributeChanges, Caller
from s3blobfs.types import Keying
from tests.fs.calls import Clock, find, make_file, opened_file, pattern, refused, resize, versions, xattr
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

BLOCK = 262_144
"""Bytes under one checksum."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(tmp_path: Path, clock: Clock) -> AsyncIterator[Rig]:
    async with open_rig(Setup(tmp_path / "volume", now_ns=clock)) as rig:
        yield rig


# -- setattr -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        (AttributeChanges(mode=0o4511), {"mode": stat.S_IFREG | 0o4511}),
        (AttributeChanges(uid=7), {"uid": 7}),
        (AttributeChanges(gid=8), {"gid": 8}),
        (AttributeChanges(uid=7, gid=8), {"uid": 7, "gid": 8}),
        (AttributeChanges(atime_ns=1), {"atime_ns": 1}),
        (AttributeChanges(mtime_ns=-1_999_999_999), {"mtime_ns": -1_999_999_999}),
        (AttributeChanges(atime_ns=0, mtime_ns=2**62), {"atime_ns": 0, "mtime_ns": 2**62}),
    ],
    ids=["mode", "uid", "gid", "both ids", "atime", "mtime before 1970", "both times"],
)
async def test_each_attribute_alone(
    timed: Rig, clock: Clock, changes: AttributeChanges, after: dict[str, int]
) -> None:
    before = await timed.write_file(b"f", b"content")
    now = clock.tick()
    changed = await timed.fs.setattr(before.inode_id, changes)
    assert changed == before._replace(**after, ctime_ns=now)
    await timed.fs.forget([(before.inode_id, 9)])
    assert await timed.fs.getattr(before.inode_id) == changed


async def test_attributes_survive_a_remount(any_setup: Setup) -> None:
    async with open_rig(any_setup) as rig:
        made = await rig.write_file(b"f", b"content")
        await rig.fs.setattr(
            made.inode_id,
            AttributeChanges(
                mode=0o6755, uid=2**32 - 2, gid=3, atime_ns=123, mtime_ns=1_600_000_000_000_000_001
            ),
        )
        before = await rig.fs.getattr(made.inode_id)
    async with open_rig(any_setup) as rig:
        assert await find(rig, b"f") == before


async def test_attributes_of_a_file_that_is_being_written(timed: Rig, clock: Clock) -> None:
    """What is set on purpose stands against the times of writes that came before it."""
    opened, made = await timed.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    clock.tick()
    await timed.fs.write(opened.handle, 0, b"content")
    now = clock.tick()
    changed = await timed.fs.setattr(made.inode_id, AttributeChanges(mtime_ns=5, mode=0o600))
    assert (changed.mtime_ns, changed.ctime_ns, stat.S_IMODE(changed.mode)) == (5, now, 0o600)
    clock.tick()
    await timed.fs.flush(opened.handle)
    await timed.fs.release(opened.handle)
    after = await timed.fs.getattr(made.inode_id)
    assert (after.mtime_ns, after.ctime_ns, stat.S_IMODE(after.mode)) == (5, now, 0o600)
    assert after.size_bytes == 7


async def test_writes_mark_mtime_and_ctime_in_nanoseconds(timed: Rig, clock: Clock) -> None:
    made = await timed.write_file(b"f", b"content")
    async with opened_file(timed, made.inode_id) as handle:
        now = clock.tick(1)
        await timed.fs.write(handle, 0, b"C")
        after = await timed.fs.getattr(made.inode_id)
        assert (after.mtime_ns, after.ctime_ns) == (now, now)
        assert after.atime_ns == made.atime_ns
        clock.tick()
    after = await timed.fs.getattr(made.inode_id)
    assert (after.mtime_ns, after.ctime_ns) == (now, now)


@pytest.mark.parametrize(
    ("access_times", "of_file", "of_directory"),
    [
        (AccessTimes(), True, True),
        (AccessTimes(directories=False), True, False),
        (AccessTimes(files=False, directories=False), False, False),
    ],
)
async def test_whose_access_times_are_renewed(
    tmp_path: Path, clock: Clock, access_times: AccessTimes, *, of_file: bool, of_directory: bool
) -> None:
    async with open_rig(Setup(tmp_path / "volume", now_ns=clock, access_times=access_times)) as rig:
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        made = await rig.write_file(b"f", b"content", parent=directory.inode_id)
        now = clock.tick()
        handle = await rig.fs.opendir(directory.inode_id)
        await rig.fs.readdir(handle, 0)
        await rig.fs.releasedir(handle)
        async with opened_file(rig, made.inode_id) as handle:
            await rig.fs.read(handle, 0, 7)
        assert ((await rig.fs.getattr(made.inode_id)).atime_ns == now) is of_file
        assert ((await rig.fs.getattr(directory.inode_id)).atime_ns == now) is of_directory


async def test_opening_and_closing_marks_nothing(timed: Rig, clock: Clock) -> None:
    made = await timed.write_file(b"f", b"content")
    clock.tick()
    async with opened_file(timed, made.inode_id):
        pass
    assert await timed.fs.getattr(made.inode_id) == made


async def test_reads_mark_atime_as_relatime_does(timed: Rig, clock: Clock) -> None:
    made = await timed.write_file(b"f", b"content")
    first = clock.tick()
    await timed.read_file(b"f")
    assert (await find(timed, b"f")).atime_ns == first
    clock.tick()
    await timed.read_file(b"f")
    assert (await find(timed, b"f")).atime_ns == first  # newer than mtime and ctime: not again
    later = clock.tick(24 * 3600 * 10**9)
    await timed.read_file(b"f")
    after = await find(timed, b"f")
    assert after.atime_ns == later
    assert (after.mtime_ns, after.ctime_ns) == (made.mtime_ns, made.ctime_ns)
    await timed.fs.forget([(made.inode_id, 99)])
    assert (await timed.fs.getattr(made.inode_id)).atime_ns == later


# -- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 4096, BLOCK - 1, BLOCK, BLOCK + 1])
async def test_truncate_of_a_closed_file(any_rig: Rig, size: int) -> None:
    rig = any_rig
    data = b"content"
    made = await rig.write_file(b"f", data)
    after = await resize(rig, made.inode_id, size)
    assert after.size_bytes == size
    expected = data[:size] + bytes(max(0, size - len(data)))
    assert await rig.read_file(b"f") == expected
    if size:  # it waited for S3, as a close would
        assert await xattr(rig, made.inode_id, "state") == "stored"
        key = await xattr(rig, made.inode_id, "key")
        assert versions(rig, key)[-1] == expected


@pytest.mark.parametrize("size", [0, 1, 7, 100, BLOCK + 1])
async def test_truncate_of_an_open_file(any_rig: Rig, size: int) -> None:
    rig = any_rig
    data = b"content"
    made = await rig.write_file(b"f", data)
    expected = data[:size] + bytes(max(0, size - len(data)))
    async with opened_file(rig, made.inode_id) as handle:
        puts = len(rig.object_keys())
        await resize(rig, made.inode_id, size)
        assert await rig.fs.read(handle, 0, size + 10) == expected
        assert len(rig.object_keys()) == puts
    assert await rig.read_file(b"f") == expected
    assert (await find(rig, b"f")).size_bytes == size


async def test_truncate_to_the_same_size_marks_the_times_only(timed: Rig, clock: Clock) -> None:
    made = await timed.write_file(b"f", b"content")
    now = clock.tick()
    after = await resize(timed, made.inode_id, 7)
    assert (after.mtime_ns, after.ctime_ns) == (now, now)
    assert await xattr(timed, made.inode_id, "state") == "stored"


async def test_truncate_is_for_files(rig: Rig) -> None:
    directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    with refused(errno.EISDIR):
        await resize(rig, directory.inode_id, 0)
    fifo = await rig.fs.mknod(ROOT, b"p", stat.S_IFIFO | 0o600, 0, USER)
    with refused(errno.EINVAL):
        await resize(rig, fifo.inode_id, 0)


async def test_growing_and_shrinking_and_growing_leaves_zeros(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"abcdef")
    async with opened_file(rig, made.inode_id) as handle:
        await resize(rig, made.inode_id, 3)
        await resize(rig, made.inode_id, 6)
        assert await rig.fs.read(handle, 0, 10) == b"abc\0\0\0"
        await rig.fs.write(handle, 8, b"x")
    assert await rig.read_file(b"f") == b"abc\0\0\0\0\0x"


async def test_a_sparse_file_occupies_what_was_written(any_rig: Rig) -> None:
    rig = any_rig
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 8 * 1024 * 1024, b"end")
    open_now = await rig.fs.getattr(made.inode_id)
    assert open_now.size_bytes == 8 * 1024 * 1024 + 3
    assert open_now.blocks * 512 < 1024 * 1024
    assert await rig.fs.read(opened.handle, 8 * 1024 * 1024 - 2, 10) == b"\0\0end"
    assert await rig.fs.read(opened.handle, 4096, 4096) == bytes(4096)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    closed = await rig.fs.getattr(made.inode_id)
    assert closed.blocks * 512 >= closed.size_bytes  # the object in S3 has no holes
    data = await rig.read_file(b"f")
    assert data == bytes(8 * 1024 * 1024) + b"end"


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2)])
async def test_blocks_of_a_stored_file(rig: Rig, size: int, blocks: int) -> None:
    assert (await rig.write_file(b"f", bytes(size))).blocks == blocks


async def test_a_file_is_at_most_an_object(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    with refused(errno.EFBIG):
        await resize(rig, made.inode_id, OBJECT_MAX_BYTES + 1)
    async with opened_file(rig, made.inode_id) as handle:
        for offset in (OBJECT_MAX_BYTES, OBJECT_MAX_BYTES - 3, 2**62):
            with refused(errno.EFBIG):
                await rig.fs.write(handle, offset, b"1234")
    assert (await find(rig, b"f")).size_bytes == 0


async def test_a_sparse_file_may_be_larger_while_it_is_open(rig: Rig) -> None:
    """It costs nothing, and its size is honest; what S3 cannot hold is refused before anything is sent."""
    huge = 10**15
    made = await make_file(rig, b"f")
    async with opened_file(rig, made.inode_id) as handle:
        await rig.fs.write(handle, 0, b"start")
        await resize(rig, made.inode_id, huge)
        status = await rig.fs.getattr(made.inode_id)
        assert status.size_bytes == huge
        assert status.blocks <= 8
        assert rig.tier.space.staged_bytes <= 4096
        assert await rig.fs.read(handle, huge - 10, 100) == bytes(10)
        assert await rig.fs.read(handle, OBJECT_MAX_BYTES - 3, 10) == bytes(10)
        assert await rig.fs.read(handle, huge, 10) == b""
        for call in (rig.fs.flush, rig.fs.fsync):
            with refused(errno.EFBIG):
                await call(handle)
        with refused(errno.EFBIG):
            await rig.fs.write(handle, huge - 1, b"x")
        assert rig.setup.server.bucket(BUCKET).versions == {}
        await resize(rig, made.inode_id, 7)
        assert await rig.fs.read(handle, 0, 100) == b"start\0\0"
        await rig.fs.flush(handle)
    assert await rig.read_file(b"f") == b"start\0\0"


async def test_empty_files_have_no_object(any_rig: Rig) -> None:
    rig = any_rig
    made = await make_file(rig, b"f")
    await rig.fs.mknod(ROOT, b"g", 0o644, 0, USER)
    async with opened_file(rig, made.inode_id) as handle:
        await rig.fs.fsync(handle)
    assert rig.setup.server.bucket(BUCKET).versions == {}
    assert await rig.read_file(b"f") == b""
    assert await xattr(rig, made.inode_id, "state") == "stored"
    with refused(errno.ENODATA):
        await xattr(rig, made.inode_id, "key")


async def test_emptying_a_file_lets_go_of_its_object(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    await resize(rig, made.inode_id, 0)
    assert await rig.read_file(b"f") == b""
    await rig.write_file(b"f", b"again")
    await rig.write_file(b"f", b"")
    assert (await find(rig, b"f")).size_bytes == 0
    assert await rig.read_file(b"f") == b""


# -- open flags ----------------------------------------------------------------------------------------


async def test_trunc_empties(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    async with opened_file(rig, made.inode_id, os.O_RDWR | os.O_TRUNC) as handle:
        assert (await rig.fs.getattr(made.inode_id)).size_bytes == 0
        assert await rig.fs.read(handle, 0, 10) == b""
        await rig.fs.write(handle, 0, b"new")
    assert await rig.read_file(b"f") == b"new"


async def test_an_append_goes_to_the_end_whatever_the_kernel_takes_for_it(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"one")
    async with (
        opened_file(rig, made.inode_id, os.O_WRONLY | os.O_APPEND) as first,
        opened_file(rig, made.inode_id, os.O_WRONLY | os.O_APPEND) as second,
    ):
        await rig.fs.write(first, 3, b" two")
        await rig.fs.write(second, 1000, b" three")
        await rig.fs.write(first, 13, b" four")
    assert await rig.read_file(b"f") == b"one two three four"


async def test_a_store_through_a_mapping_stays_where_it_is_though_the_handle_appends(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    async with opened_file(rig, made.inode_id, os.O_RDWR | os.O_APPEND) as handle:
        await rig.fs.write(handle, 0, b"CON")
        await rig.fs.write(handle, 7, b"!")
        await rig.fs.write(handle, 5, b"NT")
    assert await rig.read_file(b"f") == b"CONteNT!"


async def test_handles_do_what_they_were_opened_for(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"content")
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as handle:
        with refused(errno.EBADF):
            await rig.fs.write(handle, 0, b"x")
    async with opened_file(rig, made.inode_id, os.O_WRONLY) as handle:
        with refused(errno.EBADF):
            await rig.fs.read(handle, 0, 1)
    for call in (rig.fs.flush, rig.fs.fsync, rig.fs.release):
        with refused(errno.EBADF):
            await call(handle)
    with refused(errno.EBADF):
        await rig.fs.read(handle, 0, 1)
    with refused(errno.EBADF):
        await rig.fs.write(handle, 0, b"x")
    assert await rig.read_file(b"f") == b"content"


async def test_reads_end_at_the_end(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as handle:
        assert await rig.fs.read(handle, 0, 0) == b""
        assert await rig.fs.read(handle, 6, 100) == b"t"
        assert await rig.fs.read(handle, 7, 100) == b""
        assert await rig.fs.read(handle, 2**40, 100) == b""


# -- several handles -----------------------------------------------------------------------------------


async def test_what_one_handle_writes_another_reads(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as reader,
        opened_file(rig, made.inode_id) as one,
        opened_file(rig, made.inode_id) as two,
    ):
        assert await rig.fs.read(reader, 0, 100) == b"content"
        await rig.fs.write(one, 0, b"C")
        assert await rig.fs.read(reader, 0, 100) == b"Content"
        await rig.fs.write(two, 6, b"T!")
        assert await rig.fs.read(one, 0, 100) == b"ContenT!"
        await rig.fs.flush(one)
        assert await rig.fs.read(reader, 0, 100) == b"ContenT!"
        await rig.fs.write(two, 0, b"c")
        assert await rig.fs.read(reader, 0, 100) == b"contenT!"
    assert await rig.read_file(b"f") == b"contenT!"


@pytest.mark.parametrize("written", [b"", b"1234"], ids=["clean", "dirty"])
async def test_truncated_by_who_only_reads(any_setup: Setup, written: bytes) -> None:
    """Linux truncates with O_RDONLY | O_TRUNC, too (open(2))."""
    async with open_rig(any_setup) as rig:
        made = await rig.write_file(b"f", b"stored before")
        writer = await rig.fs.open(made.inode_id, os.O_WRONLY)
        if written:
            await rig.fs.write(writer.handle, 0, written)
        else:
            await rig.fs.release(writer.handle)
        reader = await rig.fs.open(made.inode_id, os.O_RDONLY | os.O_TRUNC)
        assert (await rig.fs.getattr(made.inode_id)).size_bytes == 0
        await rig.fs.release(reader.handle)
        if written:
            await rig.fs.flush(writer.handle)
            await rig.fs.release(writer.handle)
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"f") == b""


async def test_a_reader_goes_on_through_a_new_version(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"first")
    async with opened_file(rig, made.inode_id, os.O_RDONLY) as reader:
        assert await rig.fs.read(reader, 0, 100) == b"first"
        await rig.write_file(b"f", b"second!")
        assert await rig.fs.read(reader, 0, 100) == b"second!"
        await rig.write_file(b"f", b"")
        assert await rig.fs.read(reader, 0, 100) == b""


async def test_close_by_each_of_two_handles_stores(any_rig: Rig) -> None:
    rig = any_rig
    made = await make_file(rig, b"f")
    one = (await rig.fs.open(made.inode_id, os.O_RDWR)).handle
    two = (await rig.fs.open(made.inode_id, os.O_RDWR)).handle
    await rig.fs.write(one, 0, b"one")
    await rig.fs.flush(two)  # any close of a changed file stores it, as it is shared
    assert await xattr(rig, made.inode_id, "state") == "stored"
    await rig.fs.flush(one)
    await rig.fs.release(one)
    await rig.fs.write(two, 3, b" two")
    assert await xattr(rig, made.inode_id, "state") == "staged"
    await rig.fs.flush(two)
    await rig.fs.release(two)
    assert await xattr(rig, made.inode_id, "state") == "stored"
    assert await rig.read_file(b"f") == b"one two"


async def test_a_write_while_the_upload_is_in_flight(any_rig: Rig) -> None:
    rig = any_rig
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, b"first version")
    stall = rig.faults.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fs.flush, opened.handle)
        await stall.arrived.wait()
        assert await xattr(rig, made.inode_id, "state") == "uploading"
        await rig.fs.write(opened.handle, 0, b"F")
        await resize(rig, made.inode_id, 5)
        assert await rig.fs.read(opened.handle, 0, 100) == b"First"
        stall.release()
    # The close that was waiting got the content it closed.
    stored = [version[-1].data for version in rig.setup.server.bucket(BUCKET).versions.values()]
    assert stored == [b"first version"]
    assert await rig.fs.read(opened.handle, 0, 100) == b"First"
    assert (await rig.fs.getattr(made.inode_id)).size_bytes == 5
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    assert await rig.read_file(b"f") == b"First"
    assert versions(rig, await xattr(rig, made.inode_id, "key"))[-1] == b"First"


async def test_emptied_while_the_upload_is_in_flight(any_rig: Rig) -> None:
    rig = any_rig
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, b"content")
    stall = rig.faults.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fs.flush, opened.handle)
        await stall.arrived.wait()
        await resize(rig, made.inode_id, 0)
        await rig.fs.flush(opened.handle)
        stall.release()
    await rig.fs.release(opened.handle)
    await rig.fs.sync(None, None)
    assert await rig.read_file(b"f") == b""
    assert (await find(rig, b"f")).size_bytes == 0


# -- unlinked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush_first", [True, False], ids=["stored before", "never stored"])
async def test_unlinked_while_open(any_setup: Setup, flush_first: bool) -> None:
    async with open_rig(replace(any_setup, grace_s=0.0)) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        if flush_first:
            await rig.fs.flush(opened.handle)
        await rig.fs.unlink(ROOT, b"f")
        assert await rig.fs.read(opened.handle, 0, 100) == b"content"
        await rig.fs.write(opened.handle, 7, b" and more")
        assert await rig.fs.read(opened.handle, 0, 100) == b"content and more"
        after = await rig.fs.getattr(made.inode_id)
        assert (after.nlink, after.size_bytes) == (0, 16)
        await rig.fs.setattr(made.inode_id, AttributeChanges(mode=0o600))
        await resize(rig, made.inode_id, 3)
        await rig.fs.fsync(opened.handle)
        await rig.fs.flush(opened.handle)
        assert await rig.fs.read(opened.handle, 0, 100) == b"con"
        await rig.fs.release(opened.handle)
        await rig.reaper.drain()
        assert rig.setup.server.bucket(BUCKET).versions == {}
        assert list(rig.tier.staging.names()) == []
        await rig.fs.forget([(made.inode_id, 1)])
        with refused(errno.ESTALE):
            await rig.fs.getattr(made.inode_id)


async def test_unlinked_while_the_upload_is_in_flight(any_setup: Setup) -> None:
    async with open_rig(replace(any_setup, grace_s=0.0)) as rig:
        opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        stall = rig.faults.on("put", nth=1).stalls()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.flush, opened.handle)
            await stall.arrived.wait()
            await rig.fs.unlink(ROOT, b"f")
            assert await rig.fs.read(opened.handle, 0, 100) == b"content"
            stall.release()
        assert await rig.fs.read(opened.handle, 0, 100) == b"content"
        await rig.fs.release(opened.handle)
        await rig.fs.sync(None, None)
        await rig.reaper.drain()
        assert rig.setup.server.bucket(BUCKET).versions == {}


async def test_removed_altogether_while_the_upload_is_in_flight(any_setup: Setup) -> None:
    async with open_rig(replace(any_setup, grace_s=0.0)) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        stall = rig.faults.on("put", nth=1).stalls()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.flush, opened.handle)
            await stall.arrived.wait()
            await rig.fs.release(opened.handle)
            await rig.fs.unlink(ROOT, b"f")
            stall.release()
        await rig.fs.sync(None, None)
        await rig.reaper.drain()
        assert rig.setup.server.bucket(BUCKET).versions == {}
        await rig.fs.forget([(made.inode_id, 1)])


async def test_many_readers_of_an_unlinked_file(any_rig: Rig) -> None:
    rig = any_rig
    data = pattern(BLOCK + 100)
    made = await rig.write_file(b"f", data)
    async with (
        opened_file(rig, made.inode_id, os.O_RDONLY) as one,
        opened_file(rig, made.inode_id, os.O_RDONLY) as two,
    ):
        await rig.fs.unlink(ROOT, b"f")
        assert await rig.fs.read(one, 0, BLOCK + 200) == data
        assert await rig.fs.read(two, BLOCK, 10) == data[BLOCK : BLOCK + 10]


# -- objects -------------------------------------------------------------------------------------------


async def test_versions_of_a_file(tmp_path: Path) -> None:
    """A second write keeps the first version; an unlink deletes the newest one and leaves no marker."""
    for cached in (True, False):
        setup = Setup(tmp_path / str(cached), keying=Keying.VERSIONED, cached=cached)
        async with open_rig(setup) as rig:
            made = await rig.write_file(b"f", b"first")
            key = await xattr(rig, made.inode_id, "key")
            await rig.write_file(b"f", b"second")
            assert await xattr(rig, made.inode_id, "key") == key
            assert versions(rig, key) == [b"first", b"second"]
            newest = setup.server.bucket(BUCKET).versions[key][-1].info.version_id
            assert await xattr(rig, made.inode_id, "version_id") == newest
            await rig.fs.unlink(ROOT, b"f")
            assert await rig.reaper.drain() == 0
            assert versions(rig, key) == [b"first"]


async def test_a_rename_keeps_the_object(tmp_path: Path) -> None:
    async with open_rig(Setup(tmp_path / "volume", keying=Keying.VERSIONED)) as rig:
        made = await rig.write_file(b"f", b"first")
        key = await xattr(rig, made.inode_id, "key")
        await rig.fs.rename(ROOT, b"f", ROOT, b"g")
        await rig.write_file(b"g", b"second")
        assert versions(rig, key) == [b"first", b"second"]


async def test_digest_objects_are_shared_until_the_last_file_is_gone(tmp_path: Path) -> None:
    async with open_rig(Setup(tmp_path / "volume", grace_s=0.0)) as rig:
        await rig.write_file(b"f", b"same")
        await rig.write_file(b"g", b"same")
        assert len(rig.object_keys()) == 1
        await rig.fs.unlink(ROOT, b"f")
        assert await rig.reaper.drain() == 0
        assert await rig.read_file(b"g") == b"same"
        await rig.fs.unlink(ROOT, b"g")
        assert await rig.reaper.drain() == 0
        assert rig.object_keys() == []
        await rig.write_file(b"h", b"same")
        assert await rig.read_file(b"h") == b"same"
        assert len(rig.object_keys()) == 1


async def test_statfs_counts_what_is_there(rig: Rig) -> None:
    before = await rig.fs.statfs()
    await rig.write_file(b"f", bytes(10_000))
    await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    after = await rig.fs.statfs()
    assert after.used_inodes - before.used_inodes == 2
    assert after.used_bytes - before.used_bytes == 10_000
    assert after.free_bytes > 2**40


async def test_access_goes_by_the_bits(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.setattr(made.inode_id, AttributeChanges(mode=0o640, uid=10, gid=20))
    owner, member, other = Caller(10, 99), Caller(11, 99, groups=frozenset({20})), Caller(12, 99)
    for who, mask, allowed in (
        (owner, os.R_OK | os.W_OK, True),
        (owner, os.X_OK, False),
        (member, os.R_OK, True),
        (member, os.W_OK, False),
        (other, os.R_OK, False),
        (Caller(0, 0), os.R_OK | os.W_OK, True),
        (Caller(0, 0), os.X_OK, False),
    ):
        assert await rig.fs.access(made.inode_id, mask, who) is allowed
