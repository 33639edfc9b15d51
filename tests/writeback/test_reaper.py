"""The reaper: what it deletes, when, with how many requests; and its meeting with uploads."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.errors import (
    AccessDenied,
    IndexUnavailable,
    ObjectNotFound,
    TierUnavailable,
    TransientS3Error,
)
from s3blobfs.index import blobs
from s3blobfs.index.blobs import BlobState
from s3blobfs.trace import Local
from s3blobfs.writeback.claims import ContentClaims
from tests.blobstore.bench import note
from tests.writeback.bench import FOO_MD5, GRACE_S, Volume

FAILED = pytest.mark.expected_log("^deleting from .* failed and is tried again")


# --- what is deleted ----------------------------------------------------------------------------------


async def test_delete_as_in_the_diagram(clock: MockClock, versioned: Volume) -> None:
    await versioned.start(reaper=False)
    inode = await versioned.make_file("id1")
    first = await versioned.write(inode, b"foo")
    blob = await versioned.write(inode, b"bar")
    await versioned.unlink(inode)
    versioned.requests()
    versioned.draw(Local.CACHE)
    assert await versioned.reaper.drain() == 0
    version = blob.location.version_id
    assert versioned.lines == [
        "Nuxeo -> Cache: delete",
        note(f"id-id1@{version}"),
        "Nuxeo -> S3: deleteVersion",
        note(f"id-id1 v={version}"),
    ]
    assert versioned.requests() == {"delete": 1}
    assert not versioned.tier.cache.contains(1, blob.location.cache_name)
    with pytest.raises(ObjectNotFound):
        await versioned.stores[1].open_source(blob).fetch(0, 3)
    assert versioned.lines[-2:] == ["Nuxeo <-- S3: missing", note(f"id-id1 v={version}")]
    # No delete marker; the version before it stays until retention removes it.
    (left,) = versioned.bucket().versions["id-id1"]
    assert (left.info.version_id, left.is_delete_marker) == (first.location.version_id, False)
    assert await versioned.blob_states() == {first.location.cache_name: BlobState.SUPERSEDED}


async def test_digest_goes_after_its_grace(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode = await digest.make_file()
    await digest.write(inode, b"foo")
    await digest.unlink(inode)
    unlinked = trio.current_time()
    await trio.sleep(GRACE_S - 5)
    assert digest.keys() == {FOO_MD5}
    await trio.sleep(10)
    assert digest.keys() == set()
    assert await digest.blob_states() == {}
    assert trio.current_time() - unlinked < GRACE_S + 10


async def test_content_that_comes_back_in_time_stays(clock: MockClock, digest: Volume) -> None:
    await digest.start()
    inode = await digest.make_file()
    await digest.write(inode, b"foo")
    await digest.unlink(inode)
    await trio.sleep(GRACE_S / 2)
    again = await digest.make_file("again")
    await digest.write(again, b"foo")
    await trio.sleep(2 * GRACE_S)
    assert digest.requests()["put"] == 1
    assert await digest.content(again) == b"foo"


async def test_what_an_earlier_mount_marked_is_deleted(clock: MockClock, versioned: Volume) -> None:
    await versioned.start(reaper=False)
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    await versioned.unlink(inode)
    assert versioned.nursery is not None
    await versioned.nursery.start(versioned.reaper.run)
    await versioned.until(lambda: versioned.keys() == set())


# --- how many requests --------------------------------------------------------------------------------


async def _unlinked_files(volume: Volume, count: int) -> None:
    """Files unlinked one after the other, with nobody reaping meanwhile."""
    for number in range(count):
        inode = await volume.make_file(f"file{number}")
        await volume.write(inode, b"content %d" % number)
        await volume.unlink(inode)
    volume.requests()


async def test_batches_of_a_thousand(
    clock: MockClock, versioned: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3blobfs.writeback.reaper.BATCH", 10)
    await versioned.start(reaper=False)
    await _unlinked_files(versioned, 25)
    assert await versioned.reaper.drain() == 0
    assert versioned.requests() == {"delete_batch": 3}
    assert versioned.keys() == set()


async def test_unlinks_in_a_row_share_a_request(clock: MockClock, versioned: Volume) -> None:
    await versioned.start()
    files = []
    for number in range(20):
        files.append(await versioned.make_file(f"file{number}"))
        await versioned.write(files[-1], b"%d" % number)
    await trio.sleep(10)
    versioned.requests()
    for inode in files:
        await versioned.unlink(inode)
        await trio.sleep(0.1)
    await versioned.until(lambda: versioned.keys() == set())
    assert versioned.requests() == {"delete_batch": 1}


async def test_patience_ends(clock: MockClock, versioned: Volume) -> None:
    """Unlinks that never pause are reaped all the same."""
    await versioned.start()
    files = []
    for number in range(30):
        files.append(await versioned.make_file(f"file{number}"))
        await versioned.write(files[-1], b"%d" % number)
    await trio.sleep(10)
    begun = trio.current_time()
    for inode in files:
        await versioned.unlink(inode)
        await trio.sleep(0.4)
        if len(versioned.keys()) < len(files):
            break
    assert 4 < trio.current_time() - begun < 7


# --- failures -----------------------------------------------------------------------------------------


@FAILED
async def test_failed_deletion_is_repeated_later_and_logged_once(
    clock: MockClock, versioned: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    for nth in (1, 2):
        versioned.script.on("delete", nth=nth).raises(AccessDenied("locked", code="AccessDenied"))
    await versioned.start()
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    await versioned.unlink(inode)
    begun = trio.current_time()
    await versioned.until(lambda: versioned.keys() == set())
    assert trio.current_time() - begun == pytest.approx(1 + 5 + 10, abs=1)
    assert sum("failed and is tried again" in record.getMessage() for record in caplog.records) == 1
    assert await versioned.blob_states() == {}


@FAILED
async def test_failing_blob_does_not_hold_up_others(clock: MockClock, versioned: Volume) -> None:
    versioned.script.on("delete", key="id-bad").raises(TransientS3Error("503"))
    await versioned.start()
    bad, good = await versioned.make_file("bad"), await versioned.make_file("good")
    for inode in (bad, good):
        await versioned.write(inode, b"foo")
    await versioned.unlink(bad)
    await trio.sleep(2)
    await versioned.unlink(good)
    await trio.sleep(2)
    assert versioned.keys() == {"id-bad"}
    assert list((await versioned.blob_states()).values()) == [BlobState.DELETING]
    assert await versioned.reaper.drain() == 1
    versioned.script.clear()
    assert await versioned.reaper.drain() == 0


@FAILED
async def test_deletion_whose_answer_was_lost(clock: MockClock, versioned: Volume) -> None:
    versioned.script.on("delete", nth=1).applies_then_raises(TransientS3Error("reset"))
    await versioned.start(reaper=False)
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    await versioned.unlink(inode)
    assert await versioned.reaper.drain() == 1
    assert await versioned.reaper.drain() == 0


async def test_cached_copy_that_cannot_be_removed(
    clock: MockClock, versioned: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    await versioned.start(reaper=False)
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    await versioned.unlink(inode)

    def refuse(store_id: int, cache_name: str) -> bool:
        raise TierUnavailable("input/output error")

    monkeypatch.setattr(versioned.tier.cache, "remove", refuse)
    assert await versioned.reaper.drain() == 0
    assert versioned.keys() == set()


@pytest.mark.expected_log("no more objects are deleted in this mount")
async def test_index_that_takes_nothing_more(
    clock: MockClock, versioned: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise IndexUnavailable("disk is full")

    await versioned.start(reaper=False)
    inode = await versioned.make_file()
    await versioned.write(inode, b"foo")
    await versioned.unlink(inode)
    with monkeypatch.context() as patch:
        patch.setattr(blobs, "forget", refuse)
        await versioned.reaper.run()
    assert await versioned.reaper.drain() == 0


# --- uploads of what is being deleted -----------------------------------------------------------------


async def _marked(volume: Volume) -> None:
    """A blob ``foo`` whose grace is over, and nobody reaping yet."""
    inode = await volume.make_file("first")
    await volume.write(inode, b"foo")
    await volume.unlink(inode)
    await trio.sleep(GRACE_S + 1)


async def test_upload_waits_for_the_deletion_under_way(clock: MockClock, digest: Volume) -> None:
    """The HEAD comes after the DELETE, so the object is made anew."""
    await digest.start(reaper=False)
    await _marked(digest)
    digest.requests()
    stall = digest.script.on("delete").stalls()
    again = await digest.make_file("again")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest.reaper.drain)
        await stall.arrived.wait()
        nursery.start_soon(digest.write, again, b"foo")
        await wait_all_tasks_blocked()
        assert digest.requests() == {}
        stall.release()
    assert await digest.content(again) == b"foo"
    assert (await digest.blob_states()) == {FOO_MD5: BlobState.LIVE}


async def test_upload_that_meets_a_marked_row_makes_the_object_anew(clock: MockClock, digest: Volume) -> None:
    """Marked, not deleted yet: the object is there, and must not be counted on."""
    await digest.start(reaper=False)
    await _marked(digest)
    await digest.db.write(lambda tx: blobs.mark_due(tx, 2**62, 10))
    digest.requests()
    again = await digest.make_file("again")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest.write, again, b"foo")
        await digest.until(lambda: digest.requests().get("head", 0) > 0)
        assert digest.nursery is not None
        await digest.nursery.start(digest.reaper.run)
    assert await digest.content(again) == b"foo"
    requests = digest.requests()
    # The test's time passes while threads are at work, so the upload may look more than once.
    assert requests.pop("head") >= 1
    assert requests == {"delete": 1, "put": 1, "get": 1}


async def test_object_that_an_upload_counts_on_is_not_deleted(clock: MockClock, digest: Volume) -> None:
    """Between the upload's HEAD and its commit the grace ends: its row would name nothing."""
    await digest.start(reaper=False)
    await _marked(digest)
    again = await digest.make_file("again")
    write = digest.db.write
    reached, go_on = trio.Event(), trio.Event()

    async def slow_write(fn: object, *, durable: bool = False) -> object:
        if durable:
            reached.set()
            await go_on.wait()
        return await write(fn, durable=durable)  # type: ignore[arg-type]

    sealed = await digest.seal(again, b"foo")
    digest.db.write = slow_write  # type: ignore[assignment]
    await reached.wait()
    assert await digest.reaper.drain() == 1
    assert digest.keys() == {FOO_MD5}
    go_on.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sealed.ticket.wait)
        assert digest.nursery is not None
        await digest.nursery.start(digest.reaper.run)
    assert await digest.content(again) == b"foo"


@pytest.mark.expected_log("^uploading .* failed and is tried again")
@FAILED
async def test_deletion_that_fails_for_long(clock: MockClock, digest: Volume) -> None:
    """Whoever waits for the upload is told; the upload goes on once the deletion does."""
    await digest.start()
    inode = await digest.make_file("first")
    await digest.write(inode, b"foo")
    await digest.unlink(inode)
    digest.script.on("delete").raises(TransientS3Error("503"))
    await trio.sleep(GRACE_S + 1)
    again = await digest.make_file("again")
    sealed = await digest.seal(again, b"foo")
    with pytest.raises(TransientS3Error, match="still being deleted"):
        await sealed.ticket.wait()
    digest.script.clear()
    await sealed.ticket.wait()
    assert await digest.content(again) == b"foo"


# --- claims -------------------------------------------------------------------------------------------


async def test_claims_of_one_content_do_not_exclude_each_other(clock: MockClock) -> None:
    claims = ContentClaims()
    async with claims.storing(1, b"a"), claims.storing(1, b"a"):
        assert claims.is_claimed(1, b"a")
        assert not claims.is_claimed(2, b"a")
    assert not claims.is_claimed(1, b"a")


async def test_claim_waits_for_the_end_of_a_batch(clock: MockClock) -> None:
    claims = ContentClaims()
    held = []

    async def hold() -> None:
        async with claims.storing(1, b"a"):
            held.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        with claims.reaping([(1, b"a"), (1, b"b")]):
            nursery.start_soon(hold)
            nursery.start_soon(claims.wait_reaped, 10)
            await wait_all_tasks_blocked()
            assert held == []
            async with claims.storing(2, b"a"):
                pass
    assert len(held) == 1


async def test_waiting_for_a_deletion_has_an_end(clock: MockClock) -> None:
    begun = trio.current_time()
    await ContentClaims().wait_reaped(10)
    assert trio.current_time() - begun == pytest.approx(10)
