"""Every kind of leftover is found, nothing else is touched, and nothing changes unless that is asked for."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from s3blobfs.blobstore import metadata
from s3blobfs.errors import TransientS3Error, UsageError
from s3blobfs.index import uploads
from s3blobfs.index.uploads import UploadState
from s3blobfs.maintenance import gc as gc_module
from s3blobfs.maintenance import judgement
from s3blobfs.maintenance.gc import GcOptions, gc
from s3blobfs.maintenance.gc_report import Candidate, GcReport
from s3blobfs.s3.fake import FakeBucket, FakeS3
from s3blobfs.s3.faults import FaultScript
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import Keying, ObjectHint
from tests.maintenance.kit import DAY_NS, HOUR_NS, contents, live, offline
from tests.support.early import as_sent_early
from tests.support.rig import BUCKET, ROOT, Rig, Setup, add_store, open_rig

DELETE = GcOptions(delete=True)
HINT = ObjectHint(7, b"file", 0o100644, 1, 2, 3)


@dataclass
class World:
    """A volume of the day before yesterday, on a clock that a test moves."""

    keying: Keying
    directory: Path
    now_ns: int = 1_800_000_000 * 10**9
    server: FakeS3 = field(init=False)
    setup: Setup = field(init=False)

    def __post_init__(self) -> None:
        self.server = FakeS3(clock_ns=lambda: self.now_ns)
        self.setup = Setup(
            self.directory,
            keying=self.keying,
            server=self.server,
            now_ns=lambda: self.now_ns,
            grace_s=3600.0,
        )

    @property
    def bucket(self) -> FakeBucket:
        return self.server.bucket(BUCKET)

    @property
    def client(self) -> ObjectClient:
        return self.server.client(BUCKET)

    def later(self, delta_ns: int = 2 * DAY_NS) -> None:
        self.now_ns += delta_ns

    async def stray(self, data: bytes, *, prefix: str = "", key: str | None = None) -> str:
        """Put an object as an upload does whose row never came."""
        digests = content_digests(data)
        if key is None:
            key = digests.md5.hex() if self.keying is Keying.DIGEST else uuid.uuid4().hex
        stamp = metadata.encode(uuid.uuid4().hex, HINT, digests)
        await self.client.put(prefix + key, data, metadata=stamp)
        return prefix + key

    async def gc(self, options: GcOptions | None = None, *, script: FaultScript | None = None) -> GcReport:
        """Offline; a dry run must change nothing, and the volume must be whole."""
        before = contents(self.bucket)
        async with offline(self.setup, script=script, now_ns=lambda: self.now_ns) as target:
            report = await gc(target, options)
            assert await target.db.check() == []
        if not report.deleting:
            assert contents(self.bucket) == before
            assert not any(tally.count for tally in report.deleted.values())
        return report


@pytest.fixture(params=Keying)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path / "volume")


@pytest.fixture
def digest(tmp_path: Path) -> World:
    return World(Keying.DIGEST, tmp_path / "volume")


@pytest.fixture
def versioned(tmp_path: Path) -> World:
    return World(Keying.VERSIONED, tmp_path / "volume")


@asynccontextmanager
async def used(world: World) -> AsyncIterator[Rig]:
    async with open_rig(world.setup) as rig:
        yield rig


async def made(world: World, **files: bytes) -> None:
    async with used(world) as rig:
        for name, data in files.items():
            await rig.write_file(name.encode(), data)


def found(report: GcReport) -> dict[str, tuple[int, int]]:
    return {kind.value: (tally.count, tally.bytes) for kind, tally in report.found.items() if tally.count}


def kept(report: GcReport) -> dict[str, int]:
    return {why.value: tally.count for why, tally in report.kept.items() if tally.count}


# --- kinds --------------------------------------------------------------------------------------------


async def test_a_volume_in_order_has_no_leftovers(world: World) -> None:
    await made(world, a=b"1", b=b"22", c=b"333")
    world.later()
    report = await world.gc(DELETE)
    assert found(report) == {}
    assert kept(report) == {"named": 3}
    assert not report.failed


async def test_unnamed_objects(world: World) -> None:
    await made(world, file=b"content")
    key = await world.stray(b"stray")
    world.later()
    kind = "unnamed-object" if world.keying is Keying.DIGEST else "unnamed-version"
    report = await world.gc()
    assert found(report) == {kind: (1, 5)}
    assert key in report.to_json()["examples"][kind][0]
    assert key in world.bucket.versions
    report = await world.gc(DELETE)
    assert report.to_json()["deleted"][kind] == {"count": 1, "bytes": 5}
    assert key not in world.bucket.versions
    assert found(await world.gc()) == {}
    async with used(world) as rig:
        assert await rig.read_file(b"file") == b"content"


async def test_unnamed_versions_of_a_file(versioned: World) -> None:
    await made(versioned, file=b"content")
    (key,) = versioned.bucket.versions
    before = contents(versioned.bucket)
    await versioned.stray(b"stray", key=key)
    versioned.later()
    assert found(await versioned.gc(DELETE)) == {"unnamed-version": (1, 5)}
    assert contents(versioned.bucket) == before


async def test_versions_behind_a_digest_and_delete_markers(digest: World) -> None:
    """The bucket keeps versions, and what the reaper deleted is still there behind its marker."""
    setup = digest.setup = replace(digest.setup, grace_s=0.0)
    async with open_rig(setup) as rig:
        await digest.client.enable_versioning()
        await rig.write_file(b"kept", b"kept")
        await rig.write_file(b"gone", b"gone!")
        await rig.fs.unlink(ROOT, b"gone")
    digest.later()
    report = await digest.gc(DELETE)
    assert found(report) == {"unnamed-version": (1, 5), "delete-marker": (1, 0)}
    assert len(digest.bucket.versions) == 1
    assert found(await digest.gc()) == {}


async def test_a_marker_stays_as_long_as_a_version_behind_it(digest: World) -> None:
    await made(digest, file=b"content")
    await digest.client.enable_versioning()
    key = await digest.stray(b"stray")
    digest.later()
    await digest.client.delete(ObjectId(key))
    digest.later(HOUR_NS)
    # The version is due, and the marker, which is younger, is not: without the version it hides nothing.
    report = await digest.gc(DELETE)
    assert found(report) == {"unnamed-version": (1, 5)}
    assert kept(report)["recent"] == 1
    digest.later()
    assert found(await digest.gc(DELETE)) == {"delete-marker": (1, 0)}
    assert list(digest.bucket.versions) != [key]


async def test_what_may_heal_a_damaged_object_stays(world: World) -> None:
    await made(world, file=b"content")
    (key,) = world.bucket.versions
    if world.keying is Keying.DIGEST:
        await world.client.enable_versioning()
        current = world.bucket.versions[key][0]
        world.bucket.versions[key] = [replace(current, info=replace(current.info, version_id="first"))]
        await world.client.delete(ObjectId(key))
    else:
        version = world.bucket.versions[key][0]
        await world.client.put(key, version.data, metadata={**version.info.metadata})
        await world.client.delete(ObjectId(key, version.info.version_id))
    world.later()
    report = await world.gc(DELETE)
    assert found(report) == {}
    assert kept(report)["needed"] == 1


async def test_stale_uploads(world: World) -> None:
    await made(world, file=b"content")
    world.server.begin_upload(BUCKET, "0" * 32)
    world.server.begin_upload(BUCKET, "somebody/else")
    world.server.begin_upload(BUCKET, ".s3blobfs/index/1")
    world.later()
    recent = world.server.begin_upload(BUCKET, "1" * 32)
    report = await world.gc()
    assert found(report) == {"stale-upload": (1, 0)}
    assert len(world.bucket.uploads) == 4
    await world.gc(DELETE)
    assert {upload.info.key for upload in world.bucket.uploads.values()} == {
        "1" * 32,
        "somebody/else",
        ".s3blobfs/index/1",
    }
    assert recent in world.bucket.uploads


async def test_an_upload_of_a_file_that_is_being_written_is_not_stale(versioned: World) -> None:
    """However long that takes. It has no journal row before the file is closed."""
    async with used(versioned) as rig:
        key = "0" * 32
        versioned.server.begin_upload(BUCKET, key)
        versioned.server.begin_upload(BUCKET, "1" * 32)
        versioned.later()
        sent_early = frozenset({(1, key)})
        target = replace(live(rig), now_ns=lambda: versioned.now_ns, sent_early=lambda: sent_early)
        report = await gc(target, DELETE)
    assert kept(report)["in-flight"] == 1
    assert [upload.info.key for upload in versioned.bucket.uploads.values()] == [key]


@pytest.mark.parametrize("tagged", [True, False])
async def test_an_unnamed_object_that_was_begun_early(versioned: World, tagged: bool) -> None:
    """It may have been given its tag, or not."""
    await made(versioned, file=b"content")
    key = await versioned.stray(b"stray")
    as_sent_early(versioned.bucket, tagged=tagged)
    versioned.later()
    assert found(await versioned.gc(DELETE)) == {"unnamed-version": (1, 5)}
    assert key not in versioned.bucket.versions
    async with used(versioned) as rig:
        assert await rig.read_file(b"file") == b"content"


async def test_an_upload_is_not_stale_before_a_day(world: World) -> None:
    await made(world, file=b"content")
    world.server.begin_upload(BUCKET, "0" * 32)
    world.later(23 * HOUR_NS)
    assert found(await world.gc(GcOptions(grace_s=0.0))) == {}


async def test_probes_and_the_volume_s_own_objects(world: World) -> None:
    await made(world, file=b"content")
    probe = f".s3blobfs/probe-{uuid.uuid4().hex}"
    for key in (probe, ".s3blobfs/volume.json", ".s3blobfs/index/0001", ".s3blobfs/probe-mine"):
        await world.client.put(key, b"x")
    world.later()
    report = await world.gc(DELETE)
    assert found(report) == {"probe": (1, 1)}
    assert kept(report)["volume"] == 3
    assert probe not in world.bucket.versions
    assert len([key for key in world.bucket.versions if key.startswith(".s3blobfs/")]) == 3


async def test_foreign_objects_are_counted_only(world: World) -> None:
    await made(world, file=b"content")
    digests = content_digests(b"other")
    stamp = metadata.encode("w", HINT, digests)
    foreign = {
        "README.md": {},
        "photos/1.jpg": stamp,
        "0" * 32: {},  # has the form of a name, but no stamp
        "f" * 32: stamp if world.keying is Keying.DIGEST else {},  # a stamp of another content
    }
    for key, stamped in foreign.items():
        await world.client.put(key, b"foreign", metadata=stamped)
    world.later()
    report = await world.gc(DELETE)
    assert found(report) == {}
    assert kept(report) == {"named": 1, "foreign": 4}
    assert set(foreign) < set(world.bucket.versions)


async def test_a_foreign_delete_marker(versioned: World) -> None:
    await made(versioned, file=b"content")
    await versioned.client.delete(ObjectId("README"))
    versioned.later()
    report = await versioned.gc(DELETE)
    assert found(report) == {}
    assert kept(report)["foreign"] == 1


async def test_garbage_whose_grace_is_over(digest: World) -> None:
    async with used(digest) as rig:
        await rig.write_file(b"file", b"content")
        await rig.fs.unlink(ROOT, b"file")
    digest.later(2 * HOUR_NS)
    assert found(await digest.gc()) == {"garbage": (1, 7)}
    report = await digest.gc(DELETE)
    assert report.to_json()["deleted"]["garbage"] == {"count": 1, "bytes": 7}
    assert not digest.bucket.versions


# --- versions -----------------------------------------------------------------------------------------


async def written_five_times(world: World) -> None:
    """Two files with the versions 1 to 5, a day between them."""
    for number in range(1, 6):
        await made(world, a=b"a" * number, b=b"b" * number)
        world.later(DAY_NS)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (GcOptions(), [5, 5]),
        (GcOptions(keep_versions=4), [5, 5]),
        (GcOptions(keep_versions=1), [2, 2]),
        (GcOptions(keep_versions=0), [1, 1]),
        (GcOptions(older_than_s=2.5 * 24 * 3600), [3, 3]),
        (GcOptions(older_than_s=0), [1, 1]),
        (GcOptions(keep_versions=3, older_than_s=0), [4, 4]),
        (GcOptions(keep_versions=1, older_than_s=3.5 * 24 * 3600), [4, 4]),
    ],
)
async def test_retention(versioned: World, options: GcOptions, left: list[int]) -> None:
    await written_five_times(versioned)
    dry = await versioned.gc(options)
    report = await versioned.gc(replace(options, delete=True))
    assert found(dry) == found(report)
    assert [len(versions) for versions in versioned.bucket.versions.values()] == left
    assert report.to_json()["deleted"]["superseded-version"]["count"] == 10 - sum(left)
    assert not report.failed
    async with used(versioned) as rig:
        assert await rig.read_file(b"a") == b"aaaaa"


async def test_retention_page_by_page(versioned: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3blobfs.maintenance.retention.PAGE_ROWS", 3)
    await written_five_times(versioned)
    report = await versioned.gc(GcOptions(delete=True, keep_versions=2))
    assert found(report) == {"superseded-version": (4, 6)}
    assert [len(versions) for versions in versioned.bucket.versions.values()] == [3, 3]


# --- grace, pages, faults -----------------------------------------------------------------------------


async def test_nothing_within_the_grace_is_touched(world: World) -> None:
    await made(world, file=b"content")
    await world.stray(b"stray")
    world.later(23 * HOUR_NS)
    report = await world.gc(DELETE)
    assert found(report) == {}
    assert kept(report) == {"named": 1, "recent": 1}
    assert sum(len(versions) for versions in world.bucket.versions.values()) == 2
    assert found(await world.gc(GcOptions(grace_s=3600.0))) != {}


async def test_several_stores_in_one_bucket(world: World) -> None:
    async with used(world) as rig:
        await world.client.enable_versioning()
        await add_store(rig, "other", "other/", keying=Keying.VERSIONED)
        await rig.write_file(b"file", b"content")
    await world.stray(b"stray", prefix="other/", key=uuid.uuid4().hex)
    await world.client.put("other/.s3blobfs/x", b"")
    world.later()
    report = await world.gc(DELETE)
    assert found(report) == {"unnamed-version": (1, 5)}
    assert kept(report)["volume"] == 1


async def test_many_objects_page_by_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, so many are judged at a time."""
    monkeypatch.setattr(gc_module, "BATCH_KEYS", 7)
    sizes = []
    original = judgement.Judge.judge

    async def judge(self: judgement.Judge, groups: Sequence[judgement.Group]) -> list[Candidate]:
        sizes.append(len(groups))
        return await original(self, groups)

    monkeypatch.setattr(judgement.Judge, "judge", judge)
    world.server.page_size = 5
    await made(world, **{f"f{at}": b"%d" % at for at in range(30)})
    for at in range(30):
        await world.stray(b"stray %d" % at)
    world.later()
    report = await world.gc(DELETE)
    assert sum(tally.count for tally in report.found.values()) == 30
    assert kept(report) == {"named": 30}
    assert max(sizes) == 7
    assert sum(sizes) == 60
    assert found(await world.gc()) == {}


async def test_an_interrupted_deletion_is_gone_on_with(world: World) -> None:
    await made(world, file=b"content")
    await world.stray(b"stray")
    world.later()
    script = FaultScript()
    script.on("delete_many").raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await world.gc(DELETE, script=script)
    assert sum(tally.count for tally in (await world.gc(DELETE)).deleted.values()) == 1


async def test_what_the_journal_names_stays(world: World) -> None:
    """A PUT whose answer was lost before a crash: recovery looks for it by its write id."""
    await made(world, file=b"content")
    digests = content_digests(b"stray")
    key = digests.md5.hex() if world.keying is Keying.DIGEST else uuid.uuid4().hex
    await world.client.put(key, b"stray", metadata=metadata.encode("the-write", HINT, digests))
    upload = world.server.begin_upload(BUCKET, digests.md5.hex())
    async with offline(world.setup) as target:
        await target.db.write(
            lambda tx: uploads.insert(
                tx,
                inode_id=2,
                store_id=1,
                staged_name="sealed_x",
                size_bytes=5,
                digests=digests,
                write_id="the-write",
                state=UploadState.SEALED,
                now_ns=world.now_ns,
            )
        )
    world.later()
    before = contents(world.bucket)
    async with offline(world.setup, now_ns=lambda: world.now_ns) as target:
        report = await gc(target, DELETE)
    assert kept(report)["in-flight"] == 2
    assert contents(world.bucket) == before
    assert upload in world.bucket.uploads


# --- while the volume is in use -----------------------------------------------------------------------


async def test_the_grace_of_a_mounted_volume_is_an_hour_at_least(world: World) -> None:
    async with used(world) as rig:
        with pytest.raises(UsageError, match="at least 1h"):
            await gc(live(rig), GcOptions(grace_s=60.0))


async def test_a_read_only_mount_deletes_nothing(world: World) -> None:
    await made(world, file=b"content")
    async with offline(world.setup, read_only=True) as target:
        assert found(await gc(target)) == {}
        with pytest.raises(UsageError, match="read-only"):
            await gc(target, DELETE)


async def test_retention_while_mounted_is_the_reaper_s_work(versioned: World) -> None:
    await written_five_times(versioned)
    async with used(versioned) as rig:
        report = await gc(live(rig), GcOptions(delete=True, keep_versions=0))
        assert report.to_json()["deleted"]["superseded-version"]["count"] == 8
        await rig.reaper.drain()
        assert [len(versions) for versions in versioned.bucket.versions.values()] == [1, 1]
