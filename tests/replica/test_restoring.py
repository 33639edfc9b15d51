"""What a recovery finds in the stores: files stored after the last segment, and contents that are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from s3blobfs.blobstore import metadata
from s3blobfs.index import blobs, scrubs
from s3blobfs.index.blobs import BlobState
from s3blobfs.replica.recovery import ContentsGone
from s3blobfs.replica.restoring import Outcome
from s3blobfs.replica.survey import Age
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.types import Durability, Keying
from tests.replica.test_recovery import KEYINGS, elsewhere, recovered, send, tree
from tests.support.early import as_sent_early
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

HOUR_NS = 3600 * 10**9


class Clock:
    """S3's, set by the test."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()

    def __call__(self) -> int:
        return self.now_ns


async def outcomes(setup: Setup, **request: object) -> dict[bytes | None, Outcome]:
    result = await recovered(setup, elsewhere(setup), **request)
    assert result.problems == [] and result.gone == [] and result.lost == []
    return {each.path: each.outcome for each in result.restored}


# --- stored after the last segment ---------------------------------------------------------------------


@KEYINGS
async def test_files_of_the_last_moment_come_back(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"changed", b"earlier")
        await rig.write_file(b"untouched", b"untouched")
        await send(rig)
        await rig.write_file(b"changed", b"and changed")
        await rig.write_file(b"changed", b"and changed again")
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        await rig.write_file(b"new", b"new", directory.inode_id)
        found = await outcomes(setup)
        expected = await tree(rig)
    # Of a digest store's file the content in between is left; the later one counts.
    assert found == {b"changed": Outcome.CHANGED, b"d/new": Outcome.MADE}
    async with open_rig(elsewhere(setup)) as rig:
        assert await tree(rig) == expected
        again = await rig.fs.lookup(ROOT, b"d")
        assert again is not None
        made = await rig.fs.lookup(again.inode_id, b"new")
        assert made is not None and (made.uid, made.mode & 0o777) == (USER.uid, 0o644)
        await rig.write_file(b"new", b"goes on", again.inode_id)


@pytest.mark.parametrize("tagged", [True, False])
async def test_files_that_were_sent_early_come_back_with_their_tags(tmp_path: Path, tagged: bool) -> None:
    """What has none was being stored when the machine went, and nobody was told that it is."""
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        await rig.write_file(b"untouched", b"untouched")
        await send(rig)
        await rig.write_file(b"new", b"new")
        as_sent_early(setup.server.bucket(BUCKET), tagged=tagged)
        found = await outcomes(setup)
    assert found == ({b"new": Outcome.MADE} if tagged else {})
    async with open_rig(elsewhere(setup)) as rig:
        if tagged:
            assert await rig.read_file(b"new") == b"new"


@pytest.mark.parametrize(("hours", "done", "taken"), [(2, True, True), (2, False, False), (48, True, False)])
async def test_files_that_were_begun_long_before_they_were_closed(
    tmp_path: Path, hours: int, done: bool, taken: bool
) -> None:
    """S3 says when they were begun; what counts is when they were done."""
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        await send(rig)
        await rig.write_file(b"new", b"new")
        bucket = setup.server.bucket(BUCKET)
        as_sent_early(bucket, done_ns=None if done else 0)
        (key,) = (key for key in bucket.versions if not key.startswith(".s3blobfs/"))
        (version,) = bucket.versions[key]
        begun_ns = version.info.last_modified_ns - hours * 3600 * 10**9
        bucket.versions[key] = [replace(version, info=replace(version.info, last_modified_ns=begun_ns))]
        assert await outcomes(setup) == ({b"new": Outcome.MADE} if taken else {})


@KEYINGS
async def test_they_stay_where_they_are_if_that_is_asked_for(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await send(rig)
        await rig.write_file(b"new", b"new")
        assert await outcomes(setup, restore_unnamed=False) == {}
    async with open_rig(elsewhere(setup)) as rig:
        assert await tree(rig) == {}
        assert len([key for key in rig.object_keys() if not key.startswith(".s3blobfs/")]) == 1


@KEYINGS
async def test_another_files_name_is_not_taken_from_it(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"name", b"of the first")
        await send(rig)
        await rig.fs.rename(ROOT, b"name", ROOT, b"moved away")
        await rig.write_file(b"name", b"of the second")
        (((path, outcome),)) = (await outcomes(setup)).items()
    assert outcome is Outcome.BESIDE and path is not None and path.startswith(b"name~")
    async with open_rig(elsewhere(setup)) as rig:
        assert await tree(rig) == {b"name": b"of the first", path: b"of the second"}


@KEYINGS
async def test_what_may_be_the_earlier_content_stands_beside(tmp_path: Path, keying: Keying) -> None:
    """A request in doubt may reach S3 when the file has a newer content."""
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"name", b"late")
        late = {key: list(history) for key, history in setup.server.bucket(BUCKET).versions.items()}
        await rig.write_file(b"name", b"and the later content")
        if keying is Keying.VERSIONED:
            for key, history in late.items():
                newer = setup.server.bucket(BUCKET).versions[key][1:]
                setup.server.bucket(BUCKET).versions[key] = [*newer, *history]
        await rig.db.write(lambda tx: tx.modify("DELETE FROM blobs WHERE size_bytes = 4"))
        await send(rig)
        (((path, outcome),)) = (await outcomes(setup)).items()
    assert outcome is Outcome.BESIDE and path is not None and path.startswith(b"name~")
    async with open_rig(elsewhere(setup)) as rig:
        assert await tree(rig) == {b"name": b"and the later content", path: b"late"}
        await rig.write_file(path, b"changed")
        assert await rig.read_file(b"name") == b"and the later content"


@KEYINGS
async def test_what_no_name_can_be_made_for_goes_to_lost_and_found(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        file = await rig.write_file(b"d", b"a file")
        await send(rig)
        await rig.fs.unlink(ROOT, b"d")
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        await rig.write_file(b"below", b"below it", directory.inode_id)
        found = await outcomes(setup)
        assert file.size_bytes == 6
    assert found == {b"lost+found/below": Outcome.LOST_AND_FOUND}


@KEYINGS
async def test_what_came_long_before_is_left_alone(tmp_path: Path, keying: Keying) -> None:
    """Objects that no state names are left of upload failures, and of times that somebody went back from."""
    clock = Clock()
    setup = Setup(tmp_path / "here", keying, server=FakeS3(clock_ns=clock))
    async with open_rig(setup) as rig:
        await rig.write_file(b"stray", b"stray")
        stray = {**rig.setup.server.bucket(BUCKET).versions}
        await rig.fs.unlink(ROOT, b"stray")
        await rig.reaper.drain()
        await rig.db.write(lambda tx: tx.modify("DELETE FROM blobs"))
        rig.setup.server.bucket(BUCKET).versions.update(stray)
        clock.now_ns += 2 * HOUR_NS
        await send(rig)
        clock.now_ns += HOUR_NS
        await rig.write_file(b"new", b"new")
        assert await outcomes(setup) == {b"new": Outcome.MADE}


@KEYINGS
async def test_an_upload_made_twice_is_no_news(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"a", b"content")
        await send(rig)
        (key,) = [key for key in rig.object_keys() if not key.startswith(".s3blobfs/")]
        client = setup.server.client(BUCKET)
        await client.put(key, b"content", metadata=(await client.head(key)).metadata)
        found = await outcomes(setup)
    assert found == ({b"a": Outcome.LEFT} if keying is Keying.VERSIONED else {})


async def test_foreign_and_malformed_objects_are_left_alone(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        await rig.write_file(b"a", b"content")
        await send(rig)
        client = setup.server.client(BUCKET)
        await client.put("foreign", b"foreign")
        await client.put("0" * 32, b"x", metadata={metadata.PATH: "b", metadata.SIZE: "1"})
        await client.put("other/" + "0" * 32, b"x")
        assert await outcomes(setup) == {}


@KEYINGS
async def test_the_journal_gives_way_to_what_came_after(tmp_path: Path, keying: Keying) -> None:
    """The segment has the row of an upload; the machine stored a later content and lost the row."""
    setup = Setup(tmp_path / "here", keying, durability=Durability.DISK)
    async with open_rig(setup) as rig:
        await rig.write_file(b"a", b"first")
        await rig.fs.sync(None, None)
        stall = rig.faults.on("put").stalls()
        await rig.write_file(b"a", b"second content")
        await stall.arrived.wait()
        await send(rig)
        stall.release()
        await rig.write_file(b"a", b"third and last content")
        await rig.fs.sync(None, None)
        found = await outcomes(setup)
        assert found[b"a"] is Outcome.CHANGED
    async with open_rig(elsewhere(setup)) as rig:
        assert await rig.read_file(b"a") == b"third and last content"


# --- gone ----------------------------------------------------------------------------------------------


def forget(rig: Rig, which: Callable[[bytes], bool]) -> None:
    """Somebody deletes objects with all their versions."""
    versions = rig.setup.server.bucket(BUCKET).versions
    for key in [key for key, history in versions.items() if which(history[-1].data)]:
        del versions[key]


@KEYINGS
async def test_contents_that_are_gone_are_named_and_have_to_be_accepted(
    tmp_path: Path, keying: Keying
) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup, check=False) as rig:
        await rig.write_file(b"kept", b"kept")
        await rig.write_file(b"gone", b"gone for good")
        await send(rig)
        forget(rig, lambda data: data == b"gone for good")
        with pytest.raises(ContentsGone, match=r"contents of 1 files .*: 'gone'\. --partial") as raised:
            await recovered(setup, elsewhere(setup))
        assert [(each.path, each.size_bytes) for each in raised.value.gone] == [(b"gone", 13)]
        assert list(elsewhere(setup).directory.iterdir()) == []
        elsewhere(setup).directory.rmdir()
        result = await recovered(setup, elsewhere(setup), partial=True)
        assert [each.path for each in result.gone] == [b"gone"]
    async with open_rig(elsewhere(setup)) as rig:
        assert await rig.read_file(b"kept") == b"kept"
        (damage,) = await rig.db.read(lambda tx: scrubs.open_damages(tx, 10))
        assert damage.kind == "missing"
        found = await rig.fs.lookup(ROOT, b"gone")
        assert found is not None and found.size_bytes == 13


async def test_other_versions_of_what_is_gone_are_named(tmp_path: Path) -> None:
    """As after gc with --keep-versions, on the way back beyond it."""
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup, check=False) as rig:
        await rig.write_file(b"a", b"oldest")
        await rig.write_file(b"a", b"middle")
        await rig.write_file(b"b", b"first of b")
        await rig.write_file(b"b", b"second of b")
        await send(rig)
        await rig.write_file(b"a", b"newest")
        for history in rig.setup.server.bucket(BUCKET).versions.values():
            history[:] = [version for version in history if version.data not in (b"middle", b"first of b")]
        result = await recovered(setup, elsewhere(setup), partial=True, at_ns=10**18)
    (gone,) = result.gone
    assert gone.path == b"a" and result.restored == []
    assert [(each.age, each.size_bytes) for each in gone.remaining] == [(Age.NEWER, 6), (Age.OLDER, 6)]
    async with open_rig(elsewhere(setup)) as rig:
        rows = await rig.db.read(lambda tx: blobs.deleting(tx, 10))
        assert [row.digests.size_bytes for row in rows] == [len(b"first of b")]
        assert rows[0].state is BlobState.DELETING
        await rig.reaper.drain()
        assert await rig.read_file(b"b") == b"second of b"


async def test_a_digest_store_whose_bucket_keeps_versions(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "here", Keying.DIGEST)
    async with open_rig(setup, check=False) as rig:
        client = setup.server.client(BUCKET)
        await client.enable_versioning()
        await rig.write_file(b"a", b"content")
        await send(rig)
        for info in [info async for info in client.list_objects("") if info.size_bytes == 7]:
            await client.delete(ObjectId(info.key))
        with pytest.raises(ContentsGone) as raised:
            await recovered(setup, elsewhere(setup))
    (gone,) = raised.value.gone
    assert [(each.age, each.size_bytes) for each in gone.remaining] == [(Age.SAME, 7)]
