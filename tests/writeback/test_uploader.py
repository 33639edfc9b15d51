"""Uploads: what is promised to those who wait, in which order contents arrive, what a failure leaves."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.errors import AccessDenied, IndexUnavailable, ObjectStoreError, TransientS3Error
from s3blobfs.index import inodes, uploads
from s3blobfs.index.blobs import BlobState
from s3blobfs.index.inodes import InodeRow
from s3blobfs.s3.fake import FakeS3
from s3blobfs.tier.small import SMALL_MAX_BYTES
from s3blobfs.trace import Local
from s3blobfs.types import Keying
from tests.blobstore.bench import note
from tests.writeback.bench import FOO_MD5, GRACE_S, Sealed, Volume, mounted

NOT_HELD = bytes(SMALL_MAX_BYTES + 1)
"""A content that is sent from its staged file."""
FAILED = pytest.mark.expected_log("^uploading .* failed and is tried again")


# --- the diagrams -------------------------------------------------------------------------------------


async def test_digest_uncached_as_in_the_diagram(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    one, other, second = [await digest.make_file(name) for name in ("one", "other", "second")]
    digest.draw(Local.TMP)
    first_sealed = await digest.seal(one, b"foo")
    await first_sealed.ticket.wait()
    assert digest.lines == [
        "Nuxeo -> tmp: write",
        note(first_sealed.upload.staged_name),
        "Nuxeo --> S3: getObjectMetadata",
        note(FOO_MD5),
        "Nuxeo <-- S3: missing",
        "tmp -> S3: write 3 bytes",
        note(FOO_MD5),
        "tmp --> tmp: delete",
        note(first_sealed.upload.staged_name),
    ]
    digest.lines.clear()
    again = await digest.seal(other, b"foo")
    await again.ticket.wait()
    assert digest.lines == [
        "Nuxeo -> tmp: write",
        note(again.upload.staged_name),
        "Nuxeo --> S3: getObjectMetadata",
        note(FOO_MD5),
        "Nuxeo <-- S3: exists (3 bytes)",
        "tmp --> tmp: delete",
        note(again.upload.staged_name),
    ]
    digest.lines.clear()
    bar = await digest.seal(second, b"bar")
    await bar.ticket.wait()
    assert digest.lines == [
        "Nuxeo -> tmp: write",
        note(bar.upload.staged_name),
        "Nuxeo --> S3: getObjectMetadata",
        note("37b51d194a7513e45b56f6524f2d51f2"),
        "Nuxeo <-- S3: missing",
        "tmp -> S3: write 3 bytes",
        note("37b51d194a7513e45b56f6524f2d51f2"),
        "tmp --> tmp: delete",
        note(bar.upload.staged_name),
    ]
    assert digest.requests() == {"head": 3, "put": 2}
    assert (await digest.blob_of(one.id)).refs == 2


async def test_versioned_cached_as_in_the_diagram(clock: MockClock, versioned: Volume) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    versioned.draw(Local.CACHE)
    versions = []
    for data in (b"foo", b"bar"):
        versioned.lines.clear()
        sealed = await versioned.seal(inode, data)
        await sealed.ticket.wait()
        version = versioned.news[-1].blob.location.version_id
        versions.append(version)
        random_part = sealed.upload.staged_name.removeprefix("sealed_")
        assert versioned.lines == [
            "Nuxeo -> Cache: write 3 bytes",
            note(f"bin_{random_part}.tmp"),
            "Cache --> Cache: rename",
            note(sealed.upload.staged_name).replace("right:", "right of Cache:"),
            "Nuxeo -> S3: write 3 bytes",
            note("id-file"),
            f"Nuxeo <-- S3: v={version}",
            "Cache --> Cache: rename",
            note(f"id-file@{version}").replace("right:", "right of Cache:"),
        ]
    assert versioned.requests() == {"put": 2}
    assert await versioned.blob_states() == {
        f"id-file@{versions[0]}": BlobState.SUPERSEDED,
        f"id-file@{versions[1]}": BlobState.LIVE,
    }


# --- one upload ---------------------------------------------------------------------------------------


async def test_stored_content(clock: MockClock, versioned: Volume) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    sealed = await versioned.seal(inode, b"hello")
    assert versioned.uploader.state_of(inode.id) == "uploading"
    await sealed.ticket.wait()
    await sealed.ticket.wait()
    assert versioned.uploader.state_of(inode.id) is None
    assert await versioned.journal_rows() == []
    assert versioned.tier.staging.names() == set()
    (told,) = versioned.news
    assert (told.upload_id, told.cached) == (sealed.upload.id, True)
    assert told.inode == await versioned.inode(inode.id)
    assert told.inode.blob_id == told.blob.blob_id
    assert told.blob.digests == sealed.upload.digests
    assert versioned.tier.cache.contains(1, told.blob.location.cache_name)
    assert await versioned.content(inode) == b"hello"


async def test_stamp_names_the_file(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode = await digest.make_file("näme")
    blob = await digest.write(inode, b"foo")
    found = digest.bucket().find(blob.location.object_key)
    assert found is not None
    assert found.info.metadata["s3blobfs-path"] == "n%C3%A4me"
    assert found.info.metadata["s3blobfs-inode"] == str(inode.id)
    assert found.info.metadata["file-permissions"] == "0100644"


async def test_same_content_written_again_keeps_its_blob(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode = await digest.make_file()
    first = await digest.write(inode, b"foo")
    second = await digest.write(inode, b"foo")
    assert first.blob_id == second.blob_id
    assert (await digest.blob_of(inode.id)).refs == 1
    await digest.write(inode, b"bar")
    assert (await digest.blob_states())[FOO_MD5] is BlobState.GARBAGE


async def test_unsealed_row_is_refused(clock: MockClock, digest: Volume) -> None:
    inode = await digest.make_file()
    row, staged = await digest.journal(inode, b"foo")
    with pytest.raises(ValueError, match="not sealed"):
        digest.uploader.submit(
            uploads.UploadRow(
                row.id, inode.id, 1, row.staged_name, 3, None, "w", uploads.UploadState.DIRTY, 0, 0, None
            ),
            staged,
            None,
        )


async def test_uploads_run_in_parallel_up_to_the_limit(clock: MockClock, digest: Volume) -> None:
    digest.limit(uploads=3)
    stall = digest.script.on("put").stalls()
    await digest.start()
    tickets = []
    for number in range(5):
        inode = await digest.make_file(f"file{number}")
        tickets.append((await digest.seal(inode, b"%d" % number)).ticket)
    await stall.arrived.wait()
    await wait_all_tasks_blocked()
    pending = digest.uploader.pending()
    assert (pending.files, pending.bytes, pending.in_flight) == (5, 5, 3)
    stall.release()
    for ticket in tickets:
        await ticket.wait()
    assert digest.uploader.pending().files == 0


# --- failures -----------------------------------------------------------------------------------------


@FAILED
async def test_waiter_hears_of_a_failure_and_the_upload_goes_on(
    clock: MockClock,
    digest: Volume,
) -> None:
    await digest.start()
    error = TransientS3Error("503 Slow Down")
    digest.script.on("put", nth=1).raises(error)
    inode = await digest.make_file()
    sealed = await digest.seal(inode, b"foo")
    with pytest.raises(TransientS3Error) as caught:
        await sealed.ticket.wait()
    assert caught.value is error
    (row,) = await digest.journal_rows()
    assert (row.attempts, row.last_error) == (1, "503 Slow Down")
    pending = digest.uploader.pending()
    assert (pending.files, pending.last_error) == (1, "503 Slow Down")
    assert pending.oldest_ns == sealed.upload.created_ns
    assert digest.uploader.state_of(inode.id) == "staged"
    await sealed.ticket.wait()  # one who begins to wait now hears of the next attempt
    assert digest.uploader.pending().last_error is None
    assert await digest.content(inode) == b"foo"


@FAILED
async def test_every_waiter_hears_of_it(clock: MockClock, digest: Volume) -> None:
    digest.script.on("put", nth=1).raises(TransientS3Error("no"))
    inode = await digest.make_file()
    sealed = await digest.seal(inode, b"foo")
    heard: list[ObjectStoreError] = []

    async def wait() -> None:
        try:
            await sealed.ticket.wait()
        except ObjectStoreError as error:
            heard.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await digest.start()
    assert len(heard) == 3


@FAILED
async def test_a_message_is_logged_once(
    clock: MockClock, digest: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    for nth in (1, 2, 3):
        digest.script.on("head", nth=nth).raises(AccessDenied("expired"))
    digest.script.on("head", nth=4).raises(TransientS3Error("503"))
    await digest.start()
    inode = await digest.make_file("some file")
    sealed = await digest.seal(inode, b"foo")
    begun = trio.current_time()
    await digest.uploader.barrier()
    # 15, 30 and 60 s after refusals, which somebody has to mend; 8 s after the fourth failure.
    assert trio.current_time() - begun == pytest.approx(15 + 30 + 60 + 8, abs=0.5)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 2
    assert "some file to s3://bucket/ failed" in messages[0]
    assert "expired" in messages[0]
    assert "503" in messages[1]
    assert sealed.ticket.done


@FAILED
async def test_lost_answer_makes_no_second_version(clock: MockClock, versioned: Volume) -> None:
    versioned.script.on("put", nth=1).applies_then_raises(TransientS3Error("reset"))
    await versioned.start()
    inode = await versioned.make_file()
    sealed = await versioned.seal(inode, b"foo")
    with pytest.raises(TransientS3Error, match="reset"):
        await sealed.ticket.wait()
    await sealed.ticket.wait()
    assert versioned.requests() == {"put": 1, "list": 1, "head": 1}
    assert len(versioned.bucket().versions["id-file"]) == 1
    assert await versioned.content(inode) == b"foo"


@FAILED
async def test_refused_put_is_not_taken_for_an_earlier_version(clock: MockClock, versioned: Volume) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    versioned.script.on("put", nth=1).raises(TransientS3Error("503"))
    sealed = await versioned.seal(inode, b"foo")
    with pytest.raises(TransientS3Error):
        await sealed.ticket.wait()
    await sealed.ticket.wait()
    assert len(versioned.bucket().versions["id-file"]) == 2


@FAILED
async def test_unreadable_staged_file_is_an_error_like_others(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode = await digest.make_file()
    row, staged = await digest.journal(inode, NOT_HELD)
    hidden = staged.path.with_name("hidden")
    staged.path.rename(hidden)
    ticket = digest.uploader.submit(row, staged, None)
    with pytest.raises(Exception, match=r"reading .*: No such file"):
        await ticket.wait()
    hidden.rename(staged.path)
    await ticket.wait()


@FAILED
async def test_failing_commit_is_repeated_and_finds_its_version(
    clock: MockClock, versioned: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    finish = uploads.finish
    attempts = []

    def finish_badly(tx: object, upload_id: int) -> object:
        attempts.append(upload_id)
        if len(attempts) == 1:
            raise IndexUnavailable("disk is full")
        return finish(tx, upload_id)  # type: ignore[arg-type]

    monkeypatch.setattr(uploads, "finish", finish_badly)
    sealed = await versioned.seal(inode, b"foo")
    with pytest.raises(IndexUnavailable):
        await sealed.ticket.wait()
    await sealed.ticket.wait()
    assert versioned.requests()["put"] == 1
    assert await versioned.content(inode) == b"foo"


@pytest.mark.expected_log("cannot note in the index")
@FAILED
async def test_index_that_takes_nothing_more(
    clock: MockClock, digest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise IndexUnavailable("disk is full")

    inode = await digest.make_file()
    digest.script.on("put", nth=1).raises(TransientS3Error("503"))
    sealed = await digest.seal(inode, b"foo")
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "failed", refuse)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(digest.start)  # the first attempt must not be over before it is waited for
            with pytest.raises(TransientS3Error):
                await sealed.ticket.wait()
    await sealed.ticket.wait()


# --- several contents of one file ---------------------------------------------------------------------


async def test_queued_content_is_superseded_and_its_waiters_go_on(
    clock: MockClock, versioned: Volume
) -> None:
    inode = await versioned.make_file()
    first = await versioned.seal(inode, b"first")
    second = await versioned.seal(inode, b"second")
    assert first.staged.gone
    assert [row.id for row in await versioned.journal_rows()] == [second.upload.id]
    assert not first.ticket.done
    await versioned.start()
    await first.ticket.wait()
    assert second.ticket.done
    assert versioned.requests() == {"put": 1}
    assert await versioned.content(inode) == b"second"


async def test_a_file_that_changes_all_the_time_is_not_overtaken(clock: MockClock, versioned: Volume) -> None:
    """While there is a queue: a newer content takes the place of the one that it supersedes."""
    versioned.limit(uploads=2)
    await versioned.start()
    stall = versioned.script.on("put").stalls()
    busy = [await versioned.seal(await versioned.make_file(f"busy{number}"), b"x") for number in range(2)]
    await stall.arrived.wait()
    log = await versioned.make_file("log")
    await versioned.seal(log, b"line")
    others = [
        await versioned.seal(await versioned.make_file(f"other{number}"), b"%d" % number)
        for number in range(4)
    ]
    last = await versioned.seal(log, b"line, line")
    stall.release()
    for sealed in (*busy, *others, last):
        await sealed.ticket.wait()
    order = [told.upload_id for told in versioned.news]
    assert order.index(last.upload.id) < min(order.index(each.upload.id) for each in others[1:])


async def test_content_under_way_is_stored_before_the_next(clock: MockClock, versioned: Volume) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    stall = versioned.script.on("put", nth=1).stalls()
    first = await versioned.seal(inode, b"first")
    await stall.arrived.wait()
    assert versioned.uploader.supersede(inode.id) == []
    second = await versioned.seal(inode, b"second")
    third = await versioned.seal(inode, b"third")
    await wait_all_tasks_blocked()
    assert versioned.uploader.pending().in_flight == 1
    assert versioned.uploader.state_of(inode.id) == "uploading"
    stall.release()
    await first.ticket.wait()
    assert not third.ticket.done
    await second.ticket.wait()
    assert [told.upload_id for told in versioned.news] == [first.upload.id, third.upload.id]
    assert [version.data for version in versioned.bucket().versions["id-file"]] == [b"first", b"third"]
    assert await versioned.content(inode) == b"third"


@FAILED
async def test_failed_content_gives_way_to_a_newer_one(clock: MockClock, versioned: Volume) -> None:
    """It was under way when the newer one came, so nobody could drop it; it is not repeated."""
    await versioned.start()
    inode = await versioned.make_file()
    stall = versioned.script.on("put", nth=1).stalls()
    versioned.script.on("put", nth=1).raises(TransientS3Error("503"))
    first = await versioned.seal(inode, b"first")
    await stall.arrived.wait()
    second = await versioned.seal(inode, b"second")
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        stall.release()

        async def wait_for_first() -> None:
            with pytest.raises(TransientS3Error):
                await first.ticket.wait()

        nursery.start_soon(wait_for_first)
        await second.ticket.wait()
    assert trio.current_time() - begun < 0.5
    assert first.ticket.done
    assert first.staged.gone
    assert await versioned.journal_rows() == []
    assert [told.upload_id for told in versioned.news] == [second.upload.id]


@FAILED
async def test_newer_content_does_not_wait_for_the_backoff_of_an_older_one(
    clock: MockClock, digest: Volume
) -> None:
    """Submitted without superseding, as between a failure and the caller's next step."""
    await digest.start()
    inode = await digest.make_file()
    digest.script.on("put", nth=1).raises(AccessDenied("no"))
    first = await digest.seal(inode, b"first")
    with pytest.raises(AccessDenied):
        await first.ticket.wait()
    dropped = digest.uploader.supersede
    digest.uploader.supersede = lambda inode_id: []  # type: ignore[method-assign]
    second = await digest.seal(inode, b"second")
    digest.uploader.supersede = dropped  # type: ignore[method-assign]
    begun = trio.current_time()
    await first.ticket.wait()
    assert trio.current_time() - begun < 0.5
    assert second.ticket.done
    assert await digest.content(inode) == b"second"


@FAILED
async def test_who_waits_does_not_sit_out_the_delay_of_a_repetition(clock: MockClock, digest: Volume) -> None:
    """As of who mended what was wrong, and says sync."""
    await digest.start()
    inode = await digest.make_file()
    for nth in range(1, 4):
        digest.script.on("put", nth=nth).raises(AccessDenied("expired"))
    sealed = await digest.seal(inode, b"foo")
    begun = trio.current_time()
    with pytest.raises(AccessDenied):
        await sealed.ticket.wait()
    digest.uploader.hurry(inode.id)
    with pytest.raises(AccessDenied):
        await sealed.ticket.wait()
    with trio.move_on_after(0.2):
        await digest.uploader.barrier()
    await digest.uploader.barrier()
    assert trio.current_time() - begun < 1
    assert await digest.content(inode) == b"foo"


# --- contents that nobody wants any more, and that S3 may have --------------------------------------------

LOOKED_FOR = pytest.mark.expected_log("^finding .* failed and is tried again")


async def _lose_an_answer(volume: Volume, inode: InodeRow, data: bytes) -> Sealed:
    """The PUT takes place, and its answer does not come."""
    volume.script.on("put", nth=1).applies_then_raises(TransientS3Error("reset"))
    sealed = await volume.seal(inode, data)
    with pytest.raises(TransientS3Error):
        await sealed.ticket.wait()
    assert volume.objects() == 1
    return sealed


@FAILED
@pytest.mark.parametrize("keying", Keying)
async def test_superseded_content_in_doubt_is_found_and_removed(
    clock: MockClock, tmp_path: Path, server: FakeS3, keying: Keying
) -> None:
    async with mounted(tmp_path, server, keying=keying) as volume:
        await volume.start()
        inode = await volume.make_file()
        first = await _lose_an_answer(volume, inode, b"first")
        second = await volume.seal(inode, b"second")
        assert [row.id for row in await volume.journal_rows()] == [first.upload.id, second.upload.id]
        await second.ticket.wait()
        assert first.ticket.done
        assert first.staged.gone
        assert await volume.journal_rows() == []
        await trio.sleep(GRACE_S)
        await volume.reaper.drain()
        assert volume.objects() == 1
        assert await volume.content(inode) == b"second"
        assert await volume.problems() == []


@FAILED
async def test_superseded_content_in_doubt_that_another_file_has(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode, other = await digest.make_file(), await digest.make_file("other")
    await _lose_an_answer(digest, inode, b"foo")
    await digest.write(other, b"foo")
    await digest.write(inode, b"bar")
    await trio.sleep(GRACE_S)
    await digest.reaper.drain()
    assert await digest.content(other) == b"foo"
    assert digest.objects() == 2


@FAILED
@LOOKED_FOR
async def test_newer_content_waits_until_an_older_one_in_doubt_is_settled(
    clock: MockClock, versioned: Volume
) -> None:
    """Else recovery might take the older row for the file's content; who waits hears what it is about."""
    await versioned.start()
    inode = await versioned.make_file()
    first = await _lose_an_answer(versioned, inode, b"first")
    versioned.script.on("list_versions", nth=1).raises(TransientS3Error("still down"))
    second = await versioned.seal(inode, b"second")
    with pytest.raises(TransientS3Error, match="still down"):
        await second.ticket.wait()
    assert [row.id for row in await versioned.journal_rows()] == [first.upload.id, second.upload.id]
    assert versioned.uploader.state_of(inode.id) == "staged"
    await second.ticket.wait()
    await versioned.reaper.drain()
    assert [version.data for version in versioned.bucket().versions["id-file"]] == [b"second"]


@FAILED
async def test_what_a_lost_put_left_of_an_unlinked_file_is_removed(
    clock: MockClock, versioned: Volume
) -> None:
    await versioned.start()
    inode = await versioned.make_file()
    sealed = await _lose_an_answer(versioned, inode, b"foo")
    await versioned.unlink(inode)
    assert versioned.uploader.state_of(inode.id) is None
    assert versioned.uploader.pending().files == 0
    await versioned.uploader.barrier()
    assert sealed.staged.gone
    await versioned.reaper.drain()
    assert versioned.objects() == 0


@FAILED
@LOOKED_FOR
async def test_barrier_does_not_wait_for_what_nobody_wants(clock: MockClock, versioned: Volume) -> None:
    """It is given one chance in each barrier, and goes on trying by itself."""
    await versioned.start()
    inode = await versioned.make_file()
    await _lose_an_answer(versioned, inode, b"foo")
    for nth in range(1, 4):
        versioned.script.on("list_versions", nth=nth).raises(TransientS3Error("503"))
    await versioned.unlink(inode)
    for _ in range(2):
        await versioned.uploader.barrier()
        assert versioned.objects() == 1
    await versioned.until(lambda: versioned.objects() == 0)


# --- files that go ------------------------------------------------------------------------------------


async def test_unlinked_before_its_upload(clock: MockClock, digest: Volume) -> None:
    inode = await digest.make_file()
    sealed = await digest.seal(inode, b"foo")
    await digest.unlink(inode)
    await sealed.staged.discard()
    await sealed.ticket.wait()
    await digest.start()
    await digest.uploader.barrier()
    assert digest.requests() == {}


async def test_unlinked_during_its_upload(clock: MockClock, versioned: Volume) -> None:
    await versioned.start(reaper=False)
    inode = await versioned.make_file()
    stall = versioned.script.on("put").stalls()
    sealed = await versioned.seal(inode, b"foo")
    await stall.arrived.wait()
    await versioned.unlink(inode)
    await sealed.ticket.wait()
    stall.release()
    await versioned.uploader.barrier()
    assert versioned.news == []
    assert list((await versioned.blob_states()).values()) == [BlobState.DELETING]
    assert await versioned.reaper.drain() == 0
    assert versioned.keys() == set()
    assert sealed.staged.gone


async def test_unlinked_during_its_upload_with_its_staged_file(clock: MockClock, digest: Volume) -> None:
    """The upload fails for want of a file; nobody is told, nothing is repeated."""
    await digest.start()
    inode = await digest.make_file()
    stall = digest.script.on("put").stalls()
    sealed = await digest.seal(inode, NOT_HELD)
    await stall.arrived.wait()
    await digest.unlink(inode)
    await sealed.staged.discard()
    stall.release()
    await digest.uploader.barrier()
    assert digest.uploader.pending().files == 0
    assert digest.keys() == set()


async def test_emptied_during_its_upload(clock: MockClock, digest: Volume) -> None:
    """The journal row goes in the transaction that empties the file; the uploader is told after it."""
    await digest.start(reaper=False)
    inode = await digest.make_file()
    stall = digest.script.on("put").stalls()
    sealed = await digest.seal(inode, b"foo")
    await stall.arrived.wait()
    await digest.db.write(lambda tx: uploads.supersede(tx, inode.id))
    await digest.db.write(lambda tx: _empty(tx, inode.id))
    stall.release()
    await digest.until(lambda: digest.uploader.pending().files == 0)
    assert not sealed.ticket.done
    digest.uploader.forget_inode(inode.id)
    await sealed.ticket.wait()
    assert await digest.blob_states() == {FOO_MD5: BlobState.GARBAGE}
    assert (await digest.inode(inode.id)).blob_id is None


def _empty(tx: object, inode_id: int) -> None:
    inodes.update(tx, inode_id, size_bytes=0)  # type: ignore[arg-type]


# --- bounds, barrier, end -----------------------------------------------------------------------------


async def test_barrier_waits_for_what_was_submitted_before(clock: MockClock, digest: Volume) -> None:
    stall = digest.script.on("put", key="*").stalls()
    await digest.start()
    files = [await digest.make_file(f"file{number}") for number in range(3)]
    for number, inode in enumerate(files):
        await digest.seal(inode, b"x" * (number + 1))
    progress: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest.uploader.barrier, lambda files, size: progress.append((files, size)))
        await stall.arrived.wait()
        stall.release()
    assert progress[0] == (3, 6)
    assert progress[-1] == (0, 0)
    assert all(earlier > later for earlier, later in itertools.pairwise(progress))
    progress.clear()
    await digest.uploader.barrier(lambda files, size: progress.append((files, size)))
    assert progress == [(0, 0)]


async def test_barrier_follows_a_superseded_content(clock: MockClock, digest: Volume) -> None:
    inode = await digest.make_file()
    await digest.seal(inode, b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest.uploader.barrier)
        await wait_all_tasks_blocked()
        await digest.seal(inode, b"second")
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await digest.start()
    assert await digest.content(inode) == b"second"


async def test_whoever_waits_hears_of_the_end(clock: MockClock, digest: Volume) -> None:
    stall = digest.script.on("put").stalls()
    inode = await digest.make_file()
    sealed = await digest.seal(inode, b"foo")
    async with trio.open_nursery() as nursery:
        await nursery.start(digest.uploader.run)
        await stall.arrived.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(TransientS3Error, match="staged for the next mount"):
        await sealed.ticket.wait()
    late = await digest.seal(await digest.make_file("late"), b"bar")
    with pytest.raises(TransientS3Error, match="staged for the next mount"):
        await late.ticket.wait()
    assert len(await digest.journal_rows()) == 2
