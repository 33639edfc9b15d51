"""What a repair makes of a volume that was in use: where lost files turn up, and what they contain."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3blobfs.errors import TransientS3Error, UsageError
from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.index import blobs, dentries, inodes
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.fsck import FsckReport, Outcome, fsck
from s3blobfs.maintenance.scrub import ScrubOptions, scrub
from s3blobfs.s3.faults import FaultScript
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.types import Keying
from tests.maintenance.kit import damage, live, offline
from tests.support.rig import BUCKET, ROOT, USER, Setup, open_rig


async def repaired(setup: Setup, sql: str, *, script: FaultScript | None = None) -> FsckReport:
    damage(setup.index_path, sql)
    async with offline(setup, script=script) as target:
        return await fsck(target, repair=True)


def notes(report: FsckReport) -> str:
    return "\n".join(f"{finding.problem.kind}: {finding.note}" for finding in report.findings)


async def test_what_has_no_name_any_more_is_in_lost_and_found(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        directory = (await rig.fs.mkdir(ROOT, b"directory", 0o755, USER)).inode_id
        file = (await rig.write_file(b"file", b"content", directory)).inode_id
        empty = (await rig.write_file(b"empty", b"", ROOT)).inode_id
    report = await repaired(setup, f"DELETE FROM dentries WHERE inode_id IN ({directory}, {empty})")
    assert f"'lost+found/#{directory}'" in notes(report)
    assert report.count(Outcome.LEFT) == 0
    async with open_rig(setup) as rig:
        found = await rig.fs.lookup(ROOT, b"lost+found")
        assert found is not None and found.mode & 0o777 == 0o700
        kept = await rig.fs.lookup(found.inode_id, b"#%d" % directory)
        assert kept is not None
        assert (await rig.fs.lookup(directory, b"file")).inode_id == file  # type: ignore[union-attr]
        assert await rig.read_file(b"file", directory) == b"content"
        assert await rig.db.read(lambda tx: inodes.find(tx, empty)) is None


async def test_a_name_that_is_taken_in_lost_and_found(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        await rig.write_file(b"lost+found", b"a file of the user's")
        lost = (await rig.write_file(b"lost", b"content")).inode_id
        directory = (await rig.fs.mkdir(ROOT, b"lost+found-2", 0o755, USER)).inode_id
        await rig.write_file(b"#%d" % lost, b"taken", directory)
    await repaired(setup, f"DELETE FROM dentries WHERE inode_id = {lost}")
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"#%d-2" % lost, directory) == b"content"
        assert await rig.read_file(b"lost+found") == b"a file of the user's"


async def test_a_cycle_is_cut(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        upper = (await rig.fs.mkdir(ROOT, b"upper", 0o755, USER)).inode_id
        lower = (await rig.fs.mkdir(upper, b"lower", 0o755, USER)).inode_id
        await rig.write_file(b"file", b"content", lower)
    report = await repaired(setup, f"UPDATE dentries SET parent_id = {lower} WHERE inode_id = {upper}")
    assert "cut the cycle" in notes(report)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file", lower) == b"content"
        path = await rig.db.read(lambda tx: dentries.path_of(tx, lower))
        assert path is not None and path.startswith(b"lost+found/#")


async def test_a_lost_version_gives_way_to_the_one_before(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", keying=Keying.VERSIONED)
    async with open_rig(setup) as rig:
        await rig.write_file(b"file", b"first")
        file = (await rig.write_file(b"file", b"second!")).inode_id
        blob_id = (await rig.db.read(lambda tx: inodes.get(tx, file))).blob_id
    for history in setup.server.bucket(BUCKET).versions.values():
        history[:] = [version for version in history if version.data != b"second!"]
    report = await repaired(setup, f"DELETE FROM blobs WHERE id = {blob_id}")
    assert "'file' has its earlier content of 5 bytes" in notes(report)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file") == b"first"


@pytest.mark.parametrize("keying", Keying)
async def test_a_lost_row_is_made_anew_from_the_object(tmp_path: Path, keying: Keying) -> None:
    """For all files that had the content, also those whom the object does not name, and after a rename."""
    setup = Setup(tmp_path / "volume", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"other", b"another content of it")
        file = await rig.write_file(b"file", b"content, and more")
        copy = await rig.write_file(b"copy", b"")
        blob_id = (await rig.db.read(lambda tx: inodes.get(tx, file.inode_id))).blob_id

        def share(tx: Transaction) -> None:
            assert blob_id is not None
            blobs.add_ref(tx, blob_id)
            inodes.update(tx, copy.inode_id, blob_id=blob_id, size_bytes=file.size_bytes)

        await rig.db.write(share)
        await rig.fs.rename(ROOT, b"file", ROOT, b"moved")
    report = await repaired(setup, f"DELETE FROM blobs WHERE id = {blob_id}")
    assert "'moved' has its content again" in notes(report) and report.count(Outcome.LEFT) == 0
    async with offline(setup) as target:
        assert (await fsck(target)).findings == []
        report_of_scrub = await scrub(target, ScrubOptions(read=True))
        assert (report_of_scrub.checked, report_of_scrub.remaining) == (2, 0)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"moved") == await rig.read_file(b"copy") == b"content, and more"
        row = await rig.db.read(lambda tx: blobs.get(tx, inodes.get(tx, file.inode_id).blob_id or 0))
        assert row.refs == 2


@pytest.mark.parametrize("keying", Keying)
async def test_an_object_that_may_be_another_files_is_not_taken(tmp_path: Path, keying: Keying) -> None:
    """By number and size alone it is: as in a volume that was rebuilt from its objects."""
    setup = Setup(tmp_path / "volume", keying)
    async with open_rig(setup) as rig:
        file = (await rig.write_file(b"file", b"content")).inode_id
        await rig.fs.rename(ROOT, b"file", ROOT, b"moved")
        await rig.fs.setattr(file, AttributeChanges(mtime_ns=1))
        blob_id = (await rig.db.read(lambda tx: inodes.get(tx, file))).blob_id
    report = await repaired(setup, f"DELETE FROM blobs WHERE id = {blob_id}")
    assert "has its content again" not in notes(report) and report.count(Outcome.LEFT) == 1
    # When its name is right again, nothing speaks against it.
    async with open_rig(setup, check=False) as rig:
        await rig.fs.rename(ROOT, b"moved", ROOT, b"file")
    async with offline(setup) as target:
        assert "'file' has its content again" in notes(await fsck(target, repair=True))
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file") == b"content"


async def test_of_two_objects_that_say_so_none_is_taken(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        file = (await rig.write_file(b"file", b"content")).inode_id
        await rig.write_file(b"file", b"CONTENT")
    report = await repaired(setup, "DELETE FROM blobs")
    assert report.count(Outcome.LEFT) == 1
    async with open_rig(setup, check=False) as rig:
        assert (await rig.db.read(lambda tx: inodes.get(tx, file))).blob_id is None


@pytest.mark.parametrize("there", [True, False])
async def test_a_file_of_an_object_marked_for_deletion(tmp_path: Path, there: bool) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        await rig.write_file(b"file", b"content")
        (key,) = rig.object_keys()
    if not there:
        await setup.server.client(BUCKET).delete(ObjectId(key))
    report = await repaired(setup, "UPDATE blobs SET state = 'deleting', refs = 0, unreferenced_ns = 1")
    assert report.count(Outcome.LEFT) == (0 if there else 1)
    if there:
        async with open_rig(setup) as rig:
            assert await rig.read_file(b"file") == b"content"
    else:
        assert "the content of 'file' is lost" in notes(report)


async def test_what_s3_does_not_answer_is_not_guessed(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        await rig.write_file(b"file", b"content")
    script = FaultScript()
    script.on("head").raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await repaired(
            setup, "UPDATE blobs SET state = 'deleting', refs = 0, unreferenced_ns = 1", script=script
        )
    async with offline(setup) as target:
        assert len(await target.db.read(lambda tx: blobs.deleting(tx, 10))) == 1


async def test_a_mounted_volume_is_mended_where_that_is_safe(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup) as rig:
        file = (await rig.write_file(b"file", b"content")).inode_id
        await rig.db.write(lambda tx: tx.modify("UPDATE counters SET inodes = inodes + 7").fetchall())
        await rig.db.write(lambda tx: inodes.update(tx, file, size_bytes=3))
        report = await fsck(live(rig), repair=True)
        outcomes = {finding.problem.kind: finding.outcome for finding in report.findings}
        assert outcomes == {"usage": Outcome.MENDED, "size": Outcome.LEFT}
        assert "unmount, then s3blobfs fsck --repair s3://bucket/" in notes(report)
        await rig.db.write(lambda tx: inodes.update(tx, file, size_bytes=7))
        assert (await fsck(live(rig))).findings == []


async def test_a_read_only_mount_is_not_repaired(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with open_rig(setup):
        pass
    async with offline(setup, read_only=True) as target:
        assert (await fsck(target)).findings == []
        with pytest.raises(UsageError, match="read-only"):
            await fsck(target, repair=True)
