"""Every damage that an object can take is found, with the files that have it; and healed from each source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.blobstore import metadata
from s3blobfs.errors import AccessDenied, ObjectNotFound, TransientS3Error, UsageError, VolumeIndexError
from s3blobfs.index import blobs, inodes, scrubs
from s3blobfs.index.blobs import BlobRow
from s3blobfs.maintenance import scrub as scrub_module
from s3blobfs.maintenance.fsck import fsck
from s3blobfs.maintenance.scrub import ScrubOptions, ScrubReport, scrub
from s3blobfs.s3.fake import FakeBucket, FakeVersion
from s3blobfs.s3.faults import FaultScript
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import Keying
from tests.maintenance.kit import damage, live, offline
from tests.support.early import as_sent_early
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, add_store, open_rig

HEAL = ScrubOptions(heal=True)
READ = ScrubOptions(read=True)
READ_HEAL = ScrubOptions(read=True, heal=True)
DATA = bytes(range(256)) * 2000  # two blocks of checksums


async def made(setup: Setup, *names: bytes) -> None:
    """A volume with files of different contents, their first being DATA."""
    async with open_rig(setup) as rig:
        for at, name in enumerate(names or (b"file",)):
            await rig.write_file(name, DATA[at:])


async def scrubbed(
    setup: Setup, options: ScrubOptions | None = None, *, script: FaultScript | None = None
) -> ScrubReport:
    async with offline(setup, script=script) as target:
        report = await scrub(target, options)
        assert await target.db.check() == []
        return report


def the_object(setup: Setup) -> tuple[FakeBucket, FakeVersion]:
    """The only one."""
    bucket = setup.server.bucket(BUCKET)
    ((version,),) = bucket.versions.values()
    return bucket, version


def change(setup: Setup, **changes: object) -> None:
    """Alter the only object where it lies."""
    bucket, version = the_object(setup)
    data = changes.pop("data", version.data)
    assert isinstance(data, bytes)
    info = replace(version.info, size_bytes=len(data), **changes)  # type: ignore[arg-type]
    bucket.versions[info.key] = [replace(version, info=info, data=data)]


def forget_cache(setup: Setup) -> None:
    shutil.rmtree(setup.directory / "tier")


async def row_of(rig: Rig, name: bytes = b"file") -> BlobRow:
    found = await rig.fs.lookup(ROOT, name)
    assert found is not None
    inode = await rig.db.read(lambda tx: inodes.get(tx, found.inode_id))
    blob_id = inode.blob_id
    assert blob_id is not None
    return await rig.db.read(lambda tx: blobs.get(tx, blob_id))


@pytest.fixture(params=Keying)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    return Setup(tmp_path / "volume", keying=request.param)


# --- what is found ------------------------------------------------------------------------------------


async def missing(setup: Setup) -> None:
    setup.server.bucket(BUCKET).versions.clear()


async def truncated(setup: Setup) -> None:
    change(setup, data=DATA[:-1])


async def altered(setup: Setup) -> None:
    change(setup, data=b"x" + DATA[1:], etag="other")


async def silently_altered(setup: Setup) -> None:
    change(setup, data=b"x" + DATA[1:])


async def without_metadata(setup: Setup) -> None:
    change(setup, metadata={})


async def of_another(setup: Setup) -> None:
    _, version = the_object(setup)
    change(setup, metadata={**version.info.metadata, "s3blobfs-sha256": "00" * 32})


async def made_anew(setup: Setup) -> None:
    change(setup, etag="multipart-1")


Damaging = Callable[[Setup], Awaitable[None]]
KINDS: list[tuple[Damaging, str]] = [
    (missing, "missing"),
    (truncated, "size"),
    (altered, "etag"),
    (without_metadata, "metadata"),
    (of_another, "metadata"),
    (made_anew, "etag"),
]


# --- objects that were begun before their content was complete ------------------------------------------


@pytest.fixture
async def early(tmp_path: Path) -> Setup:
    """A volume with one such file."""
    setup = Setup(tmp_path / "early", keying=Keying.VERSIONED)
    await made(setup)
    as_sent_early(setup.server.bucket(BUCKET))
    return setup


@pytest.mark.parametrize("options", [ScrubOptions(), READ])
async def test_what_a_tag_says_counts(early: Setup, options: ScrubOptions) -> None:
    assert (await scrubbed(early, options)).found == {}


@pytest.mark.parametrize("tag", [None, "size=3 md5=00 sha256=00", "size=1"])
async def test_a_lost_tag_is_damage_that_is_healed(early: Setup, tag: str | None) -> None:
    """The copy that it is healed by says what it is as objects do otherwise."""
    bucket, version = the_object(early)
    version.tags.clear()
    if tag is not None:
        version.tags["s3blobfs"] = tag
    assert (await scrubbed(early)).found == {"metadata": 1}
    report = await scrubbed(early, HEAL)
    assert report.healed == {"itself": 1}
    assert (await scrubbed(early, READ)).found == {}
    ((*_, newest),) = bucket.versions.values()
    assert metadata.decode(newest.info.metadata).matches(content_digests(DATA))


async def test_a_tag_that_may_not_be_read_is_no_damage(early: Setup) -> None:
    script = FaultScript()
    script.on("get_tags").raises(AccessDenied("403"))
    with pytest.raises(AccessDenied):
        await scrubbed(early, script=script)


async def test_a_server_that_has_lost_all_tags(early: Setup) -> None:
    early.server.has_tags = False
    assert (await scrubbed(early)).found == {"metadata": 1}
    assert (await scrubbed(early, HEAL)).healed == {"itself": 1}


async def test_an_object_that_goes_before_its_tag_is_read(early: Setup) -> None:
    script = FaultScript()
    script.on("get_tags").raises(ObjectNotFound("gone"))
    assert (await scrubbed(early, script=script)).found == {"missing": 1}


@pytest.mark.parametrize(("damaging", "kind"), KINDS)
async def test_damage_is_found_by_head(setup: Setup, damaging: Damaging, kind: str) -> None:
    await made(setup)
    await damaging(setup)
    report = await scrubbed(setup)
    assert report.found == {kind: 1}
    assert report.remaining == 1
    (damage,) = report.damages
    assert damage["kind"] == kind
    assert damage["paths"] == ["file"]
    assert damage["files"] == 1
    assert damage["store"] == "default"
    assert report.bytes_read == 0


async def test_altered_bytes_are_found_by_reading(setup: Setup) -> None:
    await made(setup)
    await silently_altered(setup)
    assert (await scrubbed(setup)).remaining == 0
    report = await scrubbed(setup, READ)
    assert report.found == {"content": 1}
    assert report.bytes_read == len(DATA)


async def test_a_sound_volume(setup: Setup) -> None:
    await made(setup, b"a", b"b", b"c")
    for options in (None, READ, READ_HEAL):
        report = await scrubbed(setup, options)
        assert report.checked == 3
        assert not report.found
        assert report.remaining == 0
        assert report.to_json()["damages"] == []


async def test_wrong_checksums_of_the_index_are_mended(setup: Setup) -> None:
    await made(setup)
    async with offline(setup) as target:
        await target.db.write(lambda tx: blobs.set_checksums(tx, 1, bytes(8)))
    report = await scrubbed(setup, READ_HEAL)
    assert (report.found, report.healed) == ({"checksums": 1}, {"itself": 1})
    assert not (await scrubbed(setup, READ)).found


# --- healing ------------------------------------------------------------------------------------------


async def healed_and_well(setup: Setup, options: ScrubOptions, source: str) -> None:
    report = await scrubbed(setup, options)
    assert report.healed == {source: 1}
    assert report.remaining == 0
    assert (await scrubbed(setup, READ)).found == {}
    if setup.cached:
        forget_cache(setup)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file") == DATA


@pytest.mark.parametrize("damaging", [missing, truncated, altered, of_another])
async def test_from_the_cache(setup: Setup, damaging: Damaging) -> None:
    await made(setup)
    await damaging(setup)
    if damaging is of_another:  # its bytes are right after all
        await healed_and_well(setup, HEAL, "itself")
    else:
        await healed_and_well(setup, HEAL, "cache")


async def test_bytes_altered_silently_are_healed_from_the_cache(setup: Setup) -> None:
    await made(setup)
    await silently_altered(setup)
    await healed_and_well(setup, READ_HEAL, "cache")


async def test_a_lost_stamp_or_a_new_etag_is_healed_by_itself(setup: Setup) -> None:
    await made(setup)
    forget_cache(setup)
    await without_metadata(setup)
    await healed_and_well(setup, HEAL, "itself")


async def test_a_new_etag_needs_no_new_object(setup: Setup) -> None:
    await made(setup)
    await made_anew(setup)
    before = the_object(setup)[1]
    await healed_and_well(setup, HEAL, "itself")
    assert the_object(setup)[1] == before


@pytest.mark.expected_log("was altered; dropped")
async def test_a_damaged_cache_file_heals_nothing(setup: Setup) -> None:
    await made(setup)
    (cached,) = (setup.directory / "tier" / "cache" / "1").iterdir()
    times = cached.stat()
    cached.write_bytes(b"x" + DATA[1:])
    os.utime(cached, ns=(times.st_atime_ns, times.st_mtime_ns))
    await missing(setup)
    report = await scrubbed(setup, HEAL)
    assert not report.healed
    assert report.remaining == 1


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("twin_keying", Keying)
async def test_from_a_twin_in_another_store(setup: Setup, read: bool, twin_keying: Keying) -> None:
    async with open_rig(setup) as rig:
        await rig.setup.server.client(BUCKET).enable_versioning()
        await add_store(rig, "other", "other/", keying=twin_keying, cached=False)
        await rig.write_file(b"file", DATA)
        directory = (await rig.fs.mkdir(ROOT, b"there", 0o755, USER)).inode_id
        await rig.fs.bind_store(directory, 2)
        file = await rig.fs.lookup(ROOT, b"file")
        assert file is not None
        await rig.fs.copy_file(file.inode_id, directory, b"twin", replace=False, caller=USER)
        row = await row_of(rig)
        setup.server.bucket(BUCKET).versions.pop(row.location.object_key)
    forget_cache(setup)
    report = await scrubbed(setup, ScrubOptions(heal=True, read=read))
    assert report.healed == {"twin": 1}
    assert not (await scrubbed(setup, READ)).found
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file") == DATA


async def test_from_an_older_version(tmp_path: Path) -> None:
    """In a digest store whose bucket keeps versions, somebody overwrote the object."""
    setup = Setup(tmp_path / "volume", cached=False)
    await made(setup)
    client = setup.server.client(BUCKET)
    await client.enable_versioning()
    _, version = the_object(setup)
    setup.server.bucket(BUCKET).versions[version.info.key] = [
        replace(version, info=replace(version.info, version_id="before"))
    ]
    await client.put(version.info.key, DATA[:7], metadata=version.info.metadata)
    await healed_and_well(setup, HEAL, "version")


async def test_a_deleted_object_is_healed_from_behind_its_delete_marker(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", cached=False)
    async with open_rig(setup) as rig:
        await setup.server.client(BUCKET).enable_versioning()
        await rig.write_file(b"file", DATA)
        (key,) = rig.object_keys()
    await setup.server.client(BUCKET).delete(ObjectId(key))
    await healed_and_well(setup, READ_HEAL, "version")


@pytest.mark.expected_log("not the content its name says; storing as")
async def test_an_object_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    await made(setup)
    key = the_object(setup)[1].info.key
    change(setup, data=b"foreign", etag="foreign", metadata={})
    report = await scrubbed(setup, HEAL)
    assert report.healed == {"cache": 1}
    bucket = setup.server.bucket(BUCKET)
    assert bucket.versions[key][0].data == b"foreign"
    forget_cache(setup)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"file") == DATA
        assert (await row_of(rig)).location.object_key != key


async def test_unhealable_damage_is_listed_with_every_path(setup: Setup) -> None:
    async with open_rig(setup) as rig:
        file = await rig.write_file(b"file", DATA)
        directory = (await rig.fs.mkdir(ROOT, b"d", 0o755, USER)).inode_id
        await rig.fs.copy_file(file.inode_id, directory, b"copy", replace=False, caller=USER)
    forget_cache(setup)
    await missing(setup)
    report = await scrubbed(setup, HEAL)
    assert report.remaining == 1
    assert report.damages[0]["paths"] == ["file", "d/copy"]
    # Somebody brought the object back: the damage is over.
    await made(replace(setup, directory=setup.directory.parent / "other"))
    if setup.keying is Keying.DIGEST:
        assert (await scrubbed(setup)).remaining == 0


async def test_contents_in_an_unknown_store_are_fsck_s(setup: Setup) -> None:
    await made(setup)
    damage(setup.index_path, "UPDATE blobs SET store_id = 99")
    async with offline(setup) as target:
        with pytest.raises(VolumeIndexError, match="run fsck"):
            await scrub(target)
        report = await fsck(target, repair=True)
        assert "recover the index" in report.findings[-1].note
    damage(setup.index_path, "UPDATE blobs SET store_id = 1")
    assert (await scrubbed(setup)).remaining == 0


async def test_damage_to_what_is_deleted_is_over(setup: Setup) -> None:
    await made(setup)
    await missing(setup)
    assert (await scrubbed(setup)).remaining == 1
    async with open_rig(replace(setup, grace_s=0.0)) as rig:
        await rig.fs.unlink(ROOT, b"file")
    assert (await scrubbed(setup)).remaining == 0


async def test_the_log_tells_what_was_done(setup: Setup) -> None:
    await made(setup)
    await missing(setup)
    await scrubbed(setup, HEAL)
    async with offline(setup) as target:
        log = await target.db.read(
            lambda tx: tx.execute("SELECT blob_id, kind, outcome, closed_ns > 0 FROM damages").fetchall()
        )
    assert log == [(1, "missing", "cache", 1)]


# --- how it runs --------------------------------------------------------------------------------------


async def test_an_interrupted_scrub_goes_on_where_it_was(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "PAGE_BLOBS", 4)
    await made(setup, *(b"%02d" % at for at in range(12)))
    script = FaultScript()
    script.on("head", nth=7).raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await scrubbed(setup, script=script)

    heads = FaultScript()
    count = heads.on("head")
    report = await scrubbed(setup, script=heads)
    assert report.resumed
    assert report.checked == 12
    assert count.hits == 8

    restarted = FaultScript()
    count = restarted.on("head")
    report = await scrubbed(setup, ScrubOptions(restart=True), script=restarted)
    assert not report.resumed
    assert count.hits == 12


async def test_another_depth_begins_anew(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "PAGE_BLOBS", 1)
    await made(setup, b"a", b"b")
    script = FaultScript()
    script.on("head", nth=2).raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await scrubbed(setup, ScrubOptions(concurrency=1), script=script)
    report = await scrubbed(setup, READ)
    assert (report.resumed, report.checked) == (False, 2)


async def test_interrupted_at_any_moment(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled after so many requests; in the end all is compared and healed."""
    monkeypatch.setattr(scrub_module, "PAGE_BLOBS", 2)
    names = [b"%02d" % at for at in range(5)]
    await made(setup, *names)
    await missing(setup)
    for requests in range(1, 8):
        script = FaultScript()
        async with offline(setup, script=script) as target:
            with trio.CancelScope() as scope:
                script.on("head", nth=requests).stalls()
                script.on("put", nth=requests).stalls()
                scope.deadline = trio.current_time() + 0.05
                await scrub(target, HEAL)
    assert (await scrubbed(setup, HEAL)).remaining == 0
    assert not (await scrubbed(setup, READ)).found


async def test_rate_and_bandwidth(setup: Setup, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.02
    await made(setup, *(b"%02d" % at for at in range(10)))
    async with offline(setup) as target:
        started = trio.current_time()
        await scrub(target, ScrubOptions(requests_per_s=2.0))
        assert trio.current_time() - started == pytest.approx(4.5)
        started = trio.current_time()
        await scrub(target, ScrubOptions(read=True, bytes_per_s=len(DATA) / 10))
        assert trio.current_time() - started == pytest.approx(90, rel=0.01)


async def test_so_many_at_a_time(setup: Setup) -> None:
    await made(setup, *(b"%02d" % at for at in range(10)))
    script = FaultScript()
    stall = script.on("head").stalls()
    fault = script.on("head")
    async with offline(setup, script=script) as target, trio.open_nursery() as nursery:
        nursery.start_soon(scrub, target, ScrubOptions(concurrency=3))
        await stall.arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert fault.hits == 3
        stall.release()


async def test_an_outage_is_no_damage(setup: Setup) -> None:
    await made(setup)
    script = FaultScript()
    script.on("head").raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await scrubbed(setup, HEAL, script=script)
    async with offline(setup) as target:
        assert await target.db.read(scrubs.count_open) == 0


async def test_a_read_only_mount(setup: Setup) -> None:
    await made(setup)
    async with offline(setup, read_only=True) as target:
        with pytest.raises(UsageError, match="read-only"):
            await scrub(target)


# --- while the volume is in use -----------------------------------------------------------------------


async def test_readers_find_the_healed_object(setup: Setup) -> None:
    """Also those who opened the file while it was damaged."""
    setup = replace(setup, cached=False)
    async with open_rig(setup) as rig:
        file = await rig.write_file(b"file", DATA)
        await add_store(rig, "other", "other/", cached=False)
        directory = (await rig.fs.mkdir(ROOT, b"there", 0o755, USER)).inode_id
        await rig.fs.bind_store(directory, 2)
        await rig.fs.copy_file(file.inode_id, directory, b"twin", replace=False, caller=USER)
        opened = await rig.fs.open(file.inode_id, 0)
        assert await rig.fs.read(opened.handle, 0, 3) == DATA[:3]
        row = await row_of(rig)
        setup.server.bucket(BUCKET).versions.pop(row.location.object_key)
        report = await scrub(live(rig), HEAL)
        assert report.healed == {"twin": 1}
        assert await rig.fs.read(opened.handle, 0, len(DATA)) == DATA
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)


async def test_what_is_deleted_meanwhile_is_no_damage(setup: Setup) -> None:
    setup = replace(setup, grace_s=0.0)
    async with open_rig(setup) as rig:
        await rig.write_file(b"file", DATA)
        stall = rig.faults.on("head", nth=1).stalls()
        reports = []

        async def run() -> None:
            reports.append(await scrub(live(rig), HEAL))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await stall.arrived.wait()
            await rig.fs.unlink(ROOT, b"file")
            await rig.reaper.drain()
            stall.release()
        assert not reports[0].found
