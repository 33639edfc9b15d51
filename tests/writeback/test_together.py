"""Small contents that go to S3 together: what they share, and what none does to another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.blobstore.protocol import SmallPut
from s3blobfs.errors import AccessDenied, IndexUnavailable, ObjectNotFound, OutcomeUnknown, TransientS3Error
from s3blobfs.failpoints import Failpoint, armed
from s3blobfs.index import uploads
from s3blobfs.index.transaction import Transaction
from s3blobfs.s3.each import PutRequest, Requests
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultyObjectClient
from s3blobfs.trace import Count
from s3blobfs.types import Keying
from s3blobfs.writeback import together
from s3blobfs.writeback.jobs import Limits
from s3blobfs.writeback.together import SHARING_MAX_BYTES
from tests.writeback.bench import Sealed, Volume, mounted

T = TypeVar("T")
FAILED = pytest.mark.expected_log("^uploading .* failed and is tried again")


@pytest.fixture(params=Keying, ids=lambda keying: keying.value)
async def volume(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: FakeS3,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Volume]:
    """One that has found out that S3 is near: each request takes a millisecond, however busy the machine.
    Must be whole at the end of the test."""
    watch = itertools.count()
    monkeypatch.setattr(together, "time", SimpleNamespace(perf_counter=lambda: next(watch) / 1000))
    async with mounted(tmp_path, server, keying=request.param, cached=True) as volume:
        yield volume
        assert await volume.problems() == []


async def begin(volume: Volume) -> None:
    await volume.start()
    await volume.write(await volume.make_file("first"), b"first")
    volume.tracer.counts.clear()


async def seal(volume: Volume, contents: Sequence[bytes]) -> list[Sealed]:
    """A file for each."""
    inodes = [await volume.make_file(f"f{number}") for number in range(len(contents))]
    volume.tracer.counts.clear()
    return [await volume.seal(inode, data) for inode, data in zip(inodes, contents, strict=True)]


def numbered(count: int) -> list[bytes]:
    return [b"content %d" % number for number in range(count)]


async def test_they_share_the_index_transaction(clock: MockClock, volume: Volume) -> None:
    await begin(volume)
    sealed = await seal(volume, numbered(20))
    written = volume.db.sequence
    assert volume.uploader.pending().in_flight < 20
    for each in sealed:
        await each.ticket.wait()
    assert volume.tracer.counts[Count.S3_PUT] == 20
    assert volume.db.sequence - written < 10
    assert await volume.journal_rows() == []
    for each in sealed:
        inode = await volume.inode(each.upload.inode_id)
        assert await volume.content(inode) in numbered(20)


async def test_larger_ones_and_those_of_another_store_go_by_themselves(
    clock: MockClock, volume: Volume
) -> None:
    await begin(volume)
    files = [await volume.make_file(f"f{number}", store_id=1 + number % 2) for number in range(6)]
    files.append(await volume.make_file("large"))
    sealed = [await volume.seal(file, b"%d" % file.id) for file in files[:-1]]
    sealed.append(await volume.seal(files[-1], bytes(SHARING_MAX_BYTES + 1)))
    for each in sealed:
        await each.ticket.wait()
    blobs = [await volume.blob_of(file.id) for file in files]
    assert [blob.store_id for blob in blobs] == [1, 2, 1, 2, 1, 2, 1]
    for file, blob in zip(files[:-1], blobs, strict=False):
        assert blob.location.object_key.startswith("other/") == (blob.store_id == 2)
        assert await volume.content(file) == b"%d" % file.id


async def test_patience_gathers_what_nobody_waits_for(clock: MockClock, volume: Volume) -> None:
    volume.uploader = volume.make_uploader(Limits(patient=True))
    await begin(volume)
    before = trio.current_time()
    sealed = await seal(volume, numbered(6))
    written = volume.db.sequence
    await wait_all_tasks_blocked()
    assert volume.uploader.pending().in_flight == 0
    with trio.fail_after(1):
        while not all(each.ticket.done for each in sealed):  # noqa: ASYNC110
            await trio.sleep(0.001)
    assert trio.current_time() - before >= 0.02
    assert volume.db.sequence == written + 1


async def test_who_waits_ends_the_patience(clock: MockClock, volume: Volume) -> None:
    volume.uploader = volume.make_uploader(Limits(patient=True))
    await begin(volume)
    before = trio.current_time()
    sealed = await seal(volume, numbered(2))
    volume.uploader.hurry(sealed[0].upload.inode_id)
    await sealed[0].ticket.wait()
    await volume.uploader.barrier()
    assert trio.current_time() - before < 0.02


@pytest.mark.parametrize(("awaited", "most"), [(False, 1), (True, 2)])
async def test_who_waits_for_everything_gets_more_at_once(
    clock: MockClock, volume: Volume, monkeypatch: pytest.MonkeyPatch, awaited: bool, most: int
) -> None:
    volume.uploader = volume.make_uploader(Limits(patient=True))
    await begin(volume)
    store = volume.stores[1]
    put_each, running, seen = store.put_each, 0, []

    async def counted(wanted: Iterator[SmallPut]) -> None:
        nonlocal running
        running += 1
        seen.append(running)
        await trio.sleep(0.005)
        await put_each(wanted)
        running -= 1

    monkeypatch.setattr(store, "put_each", counted)
    sealed = await seal(volume, numbered(60))
    if awaited:
        await volume.uploader.barrier()
    for each in sealed:
        await each.ticket.wait()
    assert max(seen) == most


async def test_one_that_goes_while_its_batch_begins(
    clock: MockClock, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index still had it; its staged file is not there any more."""
    await begin(volume)
    files = [await volume.make_file(f"f{number}") for number in range(4)]
    journalled = [await volume.journal(file, b"%d" % file.id) for file in files]
    read = volume.db.read

    async def read_then_unlink(look: Callable[[Transaction], T]) -> T:
        found = await read(look)
        monkeypatch.setattr(volume.db, "read", read)
        await volume.unlink(files[1])
        await journalled[1][1].discard()
        return found

    monkeypatch.setattr(volume.db, "read", read_then_unlink)
    for file, (row, staged) in zip(files, journalled, strict=True):
        volume.uploader.submit(row, staged, file.object_id)
    await volume.uploader.barrier()
    assert await volume.journal_rows() == []
    for file in [files[0], *files[2:]]:
        assert await volume.content(file) == b"%d" % file.id


@FAILED
async def test_one_fails_alone(clock: MockClock, volume: Volume) -> None:
    await begin(volume)
    sealed = await seal(volume, [])
    error = AccessDenied("no")
    files = [await volume.make_file(f"f{number}") for number in range(8)]
    volume.script.on("put", nth=5).raises(error)
    heard: list[Exception] = []

    async def wait(each: Sealed) -> None:
        try:
            await each.ticket.wait()
        except AccessDenied as caught:
            heard.append(caught)

    async with trio.open_nursery() as nursery:
        for file in files:
            sealed.append(await volume.seal(file, b"%d" % file.id))
            nursery.start_soon(wait, sealed[-1])
    assert heard == [error]
    assert sum(each.ticket.done for each in sealed) == 7
    await volume.uploader.barrier()
    for file in files:
        assert await volume.content(file) == b"%d" % file.id


async def test_none_waits_for_one_that_hangs(clock: MockClock, volume: Volume) -> None:
    await begin(volume)
    stall = volume.script.on("put", nth=4).stalls()
    sealed = await seal(volume, numbered(12))
    await stall.arrived.wait()
    before = trio.current_time()
    await volume.until(lambda: sum(each.ticket.done for each in sealed) == 11)
    assert trio.current_time() - before < 1
    (late,) = [each for each in sealed if not each.ticket.done]
    assert volume.uploader.state_of(late.upload.inode_id) == "uploading"
    stall.release()
    await late.ticket.wait()
    assert volume.tracer.counts[Count.S3_PUT] == 12


async def test_one_that_was_not_begun_can_be_superseded(clock: MockClock, volume: Volume) -> None:
    """Given back by a batch that hangs, while nothing else may begin."""
    volume.limit(uploads=1)
    await begin(volume)
    stall = volume.script.on("put", nth=1).stalls()
    first = await volume.make_file("hangs")
    later = await volume.make_file("later")
    hanging = await volume.seal(first, b"hangs")
    await stall.arrived.wait()
    waiting = await volume.seal(later, b"old")
    await trio.sleep(1)
    assert volume.uploader.state_of(later.id) == "staged"
    newer = await volume.seal(later, b"new")
    assert waiting.staged.gone
    stall.release()
    for each in (hanging, waiting, newer):
        await each.ticket.wait()
    assert volume.tracer.counts[Count.S3_PUT] == 2
    assert await volume.content(later) == b"new"


async def test_same_content_many_times_is_stored_once(
    tmp_path: Path, server: FakeS3, clock: MockClock
) -> None:
    async with mounted(tmp_path, server) as volume:
        await begin(volume)
        sealed = await seal(volume, [b"same"] * 10)
        for each in sealed:
            await each.ticket.wait()
        assert volume.tracer.counts[Count.S3_PUT] == 1
        assert (await volume.blob_of(sealed[0].upload.inode_id)).refs == 10
        assert await volume.problems() == []


async def test_lost_answer_makes_no_second_version(tmp_path: Path, server: FakeS3, clock: MockClock) -> None:
    """And nobody hears of it: the version is found."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED) as volume:
        await begin(volume)
        volume.script.on("put", nth=3).applies_then_raises(OutcomeUnknown("reset"))
        sealed = await seal(volume, numbered(5))
        for each in sealed:
            await each.ticket.wait()
        assert volume.requests() == {"put": 5, "list": 1, "head": 1}
        assert volume.objects() == 6
        assert await volume.problems() == []


async def test_file_that_is_removed_meanwhile(clock: MockClock, volume: Volume) -> None:
    await begin(volume)
    stall = volume.script.on("put", nth=3).stalls()
    files = [await volume.make_file(f"f{number}") for number in range(6)]
    sealed = [await volume.seal(file, b"%d" % file.id) for file in files]
    await stall.arrived.wait()
    for file in files[1:]:
        await volume.unlink(file)
    stall.release()
    for each in sealed:
        await each.ticket.wait()
    await volume.uploader.barrier()
    assert await volume.content(files[0]) == b"%d" % files[0].id
    assert await volume.journal_rows() == []
    assert volume.uploader.pending().files == 0


@FAILED
async def test_index_that_refuses_a_commit(
    clock: MockClock, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the transaction is there, and each is found in S3 the next time."""
    await begin(volume)
    finish = uploads.finish
    refused: list[int] = []

    def refuse_once(tx: object, upload_id: int) -> object:
        if not refused:
            refused.append(upload_id)
            raise IndexUnavailable("disk is full")
        return finish(tx, upload_id)  # type: ignore[arg-type]

    monkeypatch.setattr(uploads, "finish", refuse_once)
    sealed = await seal(volume, numbered(6))
    await volume.uploader.barrier()
    assert refused
    assert all(each.ticket.done for each in sealed)
    assert volume.tracer.counts[Count.S3_PUT] == 6
    assert await volume.journal_rows() == []


async def test_cut_off_in_a_batch_it_is_recovered(tmp_path: Path, server: FakeS3, clock: MockClock) -> None:
    """By the end of the mount, with one under way and others not begun."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED) as volume:
        await begin(volume)
        stall = volume.script.on("put", nth=2).stalls()
        sealed = await seal(volume, numbered(8))
        await stall.arrived.wait()
        assert not any(each.ticket.done for each in sealed)
    async with mounted(tmp_path, server, keying=Keying.VERSIONED) as volume:
        await volume.recover()
        await volume.start()
        await volume.uploader.barrier()
        assert volume.objects() == 9
        assert await volume.problems() == []


@pytest.mark.parametrize("point", [Failpoint.PUT_SENT, Failpoint.PUT_ANSWERED, Failpoint.COMMITTED])
async def test_every_one_passes_every_point(clock: MockClock, volume: Volume, point: Failpoint) -> None:
    await begin(volume)
    passed: list[int] = []
    with armed(point, lambda: passed.append(1), nth=7):
        for each in await seal(volume, numbered(7)):
            await each.ticket.wait()
    assert passed == [1]


async def test_no_more_than_the_threads_of_the_client_wait(clock: MockClock, volume: Volume) -> None:
    """A batch for which there is no thread yet is not late."""
    await begin(volume)
    stall = volume.script.on("put").stalls()
    sealed = await seal(volume, numbered(40))
    await trio.sleep(5)
    # Each slot has one that hangs; what was to go with it was given back.
    assert volume.uploader.pending().in_flight <= 16
    stall.release()
    for each in sealed:
        await each.ticket.wait()


@FAILED
async def test_transient_failure_is_repeated_by_itself(clock: MockClock, volume: Volume) -> None:
    await begin(volume)
    volume.script.on("put", nth=2).raises(TransientS3Error("503"))
    sealed = await seal(volume, numbered(4))
    await volume.uploader.barrier()
    assert all(each.ticket.done for each in sealed)
    assert volume.tracer.counts[Count.S3_PUT] == 4


@FAILED
async def test_no_thread_for_a_repetition(
    clock: MockClock, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request that changes something was made, its answer is lost, and no thread becomes free in
    time to repeat it: it has no outcome then, and those behind it were not begun."""
    await begin(volume)
    make_each = FaultyObjectClient.make_each

    async def make_some(client: FaultyObjectClient, requests: Requests[None]) -> None:
        monkeypatch.setattr(FaultyObjectClient, "make_each", make_each)
        with contextlib.closing(requests):
            for request in requests:
                if isinstance(request, PutRequest):
                    await client.put(request.key, request.body, metadata=request.metadata)
                    raise TransientS3Error("no answer in time")
                request.fail(ObjectNotFound(request.key))

    monkeypatch.setattr(FaultyObjectClient, "make_each", make_some)
    sealed = await seal(volume, numbered(8))
    await volume.uploader.barrier()
    assert all(each.ticket.done for each in sealed)
    assert volume.objects() == 9, "one is there twice"
    assert await volume.journal_rows() == []


async def test_what_a_batch_leaves_behind_lingers_no_longer(
    clock: MockClock, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Company has come, so a batch goes at once, and is over before the time that the others would have
    waited for it: nothing else wakes the uploader."""
    volume.uploader = volume.make_uploader(Limits(patient=True))
    await begin(volume)
    store = volume.stores[1]
    put_each = store.put_each

    async def in_a_while(wanted: Iterator[SmallPut]) -> None:
        await trio.sleep(0.005)
        await put_each(wanted)

    monkeypatch.setattr(store, "put_each", in_a_while)
    before = trio.current_time()
    sealed = await seal(volume, numbered(60))
    for each in sealed:
        await each.ticket.wait()
    assert trio.current_time() - before < 0.1


async def test_newer_content_that_waits_behind_another_lingers_no_longer(
    clock: MockClock, volume: Volume
) -> None:
    """It becomes ready when the other is stored, within the time in which it would have had company."""
    volume.uploader = volume.make_uploader(Limits(patient=True))
    await begin(volume)
    file = await volume.make_file("changes")
    stall = volume.script.on("put").stalls()
    await volume.seal(file, b"old")
    await stall.arrived.wait()
    newer = await volume.seal(file, b"new")
    await trio.sleep(0.005)
    stall.release()
    with trio.fail_after(1):
        await newer.ticket.wait()
    assert await volume.content(file) == b"new"
