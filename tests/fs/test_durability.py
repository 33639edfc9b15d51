"""What close and fsync promise, when S3 fails, when the process dies, and when the local disk is full."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.config import MIB, QueueOptions
from s3blobfs.errors import (
    AccessDenied,
    BucketNotFound,
    EntityTooLarge,
    PermanentS3Error,
    TierFull,
    TransientS3Error,
)
from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import Durability
from tests.fs.calls import calm, find, opened_file, pattern, refused, resize, versions, xattr
from tests.support.killed import copy_as_left
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

FAILED_UPLOAD = "is tried again"


class Crash(Exception):
    """The process dies here."""


@asynccontextmanager
async def crashing(setup: Setup) -> AsyncIterator[Rig]:
    """A filesystem that dies at the end of the block: afterwards the local disk and S3 are what they were
    at that instant. What the process had in memory, and what it would have done in the end, is lost."""
    at_crash = setup.directory.with_name(f"{setup.directory.name}-at-crash")
    try:
        async with open_rig(setup) as rig:
            yield rig
            copy_as_left(setup.directory, at_crash)
            buckets = copy.deepcopy(setup.server.buckets)
            raise Crash
    except* Crash:
        pass
    await rig.db.aclose()
    await rig.tier.aclose()
    shutil.rmtree(setup.directory)
    at_crash.rename(setup.directory)
    setup.server.buckets = buckets


def objects(setup: Setup) -> list[bytes]:
    return [history[-1].data for history in setup.server.bucket(BUCKET).versions.values()]


# -- S3 fails ------------------------------------------------------------------------------------------


@pytest.mark.expected_log(FAILED_UPLOAD)
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientS3Error("no answer"), errno.EIO),
        (PermanentS3Error("no"), errno.EIO),
        (AccessDenied("not you"), errno.EIO),
        (BucketNotFound("gone"), errno.EIO),
        (EntityTooLarge("too large"), errno.EFBIG),
    ],
    ids=lambda param: type(param).__name__ if isinstance(param, Exception) else "",
)
async def test_an_error_of_s3_is_an_error_of_close(
    any_setup: Setup, autojump_clock: MockClock, error: Exception, expected: int
) -> None:
    async with open_rig(any_setup) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        rig.faults.on("put", nth=1).raises(error)
        with refused(expected):
            await rig.fs.flush(opened.handle)
        assert await rig.fs.read(opened.handle, 0, 100) == b"content"
        await rig.fs.release(opened.handle)
        assert await rig.read_file(b"f") == b"content"
        assert (await find(rig, b"f")).size_bytes == 7
        await rig.fs.sync(None, None)  # waits for the next attempt
        assert await xattr(rig, made.inode_id, "state") == "stored"
        assert versions(rig, await xattr(rig, made.inode_id, "key")) == [b"content"]


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_who_waits_hears_of_it_and_who_comes_later_waits_for_the_next_attempt(
    any_setup: Setup, autojump_clock: MockClock
) -> None:
    async with open_rig(any_setup) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        other = await rig.fs.open(made.inode_id, os.O_WRONLY)
        await rig.fs.write(opened.handle, 0, b"content")
        told = []

        async def close(handle: int) -> None:
            with refused(errno.EIO):
                await rig.fs.flush(handle)
            told.append(handle)

        rig.faults.on("put", nth=1).raises(TransientS3Error("no answer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, opened.handle)
            nursery.start_soon(close, other.handle)
        assert sorted(told) == [opened.handle, other.handle]
        assert await xattr(rig, made.inode_id, "state") == "staged"
        await rig.fs.fsync(opened.handle)
        assert await xattr(rig, made.inode_id, "state") == "stored"
        await rig.fs.write(opened.handle, 0, b"C")
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        await rig.fs.release(other.handle)
        assert await rig.read_file(b"f") == b"Content"


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_a_truncate_waits_for_s3_and_tells_its_errors(any_rig: Rig) -> None:
    made = await any_rig.write_file(b"f", b"content")
    any_rig.faults.on("put", nth=1).raises(TransientS3Error("no answer"))
    with refused(errno.EIO):
        await resize(any_rig, made.inode_id, 3)
    assert await any_rig.read_file(b"f") == b"con"
    await any_rig.fs.sync(None, None)
    assert await xattr(any_rig, made.inode_id, "state") == "stored"


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_a_file_replaced_while_its_upload_fails(any_setup: Setup, autojump_clock: MockClock) -> None:
    async with open_rig(any_setup) as rig:
        fault = rig.faults.on("put").raises(TransientS3Error("no answer"))
        with refused(errno.EIO):
            await rig.write_file(b"f", b"first")
        made = await find(rig, b"f")
        for handle in rig.fs._core.handles.files():
            await rig.fs.release(handle.number)
        async with opened_file(rig, made.inode_id, os.O_WRONLY | os.O_TRUNC) as number:
            await rig.fs.write(number, 0, b"second")
            assert fault.hits
            calm(rig)
        assert await rig.read_file(b"f") == b"second"
        assert objects(rig.setup) == [b"second"]


# -- durability s3 -------------------------------------------------------------------------------------


async def test_what_close_acknowledged_is_in_s3_and_survives_a_crash(any_setup: Setup) -> None:
    async with crashing(any_setup) as rig:
        await rig.write_file(b"f", b"content")
        assert objects(any_setup) == [b"content"]
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"f") == b"content"
        assert await xattr(rig, (await find(rig, b"f")).inode_id, "state") == "stored"


async def test_fsync_is_a_close_without_closing(any_setup: Setup) -> None:
    async with crashing(any_setup) as rig:
        opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"synced")
        await rig.fs.fsync(opened.handle)
        assert objects(any_setup) == [b"synced"]
        await rig.fs.write(opened.handle, 0, b"LATER!")
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"f") == b"synced"


async def test_close_waits_for_s3(any_rig: Rig) -> None:
    opened, _ = await any_rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await any_rig.fs.write(opened.handle, 0, b"content")
    stall = any_rig.faults.on("put").stalls()
    done = []

    async def close() -> None:
        await any_rig.fs.flush(opened.handle)
        done.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await stall.arrived.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not done
        stall.release()
    assert done
    await any_rig.fs.release(opened.handle)


async def test_other_files_do_not_wait_for_a_close(any_rig: Rig) -> None:
    await any_rig.write_file(b"other", b"other")
    opened, made = await any_rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await any_rig.fs.write(opened.handle, 0, b"content")
    stall = any_rig.faults.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(any_rig.fs.flush, opened.handle)
        await stall.arrived.wait()
        with trio.fail_after(5):
            await any_rig.write_file(b"second", b"second")
            assert await any_rig.read_file(b"other") == b"other"
            assert (await any_rig.fs.getattr(made.inode_id)).size_bytes == 7
            await any_rig.fs.rename(ROOT, b"f", ROOT, b"g")
            assert await any_rig.read_file(b"g") == b"content"
        stall.release()
    await any_rig.fs.release(opened.handle)


async def test_fsync_of_a_directory_stores_everything(any_setup: Setup) -> None:
    async with crashing(any_setup) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"content")
        await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        await rig.fs.fsyncdir()
        assert await xattr(rig, made.inode_id, "state") == "stored"
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"f") == b"content"
        await find(rig, b"d")


async def test_an_orderly_close_stores_what_is_open(any_setup: Setup) -> None:
    for durability in Durability:
        setup = replace(any_setup, directory=any_setup.directory / durability.value, durability=durability)
        setup.directory.parent.mkdir(exist_ok=True)
        async with open_rig(setup) as rig:
            opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
            await rig.fs.write(opened.handle, 0, b"content")
        async with open_rig(setup) as rig:
            assert await rig.read_file(b"f") == b"content"
            assert await xattr(rig, (await find(rig, b"f")).inode_id, "state") == "stored"


# -- durability disk -----------------------------------------------------------------------------------


@pytest.fixture
def disk_setup(any_setup: Setup) -> Setup:
    return replace(any_setup, durability=Durability.DISK)


async def test_close_returns_while_s3_is_held(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        stall = rig.faults.on("put").stalls()
        made = await rig.write_file(b"f", b"content")
        await stall.arrived.wait()
        assert objects(disk_setup) == []
        assert await xattr(rig, made.inode_id, "state") == "uploading"
        await rig.fs.unlink(ROOT, b"f")
        await rig.write_file(b"g", b"acknowledged")
        await rig.fs.fsyncdir()
    async with open_rig(disk_setup) as rig:
        assert await rig.fs.lookup(ROOT, b"f") is None
        assert await rig.read_file(b"g") == b"acknowledged"
        await rig.fs.sync(None, None)
        assert await xattr(rig, (await find(rig, b"g")).inode_id, "state") == "stored"
    assert b"acknowledged" in objects(disk_setup)


async def test_acknowledged_content_survives_crash_after_crash(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        rig.faults.on("put").stalls()
        for number in range(20):
            await rig.write_file(b"f%d" % number, b"%d" % number * 1000)
        await rig.write_file(b"f3", b"rewritten")
    for _ in range(2):
        async with crashing(disk_setup) as rig:
            rig.faults.on("put").stalls()
            assert await rig.read_file(b"f3") == b"rewritten"
    async with open_rig(disk_setup) as rig:
        for number in range(20):
            expected = b"rewritten" if number == 3 else b"%d" % number * 1000
            assert await rig.read_file(b"f%d" % number) == expected
        await rig.fs.sync(None, None)
        for number in range(20):
            made = await find(rig, b"f%d" % number)
            assert await xattr(rig, made.inode_id, "state") == "stored"
    async with open_rig(disk_setup) as rig:
        assert await rig.read_file(b"f3") == b"rewritten"


async def test_fsync_of_a_file_that_stays_open(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        rig.faults.on("put").stalls()
        opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"synced")
        with trio.fail_after(10):
            await rig.fs.fsync(opened.handle)
        assert objects(disk_setup) == []
    async with open_rig(disk_setup) as rig:
        assert await rig.read_file(b"f") == b"synced"


async def test_fsync_again_and_again(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        for number in range(5):
            await rig.fs.write(opened.handle, number, b"%d" % number)
            await rig.fs.fsync(opened.handle)
        await resize(rig, made.inode_id, 3)
        await rig.fs.fsync(opened.handle)
    async with open_rig(disk_setup) as rig:
        assert await rig.read_file(b"f") == b"012"


async def test_what_takes_the_place_of_fsynced_bytes_is_on_the_disk_before_they_go(
    disk_setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure could take both: the new bytes because nobody synced them, the old ones because
    they were removed."""
    events: list[tuple[str, StagedFile]] = []
    sync, discard = StagedFile.sync, StagedFile.discard

    async def recorded_sync(staged: StagedFile) -> None:
        await sync(staged)
        events.append(("synced", staged))

    async def recorded_discard(staged: StagedFile) -> None:
        events.append(("discarded", staged))
        await discard(staged)

    async with open_rig(disk_setup) as rig:
        stall = rig.faults.on("put").stalls()
        await rig.write_file(b"f", b"its upload is under way")
        await stall.arrived.wait()
        opened = await rig.fs.open((await find(rig, b"f")).inode_id, os.O_RDWR)
        await rig.fs.write(opened.handle, 0, b"fsynced, and waits behind it")
        monkeypatch.setattr(StagedFile, "sync", recorded_sync)
        monkeypatch.setattr(StagedFile, "discard", recorded_discard)
        await rig.fs.fsync(opened.handle)
        await rig.fs.flush(opened.handle)
        await rig.fs.write(opened.handle, 0, b"new")
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        assert [what for what, _ in events] == ["synced", "synced", "discarded"]
        (_, old), (_, new), (_, gone) = events
        assert gone is old is not new
        monkeypatch.undo()
        stall.release()


async def test_fsync_of_an_overwritten_file(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        made = await rig.write_file(b"f", b"first content")
        await rig.fs.sync(None, None)
        opened = await rig.fs.open(made.inode_id, os.O_RDWR)
        await rig.fs.write(opened.handle, 0, b"FIRST")
        await rig.fs.fsync(opened.handle)
        await rig.fs.write(opened.handle, 6, b"CONTENT")  # in the staged file, too: not promised
    async with open_rig(disk_setup) as rig:
        data = await rig.read_file(b"f")
        assert data[:6] == b"FIRST "
        assert data[6:] in (b"content", b"CONTENT")


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_close_does_not_tell_errors_of_s3(disk_setup: Setup, autojump_clock: MockClock) -> None:
    async with open_rig(disk_setup) as rig:
        rig.faults.on("put", nth=1).raises(TransientS3Error("no answer"))
        made = await rig.write_file(b"f", b"content")
        await rig.fs.sync(None, None)
        assert await xattr(rig, made.inode_id, "state") == "stored"


async def test_a_file_that_was_made_and_never_written_is_there_after_its_close(any_setup: Setup) -> None:
    for durability in Durability:
        setup = replace(any_setup, durability=durability)
        async with crashing(setup) as rig:
            await rig.write_file(durability.value.encode(), b"")
        async with open_rig(setup) as rig:
            assert await rig.read_file(durability.value.encode()) == b""


@pytest.mark.parametrize("replaces", [False, True])
async def test_copy_of_an_empty_file_is_acknowledged_too(any_setup: Setup, replaces: bool) -> None:
    async with open_rig(any_setup) as rig:
        await rig.write_file(b"empty", b"")
        if replaces:
            await rig.write_file(b"copy", b"not empty")
    async with crashing(any_setup) as rig:
        source = (await find(rig, b"empty")).inode_id
        await rig.fs.copy_file(source, ROOT, b"copy", replace=replaces, caller=USER)
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"copy") == b""


async def test_an_empty_file_is_acknowledged_too(disk_setup: Setup) -> None:
    async with crashing(disk_setup) as rig:
        await rig.write_file(b"f", b"content")
        await rig.fs.sync(None, None)
        await rig.write_file(b"f", b"")
        await rig.fs.fsyncdir()
    async with open_rig(disk_setup) as rig:
        assert await rig.read_file(b"f") == b""


# -- a crash in between --------------------------------------------------------------------------------


async def test_a_crash_before_close_leaves_the_earlier_content(any_setup: Setup) -> None:
    async with crashing(any_setup) as rig:
        made = await rig.write_file(b"f", b"earlier")
        opened = await rig.fs.open(made.inode_id, os.O_RDWR)
        await rig.fs.write(opened.handle, 0, b"unfinished business")
        await rig.fs.create(ROOT, b"new", 0o644, os.O_RDWR, USER)
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(b"f") == b"earlier"
        assert list(rig.tier.staging.names()) == []


async def test_a_crash_while_an_orphan_is_open_leaves_nothing(any_setup: Setup) -> None:
    setup = replace(any_setup, grace_s=0.0)
    async with crashing(setup) as rig:
        made = await rig.write_file(b"f", b"content")
        opened = await rig.fs.open(made.inode_id, os.O_RDWR)
        await rig.fs.unlink(ROOT, b"f")
        await rig.fs.write(opened.handle, 0, b"more")
        await rig.db.commit()
    async with open_rig(setup) as rig:
        await rig.reaper.drain()
        assert objects(setup) == []
        with refused(errno.ESTALE):
            await rig.fs.getattr(made.inode_id)


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_a_crash_between_the_put_and_its_commit(any_setup: Setup) -> None:
    """The object is in S3, its answer was lost with the process: the next mount finds or replaces it."""
    setup = replace(any_setup, durability=Durability.DISK)
    async with crashing(setup) as rig:
        fault = rig.faults.on("put").applies_then_raises(TransientS3Error("lost"))
        await rig.write_file(b"f", b"content")
        with trio.fail_after(10):
            while not fault.hits:
                await trio.testing.wait_all_tasks_blocked()
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"f") == b"content"
        await rig.fs.sync(None, None)
        made = await find(rig, b"f")
        assert versions(rig, await xattr(rig, made.inode_id, "key")) == [b"content"]


# -- a full disk ---------------------------------------------------------------------------------------


@pytest.fixture
def small_setup(any_setup: Setup) -> Setup:
    return replace(any_setup, cache_bytes=4 * MIB)


async def test_a_full_tier_is_enospc_to_the_writer(small_setup: Setup) -> None:
    async with open_rig(small_setup) as rig:
        await rig.write_file(b"before", b"before")
        opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
        written = 0
        with refused(errno.ENOSPC):
            while True:
                written += await rig.fs.write(opened.handle, written, pattern(MIB // 2))
        assert written >= 3 * MIB
        assert (await rig.fs.getattr(made.inode_id)).size_bytes == written
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        expected = b"".join(pattern(MIB // 2) for _ in range(written * 2 // MIB))
        assert await rig.read_file(b"f") == expected
        assert await rig.read_file(b"before") == b"before"
        await rig.write_file(b"after", pattern(MIB))
        assert await rig.read_file(b"after") == pattern(MIB)


async def test_more_than_the_tier_holds_passes_through_it(small_setup: Setup) -> None:
    async with open_rig(small_setup) as rig:
        for number in range(12):
            await rig.write_file(b"f%d" % number, pattern(MIB, number + 1))
        for number in range(12):
            assert await rig.read_file(b"f%d" % number) == pattern(MIB, number + 1)


async def test_a_file_larger_than_the_tier_can_be_read(any_setup: Setup) -> None:
    async with open_rig(any_setup) as rig:
        await rig.write_file(b"f", pattern(6 * MIB))
    async with open_rig(replace(any_setup, cache_bytes=2 * MIB)) as rig:
        made = await find(rig, b"f")
        assert await rig.read_file(b"f") == pattern(6 * MIB)
        async with opened_file(rig, made.inode_id) as handle:
            with refused(errno.ENOSPC):
                await rig.fs.write(handle, 0, b"x")  # the whole of it would have to be staged
        assert await rig.read_file(b"f") == pattern(6 * MIB)


async def test_nothing_is_lost_while_s3_is_held_and_the_tier_is_full(
    small_setup: Setup, autojump_clock: MockClock
) -> None:
    setup = replace(small_setup, durability=Durability.DISK)
    kept = []
    async with crashing(setup) as rig:
        rig.faults.on("put").stalls()
        for number in range(10):
            try:
                await rig.write_file(b"f%d" % number, pattern(MIB, number + 1))
            except TierFull:
                break
            kept.append(number)
        assert 2 <= len(kept) < 10
        for number in kept:
            assert await rig.read_file(b"f%d" % number) == pattern(MIB, number + 1)
    async with open_rig(setup) as rig:
        for number in kept:
            assert await rig.read_file(b"f%d" % number) == pattern(MIB, number + 1)


@pytest.mark.expected_log(FAILED_UPLOAD)
async def test_a_full_queue_is_enospc_to_the_writer_and_not_to_close(
    disk_setup: Setup, autojump_clock: MockClock
) -> None:
    """With room on the disk: what was taken is acknowledged, and what is not taken is said in time."""
    setup = replace(disk_setup, queue=QueueOptions(files=3))
    async with crashing(setup) as rig:
        rig.faults.on("put").raises(TransientS3Error("no answer"))
        opened, made = await rig.fs.create(ROOT, b"open", 0o644, os.O_RDWR, USER)
        await rig.fs.write(opened.handle, 0, b"taken")
        for number in range(3):
            await rig.write_file(b"f%d" % number, b"%d" % number)
        with refused(errno.ENOSPC):
            await rig.fs.write(opened.handle, 5, b" and refused")
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        assert await xattr(rig, made.inode_id, "state") == "staged"
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"open") == b"taken"
        for number in range(3):
            assert await rig.read_file(b"f%d" % number) == b"%d" % number
        await rig.fs.sync(None, None)
        await rig.write_file(b"again", b"room")
