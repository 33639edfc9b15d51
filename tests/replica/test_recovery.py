"""What becomes of contents that were on their way, and a tree rebuilt from nothing but objects."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path

import pytest
import trio

from s3blobfs.config import VolumeSettings
from s3blobfs.errors import IndexDamaged, TransientS3Error
from s3blobfs.fs.attributes import AttributeChanges, Attributes
from s3blobfs.index import replica, settings, stores
from s3blobfs.index.database import Database
from s3blobfs.replica import names
from s3blobfs.replica.fromobjects import Rebuilder, Rebuilt
from s3blobfs.replica.history import History, Need, join
from s3blobfs.replica.outgoing import Maker
from s3blobfs.replica.reading import Reader
from s3blobfs.replica.recovery import Recovered, Request, recover_index
from s3blobfs.trace import Tracer
from s3blobfs.types import Durability, Keying
from s3blobfs.writeback.reaper import Reaper
from tests.fs.calls import opened_file
from tests.support.early import as_sent_early
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, add_store, open_rig

VOLUME = VolumeSettings("0" * 32, BUCKET, "", Durability.S3, created_ns=1)
KEYINGS = pytest.mark.parametrize("keying", list(Keying))


async def send(rig: Rig) -> None:
    """The index as it is now, as a first mount sends it."""
    await rig.db.write(lambda tx: settings.store(tx, VOLUME))
    client = rig.setup.server.client(BUCKET)
    directory = rig.setup.directory / "copy"
    maker = Maker(client, "", VOLUME.volume_id, rig.db.schema_version, directory, lambda: 10**18)
    maker.sweep()
    joined = await join(rig.db, History(client, "", VOLUME.volume_id), take_over=False)
    assert joined.need is Need.BREAK
    pinned, _ = await rig.db.pin()
    out = await maker.break_(joined.tip, 0, pinned)
    assert out.snapshot is not None
    await maker.send_snapshot(out.segment.number, out.snapshot)
    await client.put(names.segment_key("", out.segment.number), out.data)


async def recovered(rig_setup: Setup, other: Setup, **request: object) -> Recovered:
    client = rig_setup.server.client(BUCKET)
    other.directory.mkdir()
    return await recover_index(
        Reader(client, "", VOLUME.volume_id),
        other.index_path,
        lambda bucket: client,
        Request(**request),  # type: ignore[arg-type]
        now_ns=lambda: 5,
    )


def elsewhere(setup: Setup) -> Setup:
    """Another machine."""
    return Setup(setup.directory.with_name("elsewhere"), setup.keying, server=setup.server)


# --- contents on their way -----------------------------------------------------------------------------


@KEYINGS
@pytest.mark.expected_log("failed and is tried again")
async def test_what_was_only_staged_is_lost_and_named(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying, durability=Durability.DISK)
    async with open_rig(setup, check=False) as rig:
        await rig.write_file(b"changed", b"earlier")
        await rig.write_file(b"safe", b"safe")
        await rig.fs.sync(None, None)
        rig.faults.on("put").raises(TransientS3Error("down"))
        await rig.write_file(b"changed", b"later and longer")
        await rig.write_file(b"new", b"never stored")
        await send(rig)
        result = await recovered(setup, elsewhere(setup))
        rig.faults._script.clear()
    assert result.problems == [] and result.found == 0
    assert [(lost.path, lost.size_bytes, lost.kept_bytes) for lost in result.lost] == [
        (b"changed", 16, 7),
        (b"new", 12, None),
    ]
    async with open_rig(elsewhere(setup)) as rig:
        assert await rig.read_file(b"changed") == b"earlier"
        assert await rig.read_file(b"safe") == b"safe"
        assert await rig.read_file(b"new") == b""


async def _store_without_an_answer(rig: Rig) -> Attributes:
    """A file whose later content is in S3 without the index having heard of it."""
    await rig.write_file(b"a", b"earlier")
    await rig.fs.sync(None, None)
    rig.faults.on("put").applies_then_raises(TransientS3Error("answer lost"))
    written = await rig.write_file(b"a", b"later and longer")
    while not rig.fs.uploader.pending().last_error:  # noqa: ASYNC110 - nobody tells of a failure
        await trio.sleep(0.01)
    return written


@KEYINGS
@pytest.mark.expected_log("failed and is tried again")
async def test_what_was_stored_but_not_committed_is_found(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying, durability=Durability.DISK)
    async with open_rig(setup, check=False) as rig:
        opened = await _store_without_an_answer(rig)
        await send(rig)
        result = await recovered(setup, elsewhere(setup))
        rig.faults._script.clear()
    assert (result.found, result.lost) == (1, [])
    async with open_rig(elsewhere(setup)) as rig:
        assert await rig.read_file(b"a") == b"later and longer"
        assert (await rig.fs.getattr(opened.inode_id)).size_bytes == 16


@KEYINGS
@pytest.mark.expected_log("failed and is tried again")
async def test_what_was_changing_hides_nothing_that_was_stored_before(tmp_path: Path, keying: Keying) -> None:
    """A close, and then an fsync of a file that stays open."""
    setup = Setup(tmp_path / "here", keying, durability=Durability.DISK)
    async with open_rig(setup, check=False) as rig:
        opened = await _store_without_an_answer(rig)
        async with opened_file(rig, opened.inode_id, os.O_RDWR) as handle:
            await rig.fs.write(handle, 0, b"LATER")
            await rig.fs.fsync(handle)
            await send(rig)
            result = await recovered(setup, elsewhere(setup))
            buckets = copy.deepcopy(setup.server.buckets)  # before this one goes on
        rig.faults._script.clear()
    setup.server.buckets = buckets
    assert result.found == 1
    assert [(lost.path, lost.size_bytes, lost.kept_bytes) for lost in result.lost] == [(b"a", 16, 16)]
    async with open_rig(elsewhere(setup)) as rig:
        assert await rig.read_file(b"a") == b"later and longer"


async def test_the_first_mount_of_a_recovered_index_makes_itself_known(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "here")
    async with open_rig(setup) as rig:
        await rig.write_file(b"a", b"content")
        await send(rig)
    await recovered(setup, elsewhere(setup))
    db = Database.open(elsewhere(setup).index_path, tracer=Tracer())
    client = setup.server.client(BUCKET)
    joined = await join(db, History(client, "", VOLUME.volume_id), take_over=False)
    assert joined.need is Need.MARK
    row = await db.read(replica.find)
    assert row is not None and not row.claimed and row.number == 1
    await db.aclose()


async def test_nothing_is_written_when_the_state_cannot_be_reached(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "here")
    async with open_rig(setup) as rig:
        await send(rig)
    bucket = setup.server.bucket(BUCKET)
    other = elsewhere(setup)
    for key in [key for key in bucket.versions if "/segments/" in key]:
        bucket.versions.pop(key)
    with pytest.raises(IndexDamaged, match=r"no segments in the bucket.*--partial"):
        await recovered(setup, other)
    assert list(other.directory.iterdir()) == []
    other.directory.rmdir()
    result = await recovered(setup, other, partial=True)
    assert not result.reconstruction.complete
    other.index_path.unlink()
    other.directory.rmdir()
    for key in [key for key in bucket.versions if "/snapshots/" in key]:
        bucket.versions.pop(key)
    with pytest.raises(IndexDamaged, match="--from-objects"):
        await recovered(setup, other)


@pytest.mark.expected_log("deleting from .* failed")
async def test_nothing_is_deleted_before_the_copy_knows(tmp_path: Path) -> None:
    """Else a recovered index would name what is gone."""
    async with open_rig(Setup(tmp_path / "here", Keying.VERSIONED)) as rig:
        answers = [TransientS3Error("down"), None]

        async def shipped() -> None:
            assert len(rig.object_keys()) == 1
            answer = answers.pop(0)
            if answer is not None:
                raise answer

        await rig.write_file(b"a", b"content")
        await rig.fs.unlink(ROOT, b"a")
        reaper = Reaper(rig.db, rig.tier, rig.stores, garbage_grace_s=0, shipped=shipped)
        assert await reaper.drain() == 1
        assert len(rig.object_keys()) == 1
        assert await reaper.drain() == 0
        assert rig.object_keys() == []


# --- from objects --------------------------------------------------------------------------------------


async def rebuilt(setup: Setup) -> Rebuilt:
    """An index elsewhere, made of the objects."""
    db = Database.open(setup.index_path, tracer=Tracer())
    configs = await db.read(stores.every)
    await db.aclose()
    other = elsewhere(setup)
    other.directory.mkdir()
    made = Database.create(other.index_path, tracer=Tracer())

    result = await Rebuilder(
        made,
        VOLUME,
        configs,
        setup.server.factory(Tracer()),
        lambda files, size: None,
    ).run()
    assert await made.check() == []
    await made.aclose()
    return result


async def tree(rig: Rig, directory: int = ROOT, above: bytes = b"") -> dict[bytes, bytes]:
    """Path to content of every file."""
    found: dict[bytes, bytes] = {}
    handle = await rig.fs.opendir(directory)
    for entry in await rig.fs.readdir(handle, 0):
        if entry.name in (b".", b".."):
            continue
        path = above + entry.name
        attributes = await rig.fs.lookup(directory, entry.name)
        assert attributes is not None
        if stat.S_ISDIR(attributes.mode):
            found |= await tree(rig, attributes.inode_id, path + b"/")
        else:
            found[path] = await rig.read_file(entry.name, directory)
    await rig.fs.releasedir(handle)
    return found


@pytest.mark.parametrize("tagged", [True, False])
async def test_objects_that_were_begun_early(tmp_path: Path, tagged: bool) -> None:
    """With their tags nothing has to be read; without, they are, and get their places all the same."""
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        await rig.write_file(b"a", b"first")
        await rig.write_file(b"a", b"second", directory.inode_id)
        expected = await tree(rig)
    as_sent_early(setup.server.bucket(BUCKET), tagged=tagged, mode=0o100400)
    result = await rebuilt(setup)
    assert (result.files, result.read, result.lost_and_found) == (2, 0 if tagged else 2, 0)
    async with open_rig(elsewhere(setup)) as rig:
        assert await tree(rig) == expected
        found = await rig.fs.lookup(ROOT, b"a")
        assert found is not None and found.mode & 0o777 == (0o400 if tagged else 0o644)


@KEYINGS
async def test_a_tree_comes_back_from_its_objects(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        directory = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
        other = await add_store(rig, "other", "other/")
        below = await rig.fs.mkdir(ROOT, b"elsewhere", 0o755, USER)
        await rig.fs.bind_store(below.inode_id, other.config.id)
        await rig.write_file(b"a", b"first")
        file = await rig.write_file(b"a", b"second")
        await rig.fs.setattr(file.inode_id, AttributeChanges(mode=0o600))
        await rig.write_file(b"\xff\nodd", b"odd", directory.inode_id)
        await rig.write_file(b"b", b"in the other store", below.inode_id)
        await rig.write_file(b"gone", b"gone")
        await rig.fs.unlink(ROOT, b"gone")
        await rig.reaper.drain()
        expected = await tree(rig)
        await setup.server.client(BUCKET).put(".s3blobfs/index/segments/junk", b"no blob")
    result = await rebuilt(setup)
    async with open_rig(elsewhere(setup)) as rig:
        found = await tree(rig)
        # Kept for its grace in a digest store, and an earlier content of 'a' as well.
        for name in [name for name in found if name == b"gone" or name.startswith(b"a~")]:
            assert keying is Keying.DIGEST
            del found[name]
        assert found == expected
        again = await rig.fs.lookup(ROOT, b"a")
        assert again is not None and again.uid == USER.uid and stat.S_IMODE(again.mode) == 0o644
        await rig.write_file(b"a", b"and can be changed")
    assert result.skipped == [] and result.lost_and_found == 0


@KEYINGS
async def test_foreign_and_hostile_objects(tmp_path: Path, keying: Keying) -> None:
    setup = Setup(tmp_path / "here", keying)
    async with open_rig(setup) as rig:
        await rig.write_file(b"a", b"one")
        client = setup.server.client(BUCKET)
        await client.put("some/key with / slashes", b"foreign")
        await client.put("x" * 900, b"long")
        await client.put("empty", b"")
        for path in ("..%2F..%2Fetc/passwd", "a", "a/below a file", "lost%2Bfound", "n" * 300):
            stamp = {"s3blobfs-path": path, "s3blobfs-size": "3", "s3blobfs-sha256": "zz"}
            await client.put(f"hostile-{len(path)}", f"is {path}".encode(), metadata=stamp)
    result = await rebuilt(setup)
    assert [line.split(":")[0] for line in result.skipped] == ["empty"]
    assert result.lost_and_found == result.read == 7
    async with open_rig(elsewhere(setup)) as rig:
        found = await tree(rig)
        assert found[b"a"] == b"one"
        assert found[b"lost+found/some%2Fkey%20with%20%2F%20slashes"] == b"foreign"
        assert len(found) == 8 and all(name.startswith(b"lost+found/") for name in found if name != b"a")
        assert os.fsencode("lost+found/hostile-1") in found


async def test_names_that_several_objects_claim(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "here", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        for number, content in enumerate((b"oldest", b"newer", b"newest")):
            await rig.write_file(b"name", content)
            await rig.fs.rename(ROOT, b"name", ROOT, b"moved %d" % number)
    result = await rebuilt(setup)
    assert result.conflicts == 2
    async with open_rig(elsewhere(setup)) as rig:
        found = await tree(rig)
        assert found[b"name"] == b"newest"
        assert sorted(found.values()) == [b"newer", b"newest", b"oldest"]
        assert all(name.startswith(b"name~") for name in found if name != b"name")
