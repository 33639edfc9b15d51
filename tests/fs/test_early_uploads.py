"""Large files that are sent to S3 while they are written: what is sent when, and what puts an end to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from s3blobfs.blobstore import metadata
from s3blobfs.config import GIB, KIB, MIB, QueueOptions, S3Options
from s3blobfs.errors import AccessDenied, OutcomeUnknown, PermanentS3Error, TransientS3Error
from s3blobfs.failpoints import Failpoint, armed
from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.tier import digest
from s3blobfs.tier.digest import content_digests
from s3blobfs.trace import Count, Local
from s3blobfs.types import Durability, Keying
from s3blobfs.writeback.early import EarlyLimits
from tests.conftest import AllowLogs
from tests.fs.test_lending import lending, program
from tests.s3.world import pattern
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

PART = 5 * MIB
SIZE = 3 * PART + 300 * KIB + 7
CONTENT = pattern(SIZE)


@pytest.fixture(autouse=True)
def hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hashed behind a writer is hashed when the write returns."""

    def start(function: Callable[[], Any], deliver: Callable[[outcome.Outcome[Any]], object]) -> None:
        deliver(outcome.capture(function))

    monkeypatch.setattr(digest, "trio", SimpleNamespace(lowlevel=SimpleNamespace(start_thread_soon=start)))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    server = FakeS3(S3Options(part_size_bytes=PART, multipart_threshold_bytes=PART))
    return Setup(tmp_path / "volume", keying=Keying.VERSIONED, cache_bytes=GIB, server=server)


@pytest.fixture
async def rig(setup: Setup) -> AsyncIterator[Rig]:
    async with open_rig(setup) as opened:
        yield opened


def unfinished(rig: Rig) -> list[int]:
    """The parts that each unfinished upload has in S3."""
    return [len(upload.parts) for upload in rig.setup.server.bucket(BUCKET).uploads.values()]


async def write(rig: Rig, handle: int, data: bytes, offset: int = 0) -> None:
    """In pieces, and whatever is to be done then in the background is done."""
    for at in range(0, len(data), MIB):
        await rig.fs.write(handle, offset + at, data[at : at + MIB])
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def begun(rig: Rig, data: bytes = CONTENT) -> AsyncIterator[tuple[int, int]]:
    """A file with this content, not closed: handle and inode. It is closed at the end."""
    opened, made = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
    await write(rig, opened.handle, data)
    yield opened.handle, made.inode_id
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


def stored(rig: Rig) -> tuple[bytes, dict[str, str], dict[str, str]]:
    """The newest object: content, metadata and tags."""
    histories = rig.setup.server.bucket(BUCKET).versions.values()
    newest = max((each for history in histories for each in history), key=lambda each: each.sequence)
    return newest.data, dict(newest.info.metadata), newest.tags


async def assert_ordinary(rig: Rig, content: bytes) -> None:
    """The file is stored as if nothing had been sent early, of which nothing is left."""
    await trio.testing.wait_all_tasks_blocked()
    data, stamp, tags = stored(rig)
    assert data == content
    assert metadata.decode(stamp).matches(content_digests(content))
    assert tags == {}
    assert unfinished(rig) == []
    assert await rig.read_file(b"large") == content


async def assert_early(rig: Rig, content: bytes) -> None:
    await trio.testing.wait_all_tasks_blocked()
    data, stamp, tags = stored(rig)
    assert data == content
    said = metadata.decode(stamp)
    assert said.in_tag
    assert not said.has_digests
    assert metadata.complete(said, tags).matches(content_digests(content))
    assert unfinished(rig) == []
    assert await rig.read_file(b"large") == content


async def test_parts_are_sent_while_the_file_is_written(rig: Rig) -> None:
    opened, made = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
    await write(rig, opened.handle, CONTENT[: 2 * PART])
    assert unfinished(rig) == []
    await write(rig, opened.handle, CONTENT[2 * PART : 2 * PART + 3 * MIB], 2 * PART)
    assert unfinished(rig) == [2]
    await write(rig, opened.handle, CONTENT[2 * PART + 3 * MIB :], 2 * PART + 3 * MIB)
    assert unfinished(rig) == [2]
    before = rig.tracer.counts.copy()
    await rig.fs.flush(opened.handle)
    spent = rig.tracer.counts - before
    # In close: what was not hashed yet, and the tag.
    assert {kind: spent[kind] for kind in (Count.S3_PART, Count.S3_TAG, Count.S3_PUT, Count.S3_HEAD)} == {
        Count.S3_PART: 2,
        Count.S3_TAG: 1,
        Count.S3_PUT: 0,
        Count.S3_HEAD: 0,
    }
    await rig.fs.release(opened.handle)
    await assert_early(rig, CONTENT)
    assert rig.tracer.counts[Count.S3_PART] == 4
    row = (await rig.fs.getattr(made.inode_id)).size_bytes
    assert row == SIZE


async def test_the_tag_says_what_the_file_is_in_the_end(rig: Rig) -> None:
    async with begun(rig) as (_, inode_id):
        assert unfinished(rig) != []
        changes = AttributeChanges(mode=0o600, uid=7, gid=8, mtime_ns=123_000_000_456)
        await rig.fs.setattr(inode_id, changes)
    _, stamp, tags = stored(rig)
    early = metadata.decode(stamp)
    assert (early.mode, early.uid, early.path) == (0o100640, USER.uid, b"large")
    said = metadata.complete(early, tags)
    assert (said.mode, said.uid, said.gid, said.mtime_ns) == (0o100600, 7, 8, 123_000_000_456)


async def test_small_files_are_not_sent_early(rig: Rig) -> None:
    async with begun(rig, CONTENT[: 2 * PART - 1]):
        assert unfinished(rig) == []
        assert not any(count for kind, count in rig.tracer.counts.items() if kind.value.startswith("s3."))
    await assert_ordinary(rig, CONTENT[: 2 * PART - 1])


async def test_a_digest_store_sends_nothing_early(setup: Setup, tmp_path: Path) -> None:
    plain = Setup(tmp_path / "digest", cache_bytes=GIB, server=setup.server)
    async with open_rig(plain) as rig, begun(rig):
        assert unfinished(rig) == []
        assert rig.tracer.counts[Count.S3_TAG] == 0


async def test_it_can_be_switched_off(setup: Setup) -> None:
    object.__setattr__(setup, "early", EarlyLimits(files=0))
    async with open_rig(setup) as rig:
        async with begun(rig):
            assert unfinished(rig) == []
        await assert_ordinary(rig, CONTENT)


async def test_a_writer_whom_nobody_waits_for_is_left_alone_at_first(
    setup: Setup, autojump_clock: trio.testing.MockClock
) -> None:
    object.__setattr__(setup, "early", EarlyLimits(after_s=1.0))
    async with open_rig(setup) as rig:
        async with begun(rig):
            assert unfinished(rig) == []
        await assert_ordinary(rig, CONTENT)
        opened, _ = await rig.fs.create(ROOT, b"slowly", 0o640, os.O_RDWR, USER)
        await write(rig, opened.handle, CONTENT)
        await trio.sleep(1.0)
        await write(rig, opened.handle, CONTENT, SIZE)
        assert unfinished(rig) != []
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        assert metadata.decode(stored(rig)[1]).in_tag
        assert await rig.read_file(b"slowly") == CONTENT + CONTENT


async def test_a_server_without_tags_is_asked_once(rig: Rig) -> None:
    rig.setup.server.has_tags = False
    for _ in range(2):
        async with begun(rig):
            assert unfinished(rig) == []
        await assert_ordinary(rig, CONTENT)
        assert rig.tracer.counts[Count.S3_TAG] == 1
        await rig.fs.rename(ROOT, b"large", ROOT, b"earlier")


async def test_a_server_whose_versions_share_their_tags(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, str] = {}

    async def put_tags(target: ObjectId, wanted: dict[str, str]) -> None:
        tags.update(wanted)

    async def get_tags(target: ObjectId) -> dict[str, str]:
        return tags

    monkeypatch.setattr(rig.faults, "put_tags", put_tags)
    monkeypatch.setattr(rig.faults, "get_tags", get_tags)
    async with begun(rig):
        assert unfinished(rig) == []
    await assert_ordinary(rig, CONTENT)


# --- what puts an end to it -----------------------------------------------------------------------------


async def test_a_write_before_what_was_sent(rig: Rig) -> None:
    async with begun(rig) as (handle, _):
        assert unfinished(rig) != []
        await rig.fs.write(handle, 100, b"header")
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
    await assert_ordinary(rig, CONTENT[:100] + b"header" + CONTENT[106:])


async def test_a_write_behind_what_is_hashed_goes_on(rig: Rig) -> None:
    async with begun(rig) as (handle, _):
        await rig.fs.write(handle, SIZE - 3, b"end")
    await assert_early(rig, CONTENT[:-3] + b"end")


async def test_a_hole_at_the_end_goes_on(rig: Rig) -> None:
    async with begun(rig) as (handle, _):
        await rig.fs.write(handle, SIZE + PART, b"end")
    await assert_early(rig, CONTENT + bytes(PART) + b"end")


@pytest.mark.parametrize("size_bytes", [0, 1, PART, 2 * PART + 1])
async def test_a_cut(rig: Rig, size_bytes: int) -> None:
    async with begun(rig) as (_, inode_id):
        await rig.fs.setattr(inode_id, AttributeChanges(size_bytes=size_bytes))
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
    if size_bytes:
        await assert_ordinary(rig, CONTENT[:size_bytes])
    else:
        assert rig.setup.server.bucket(BUCKET).versions == {}


async def test_an_extension(rig: Rig) -> None:
    async with begun(rig) as (_, inode_id):
        await rig.fs.setattr(inode_id, AttributeChanges(size_bytes=SIZE + 77))
    await assert_early(rig, CONTENT + bytes(77))


async def test_a_hole(rig: Rig) -> None:
    async with begun(rig) as (handle, _):
        await rig.fs.fallocate(handle, 0x03, 4096, 8192)  # KEEP_SIZE | PUNCH_HOLE
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
    await assert_ordinary(rig, CONTENT[:4096] + bytes(8192) + CONTENT[4096 + 8192 :])


async def test_an_unlink(rig: Rig) -> None:
    async with begun(rig) as (handle, _):
        await rig.fs.unlink(ROOT, b"large")
        await write(rig, handle, b"more", SIZE)
        assert unfinished(rig) == []
    assert rig.setup.server.bucket(BUCKET).versions == {}


async def test_an_unlink_and_no_further_write(rig: Rig) -> None:
    async with begun(rig):
        await rig.fs.unlink(ROOT, b"large")
    await rig.fs.forget([])
    await trio.testing.wait_all_tasks_blocked()
    assert rig.setup.server.bucket(BUCKET).versions == {}


async def test_an_opening_that_cuts(rig: Rig) -> None:
    async with begun(rig) as (_, inode_id):
        again = await rig.fs.open(inode_id, os.O_WRONLY | os.O_TRUNC)
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
        await write(rig, again.handle, b"short")
        await rig.fs.flush(again.handle)
        await rig.fs.release(again.handle)
    assert await rig.read_file(b"large") == b"short"


async def test_a_file_that_was_stored_before(rig: Rig) -> None:
    """Of that S3 copies what is the same."""
    async with begun(rig) as (_, inode_id):
        pass
    opened = await rig.fs.open(inode_id, os.O_RDWR)
    before = rig.tracer.counts[Count.S3_PART]
    await write(rig, opened.handle, CONTENT, SIZE)
    assert unfinished(rig) == []
    assert rig.tracer.counts[Count.S3_PART] == before
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    data, stamp, tags = stored(rig)
    assert data == CONTENT + CONTENT
    assert tags == {}
    assert metadata.decode(stamp).has_digests


async def test_a_file_written_anew_is_sent_early_again(rig: Rig) -> None:
    async with begun(rig) as (_, inode_id):
        pass
    opened = await rig.fs.open(inode_id, os.O_WRONLY | os.O_TRUNC)
    await write(rig, opened.handle, CONTENT[::-1])
    assert unfinished(rig) != []
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    await assert_early(rig, CONTENT[::-1])


@pytest.mark.parametrize("mapped", [False, True])
async def test_a_file_that_the_kernel_reads_by_itself(setup: Setup, mapped: bool) -> None:
    """Stores through a mapping come unseen, also before what is hashed."""
    content = CONTENT[:100] + b"stored" + CONTENT[106:] if mapped else CONTENT
    async with lending(setup) as rig:
        async with begun(rig, b"as it was" * KIB) as (_, inode_id):
            pass
        reader = await program(rig, inode_id)
        writer = await program(rig, inode_id, os.O_RDWR if mapped else os.O_WRONLY)
        await rig.fs.write(writer.opened.handle, 0, b"changed")
        await rig.fs.flush(writer.opened.handle)  # from now on nothing of it is in S3
        await rig.fs.setattr(inode_id, AttributeChanges(size_bytes=0))
        await write(rig, writer.opened.handle, CONTENT)
        if mapped:
            os.pwrite(writer.fd, b"stored", 100)
        assert unfinished(rig) == []
        assert rig.tracer.counts[Count.S3_PART] == 0
        assert reader.read(size=SIZE + 1) == content
        await writer.close(flush=True)
        await reader.close()
        await assert_ordinary(rig, content)


async def test_an_fsync_in_the_middle_stores_what_there_is(rig: Rig) -> None:
    async with begun(rig, CONTENT[: 2 * PART + 5 * MIB]) as (handle, _):
        await rig.fs.fsync(handle)
        await assert_early(rig, CONTENT[: 2 * PART + 5 * MIB])
        await write(rig, handle, b"more", 2 * PART + 5 * MIB)
    assert await rig.read_file(b"large") == CONTENT[: 2 * PART + 5 * MIB] + b"more"


# --- S3 does not do what it should ------------------------------------------------------------------------

ERRORS = [TransientS3Error("503"), PermanentS3Error("no", code="NotImplemented"), AccessDenied("403")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("operation", ["begin_upload", "send_part", "put_tags"])
async def test_errors_are_not_the_writer_s(rig: Rig, operation: Any, error: Exception) -> None:
    rig.faults.on(operation, nth=1).raises(error)
    async with begun(rig):
        assert unfinished(rig) == []
    await assert_ordinary(rig, CONTENT)


async def test_parts_that_cannot_be_thrown_away_are_left_to_gc(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.faults.on("abort_upload").raises(TransientS3Error("503"))
    with caplog.at_level("INFO"):
        async with begun(rig) as (handle, _):
            await rig.fs.write(handle, 0, b"!")
    await trio.testing.wait_all_tasks_blocked()
    assert "left in S3, to gc" in caplog.text
    assert await rig.read_file(b"large") == b"!" + CONTENT[1:]


async def test_somebody_throws_away_what_was_sent(rig: Rig) -> None:
    async with begun(rig):
        rig.setup.server.bucket(BUCKET).uploads.clear()
    await assert_ordinary(rig, CONTENT)


async def test_the_answer_to_the_end_is_lost(rig: Rig) -> None:
    rig.faults.on("finish_upload", nth=1).applies_then_raises(OutcomeUnknown("reset"))
    async with begun(rig):
        pass
    await assert_early(rig, CONTENT)
    assert rig.tracer.counts[Count.S3_HEAD] == 1


async def test_the_end_did_not_take_place(rig: Rig) -> None:
    rig.faults.on("finish_upload", nth=1).raises(OutcomeUnknown("reset"))
    async with begun(rig):
        pass
    await trio.testing.wait_all_tasks_blocked()
    rig.setup.server.bucket(BUCKET).uploads.clear()  # which the client would have done
    await assert_ordinary(rig, CONTENT)


async def test_s3_gives_no_tag_after_all(rig: Rig, allow_logs: AllowLogs) -> None:
    """The object that does not say what it is stays without a row; the content goes into another."""
    allow_logs("was given no tag, and is not used")
    rig.faults.on("put_tags", nth=2).raises(AccessDenied("not any more"))
    async with begun(rig):
        pass
    await assert_ordinary(rig, CONTENT)
    (history,) = rig.setup.server.bucket(BUCKET).versions.values()
    assert len(history) == 2


async def test_the_tag_comes_later(
    rig: Rig, allow_logs: AllowLogs, autojump_clock: trio.testing.MockClock
) -> None:
    """S3 is away when it is to be put; the object is found by its write id and gets it then."""
    allow_logs("failed and is tried again")
    rig.faults.on("put_tags", nth=2).raises(TransientS3Error("503"))
    opened, _ = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
    await write(rig, opened.handle, CONTENT)
    with pytest.raises(TransientS3Error):
        await rig.fs.flush(opened.handle)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    await assert_early(rig, CONTENT)
    assert rig.tracer.counts[Count.S3_PART] == 4


# --- bounds ----------------------------------------------------------------------------------------------


async def test_so_many_files_and_so_many_parts_at_a_time(setup: Setup) -> None:
    object.__setattr__(setup, "early", EarlyLimits(files=2, parts=1))
    async with open_rig(setup) as rig:
        stall = rig.faults.on("send_part").stalls()
        handles = []
        for name in (b"a", b"b", b"c"):
            opened, _ = await rig.fs.create(ROOT, name, 0o644, os.O_WRONLY, USER)
            handles.append(opened.handle)
            await write(rig, opened.handle, CONTENT)
        assert len(unfinished(rig)) == 2
        assert len(rig.fs.uploader.early.names()) == 2
        assert unfinished(rig) == [0, 0]
        stall.release()
        for handle in handles:
            await rig.fs.flush(handle)
            await rig.fs.release(handle)
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
        for name in (b"a", b"b", b"c"):
            assert await rig.read_file(name) == CONTENT


async def test_the_close_waits_for_parts_on_their_way(rig: Rig) -> None:
    stall = rig.faults.on("send_part", nth=2).stalls()
    closed = trio.Event()

    async def close(handle: int) -> None:
        await rig.fs.flush(handle)
        closed.set()

    opened, _ = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
    await write(rig, opened.handle, CONTENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close, opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        stall.release()
    await rig.fs.release(opened.handle)
    await assert_early(rig, CONTENT)


async def test_a_sealed_file_that_is_superseded_before_its_turn(setup: Setup) -> None:
    object.__setattr__(setup, "durability", Durability.DISK)
    object.__setattr__(setup, "queue", QueueOptions(size_bytes=GIB))
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put", key="[0-9a-f]*").stalls()  # not what probes whether there are tags
        others = []
        for number in range(16):  # all slots
            opened, _ = await rig.fs.create(ROOT, b"%d" % number, 0o644, os.O_WRONLY, USER)
            await rig.fs.write(opened.handle, 0, b"small")
            await rig.fs.flush(opened.handle)
            others.append(opened.handle)
        opened, _ = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
        await write(rig, opened.handle, CONTENT)
        assert sum(unfinished(rig)) >= 2
        await rig.fs.flush(opened.handle)
        await rig.fs.write(opened.handle, 0, b"!")
        await rig.fs.flush(opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        assert unfinished(rig) == []
        stall.release()
        for handle in (*others, opened.handle):
            await rig.fs.release(handle)
        await rig.fs.uploader.barrier()
        assert await rig.read_file(b"large") == b"!" + CONTENT[1:]


async def test_a_file_that_takes_longer_than_a_day(rig: Rig, autojump_clock: trio.testing.MockClock) -> None:
    async with begun(rig):
        await trio.sleep(24 * 3600 + 1)
    await assert_ordinary(rig, CONTENT)


async def test_a_file_that_is_written_for_longer_than_a_day(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    async with begun(rig) as (handle, _):
        await trio.sleep(24 * 3600 + 1)
        await write(rig, handle, b"end", SIZE)
        assert unfinished(rig) == []
    await assert_ordinary(rig, CONTENT + b"end")


async def test_the_end_of_the_mount(setup: Setup) -> None:
    """Of a file that nobody closes nothing is left in S3, and its content is there at the next mount."""
    async with open_rig(setup) as rig:
        opened, _ = await rig.fs.create(ROOT, b"large", 0o640, os.O_RDWR, USER)
        await write(rig, opened.handle, CONTENT)
        assert unfinished(rig) != []
        await rig.fs.close()
        await trio.testing.wait_all_tasks_blocked()
    assert setup.server.bucket(BUCKET).uploads == {}
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"large") == CONTENT


async def test_what_is_traced(rig: Rig) -> None:
    lines: list[str] = []
    rig.tracer.start_steps(lines.append, Local.CACHE)
    async with begun(rig):
        pass
    rig.tracer.stop_steps()
    steps = [line for line in lines if "S3" in line and ("->" in line or "<-" in line)]
    (history,) = rig.setup.server.bucket(BUCKET).versions.values()
    version = history[-1].info.version_id
    assert steps == [
        "client --> S3: createMultipartUpload",
        f"client -> S3: write part 1, {PART} bytes",
        f"client -> S3: write part 2, {PART} bytes",
        f"client -> S3: write the other {SIZE - 2 * PART} bytes",
        "client --> S3: putObjectTagging",
        f"client <-- S3: v={version}",
    ]


@pytest.mark.parametrize(
    "point", [Failpoint.EARLY_SENT, Failpoint.EARLY_COMPLETED, Failpoint.EARLY_TAGGED], ids=lambda p: p.value
)
async def test_the_points_are_passed(rig: Rig, point: Failpoint) -> None:
    passed: list[Failpoint] = []
    with armed(point, lambda: passed.append(point)):
        async with begun(rig):
            pass
    assert passed == [point]
