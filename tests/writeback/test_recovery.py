"""A mount after one that ended badly: nothing acknowledged is lost, nothing is left over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.errors import TierUnavailable, TransientS3Error
from s3blobfs.index import dentries, inodes, uploads
from s3blobfs.index.blobs import BlobState
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.s3.fake import FakeS3
from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import Keying, ObjectHint
from tests.writeback.bench import GRACE_S, Volume, mounted, now_ns

LOST = pytest.mark.expected_log("bytes written to .* are lost")


async def _journal_dirty(volume: Volume, inode: InodeRow, data: bytes) -> tuple[UploadRow, StagedFile]:
    """What fsync of a file that stays open does."""
    assert inode.store_id is not None
    store_id = inode.store_id
    staged = await volume.stage(inode, data)
    await staged.sync()

    def transaction(tx: Transaction) -> UploadRow:
        inodes.update(tx, inode.id, size_bytes=len(data))
        return uploads.insert(
            tx,
            inode_id=inode.id,
            store_id=store_id,
            staged_name=staged.name,
            size_bytes=len(data),
            digests=None,
            write_id="dirty",
            state=UploadState.DIRTY,
            now_ns=now_ns(),
        )

    return await volume.db.write(transaction), staged


async def test_nothing_to_recover(clock: MockClock, digest: Volume) -> None:
    report = await digest.recover()
    assert (report.contents, report.lost, report.orphans, report.swept) == ({}, [], 0, [])


@pytest.mark.parametrize("keying", [Keying.DIGEST, Keying.VERSIONED])
async def test_sealed_content_is_shown_and_stored(
    clock: MockClock, tmp_path: Path, server: FakeS3, keying: Keying
) -> None:
    cached = keying is Keying.VERSIONED
    async with mounted(tmp_path, server, keying=keying, cached=cached) as before:
        inode = await before.make_file()
        row, _ = await before.journal(inode, b"hello")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        upload, shown = report.contents[inode.id]
        assert upload == row
        assert await shown.read(0, 5) == b"hello"
        assert report.swept == []
        await volume.start()
        await volume.uploader.barrier()
        assert await volume.content(inode) == b"hello"
        assert [told.upload_id for told in volume.news] == [row.id]
        assert await volume.problems() == []
        assert volume.tier.staging.names() == set()


async def test_sealed_content_that_was_appended_to_is_what_it_was(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    """The appended bytes were promised to nobody."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as before:
        inode = await before.make_file()
        _, staged = await before.journal(inode, b"hello")
        longer = staged.extend()
        assert longer is not None
        await longer.write(5, b" and more")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        _, shown = report.contents[inode.id]
        assert shown.path.read_bytes() == b"hello"
        assert report.swept == [longer.name]
        assert report.lost == []
        await volume.start()
        await volume.uploader.barrier()
        assert await volume.content(inode) == b"hello"
        assert [told.cached for told in volume.news] == [True]
        assert await volume.problems() == []


async def test_an_older_content_in_the_same_file_gives_way(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as before:
        inode = await before.make_file()
        _, staged = await before.journal(inode, b"hello")  # its upload may have been begun: the row stays
        longer = staged.extend()
        assert longer is not None
        await longer.write(5, b" and more")
        await before.journal_staged(inode, longer)
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        _, shown = report.contents[inode.id]
        assert await shown.read(0, 100) == b"hello and more"
        assert report.swept == []
        assert volume.tier.space.staged_bytes == 14
        await volume.start()
        await volume.uploader.barrier()
        assert await volume.content(inode) == b"hello and more"
        assert [told.cached for told in volume.news] == [True]
        assert volume.tier.staging.names() == set()
        assert await volume.problems() == []


@pytest.mark.expected_log("^uploading .* failed and is tried again")
async def test_put_that_the_crash_hid_is_found(clock: MockClock, tmp_path: Path, server: FakeS3) -> None:
    """The object is in S3 and the index does not even know that an attempt was made."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as before:
        before.script.on("put").applies_then_raises(TransientS3Error("reset"))
        before.script.on("list_versions").raises(TransientS3Error("503"))
        inode = await before.make_file()
        await before.seal(inode, b"hello")
        await before.start()
        await before.until(lambda: before.uploader.pending().last_error is not None)
        await before.db.write(lambda tx: tx.modify("UPDATE uploads SET attempts = 0, last_error = NULL"))
    async with mounted(tmp_path, server) as volume:
        await volume.recover()
        await volume.start()
        await volume.uploader.barrier()
        assert volume.requests() == {"list": 1, "head": 1}
        assert len(volume.bucket().versions["id-file"]) == 1
        assert await volume.content(inode) == b"hello"
        assert await volume.problems() == []


@pytest.mark.parametrize("cached", [False, True])
async def test_open_file_that_was_synced_is_sealed(
    clock: MockClock, tmp_path: Path, server: FakeS3, cached: bool
) -> None:
    async with mounted(tmp_path, server, cached=cached) as before:
        inode = await before.make_file()
        row, staged = await _journal_dirty(before, inode, b"synced")
        await staged.write(6, b" and more")  # not synced, but a crash of the process does not lose it
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        upload, shown = report.contents[inode.id]
        assert upload.state is UploadState.SEALED
        assert upload.write_id == row.write_id
        assert upload.digests == shown.digests
        assert (await volume.inode(inode.id)).size_bytes == 15
        assert await volume.problems() == []
        await volume.start()
        await volume.uploader.barrier()
        assert await volume.content(inode) == b"synced and more"


async def test_open_file_that_has_what_is_stored(clock: MockClock, tmp_path: Path, server: FakeS3) -> None:
    """It could have been stored into through a mapping, and was not."""
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as before:
        inode = await before.make_file()
        await before.start()
        await before.write(inode, b"stored")
        await _journal_dirty(before, inode, b"stored")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert (report.contents, report.lost) == ({}, [])
        assert await volume.db.read(uploads.every) == []
        assert await volume.problems() == []
        assert volume.tier.staging.names() == set()
        assert await volume.content(inode) == b"stored"
        assert (await volume.inode(inode.id)).mtime_ns == inode.mtime_ns


async def test_changed_behind_its_row_has_the_time_of_that(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server, cached=True) as before:
        same, changed = await before.make_file("same"), await before.make_file("changed")
        row, staged = await _journal_dirty(before, same, b"same")
        os.utime(staged.path, ns=(0, row.created_ns))
        row, staged = await _journal_dirty(before, changed, b"changed")
        later_ns = row.created_ns + 10**9
        os.utime(staged.path, ns=(0, later_ns))
    async with mounted(tmp_path, server) as volume:
        await volume.recover()
        assert await volume.inode(same.id) == same._replace(
            size_bytes=4, change=(await volume.inode(same.id)).change
        )
        found = await volume.inode(changed.id)
        assert (found.mtime_ns, found.ctime_ns) == (later_ns, later_ns)


async def test_recovery_interrupted_after_sealing(clock: MockClock, tmp_path: Path, server: FakeS3) -> None:
    """The staged file has its second name already, the row still the first one."""
    async with mounted(tmp_path, server, cached=True) as before:
        inode = await before.make_file()
        _, staged = await _journal_dirty(before, inode, b"synced")
        await staged.seal(rename=True)
    for _ in range(2):
        async with mounted(tmp_path, server) as volume:
            report = await volume.recover()
            assert await report.contents[inode.id][1].read(0, 6) == b"synced"
            assert await volume.problems() == []


async def test_open_file_that_was_synced_empty(clock: MockClock, tmp_path: Path, server: FakeS3) -> None:
    async with mounted(tmp_path, server) as before:
        await before.start()
        inode = await before.make_file()
        await before.write(inode, b"foo")
        await _journal_dirty(before, inode, b"")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.contents == {}
        row = await volume.inode(inode.id)
        assert (row.size_bytes, row.blob_id) == (0, None)
        assert list((await volume.blob_states()).values()) == [BlobState.GARBAGE]
        assert volume.tier.staging.names() == set()
        assert await volume.problems() == []


async def test_of_several_contents_the_newest_counts(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server, keying=Keying.VERSIONED) as before:
        inode = await before.make_file()
        await before.journal(inode, b"first")
        newest, _ = await before.journal(inode, b"second")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.contents[inode.id][0] == newest
        await volume.start()
        await volume.uploader.barrier()
        assert await volume.content(inode) == b"second"
        assert len(volume.bucket().versions["id-file"]) == 1
        assert await volume.journal_rows() == []
        assert volume.tier.staging.names() == set()


@pytest.mark.parametrize("keying", [Keying.DIGEST, Keying.VERSIONED])
async def test_what_the_crash_hid_of_an_earlier_content_is_removed(
    clock: MockClock, tmp_path: Path, server: FakeS3, keying: Keying
) -> None:
    """Killed while its PUT was under way and a newer content waited behind it."""
    async with mounted(tmp_path, server, keying=keying) as before:
        inode = await before.make_file()
        first, staged = await before.journal(inode, b"first")
        await before.journal(inode, b"second")
        await _put(before, inode, first, staged)
    async with mounted(tmp_path, server) as volume:
        await volume.recover()
        await volume.start()
        await volume.uploader.barrier()
        await trio.sleep(GRACE_S)
        await volume.reaper.drain()
        assert await volume.content(inode) == b"second"
        assert volume.objects() == 1
        assert await volume.problems() == []


async def _put(volume: Volume, inode: InodeRow, upload: UploadRow, staged: StagedFile) -> None:
    """Store a content that is journalled, and tell nobody."""
    assert upload.digests is not None
    await volume.stores[upload.store_id].put(
        staged.path,
        upload.digests,
        object_id=inode.object_id,
        write_id=upload.write_id,
        hint=ObjectHint(inode.id, b"file", inode.mode, inode.uid, inode.gid, inode.mtime_ns),
    )


async def test_earlier_content_whose_staged_file_is_gone_holds_up_nothing(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server) as before:
        inode = await before.make_file()
        _, staged = await before.journal(inode, b"first")
        newest, _ = await before.journal(inode, b"second")
        staged.path.unlink()
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.lost == []
        assert [row.id for row in await volume.journal_rows()] == [newest.id]


async def test_emptied_by_a_sync_after_a_content_that_had_reached_s3(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server, keying=Keying.VERSIONED) as before:
        inode = await before.make_file()
        first, staged = await before.journal(inode, b"first")
        await _put(before, inode, first, staged)
        await _journal_dirty(before, inode, b"")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.contents == {}
        await volume.start()
        await volume.uploader.barrier()
        await volume.reaper.drain()
        assert (await volume.inode(inode.id)).size_bytes == 0
        assert volume.objects() == 0
        assert volume.tier.staging.names() == set()


# --- what is lost -------------------------------------------------------------------------------------


@LOST
async def test_lost_content_of_a_stored_file(
    clock: MockClock, tmp_path: Path, server: FakeS3, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(tmp_path, server) as before:
        await before.start()
        inode = await before.make_file("some file")
        await before.write(inode, b"stored")
        before.script.on("head").raises(TransientS3Error("503"))
        _, staged = await before.journal(inode, b"staged only")
        staged.path.unlink()
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        (lost,) = report.lost
        assert (lost.path, lost.size_bytes, lost.restored) == (b"some file", 11, True)
        assert "11 bytes written to some file are lost" in caplog.text
        assert report.contents == {}
        assert (await volume.inode(inode.id)).size_bytes == 6
        assert await volume.journal_rows() == []
        assert await volume.content(inode) == b"stored"
        assert await volume.problems() == []


@LOST
async def test_lost_content_of_a_file_that_never_was_stored(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server) as before:
        inode = await before.make_file()
        row, staged = await before.journal(inode, b"staged only")
        staged.path.unlink()
    for _ in range(2):  # it is said at every mount
        async with mounted(tmp_path, server) as volume:
            report = await volume.recover()
            (lost,) = report.lost
            assert not lost.restored
            assert report.contents == {}
            assert [each.id for each in await volume.journal_rows()] == [row.id]


@LOST
@pytest.mark.parametrize(
    ("damaged", "reason"), [(b"sec", "has 3 bytes"), (bytes(6), "does not have the digests")]
)
async def test_damaged_newest_content_leaves_the_one_before(
    clock: MockClock, tmp_path: Path, server: FakeS3, damaged: bytes, reason: str
) -> None:
    async with mounted(tmp_path, server) as before:
        inode = await before.make_file()
        first, _ = await before.journal(inode, b"first")
        _, staged = await before.journal(inode, b"second")
        staged.path.write_bytes(damaged)
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        (lost,) = report.lost
        assert lost.restored
        assert reason in lost.reason
        assert report.contents[inode.id][0] == first
        assert (await volume.inode(inode.id)).size_bytes == 5
        assert await volume.problems() == []


async def test_disk_that_does_not_answer_ends_the_mount(
    clock: MockClock, tmp_path: Path, server: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than taking files for lost that will be there again."""
    async with mounted(tmp_path, server) as before:
        inode = await before.make_file()
        row, _ = await before.journal(inode, b"hello")
    async with mounted(tmp_path, server) as volume:

        def refuse(*_: object) -> StagedFile:
            raise TierUnavailable("input/output error") from OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(volume.tier.staging, "open", refuse)
            with pytest.raises(TierUnavailable):
                await volume.recover()
        assert (await volume.recover()).contents[inode.id][0] == row


# --- what is left over --------------------------------------------------------------------------------


async def test_staged_files_without_a_row_are_swept(clock: MockClock, tmp_path: Path, server: FakeS3) -> None:
    async with mounted(tmp_path, server) as before:
        inode = await before.make_file()
        staged = await before.stage(inode, b"never closed")
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.swept == [staged.name]
        assert volume.tier.staging.names() == set()


async def test_files_unlinked_while_open_are_removed(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server, keying=Keying.VERSIONED, cached=True) as before:
        await before.start()
        stored, staged_only = await before.make_file("stored"), await before.make_file("staged")
        await before.write(stored, b"stored")
        row, staged = await before.journal(staged_only, b"staged")
        await _put(before, staged_only, row, staged)

        def unlink_both(tx: Transaction) -> None:
            for inode, name in ((stored, b"stored"), (staged_only, b"staged")):
                dentries.remove(tx, ROOT_INODE_ID, name)
                inodes.add_links(tx, inode.id, -1, now_ns())

        await before.db.write(unlink_both)
    async with mounted(tmp_path, server) as volume:
        report = await volume.recover()
        assert report.orphans == 2
        assert report.contents == {}
        await volume.start()
        await volume.until(lambda: volume.keys() == set())
        assert await volume.reaper.drain() == 0
        assert await volume.blob_states() == {}
        assert volume.tier.staging.names() == set()
        assert await volume.problems() == []


async def test_recovered_uploads_go_in_the_order_they_were_staged(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    async with mounted(tmp_path, server) as before:
        files = [await before.make_file(f"file{number}") for number in range(5)]
        rows = [(await before.journal(inode, b"%d" % inode.id))[0] for inode in reversed(files)]
    async with mounted(tmp_path, server) as volume:
        volume.limit(uploads=1)
        await volume.recover()
        await volume.start()
        await volume.uploader.barrier()
        assert [told.upload_id for told in volume.news] == [row.id for row in rows]
