"""mkfs: what is there afterwards, and that nothing is when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3blobfs.config import S3Options
from s3blobfs.errors import PermanentS3Error, TransientS3Error, UsageError, VolumeMismatch
from s3blobfs.index import inodes, settings, stores
from s3blobfs.index.database import Database
from s3blobfs.s3.fake import FakeObjectClient, FakeS3
from s3blobfs.s3.protocol import PutReceipt
from s3blobfs.trace import Tracer
from s3blobfs.types import DigestAlgorithm, Durability, Keying
from s3blobfs.volume import making
from s3blobfs.volume.descriptor import VolumeDescriptor, get_descriptor, object_key
from s3blobfs.volume.making import NewVolume, make_volume_in


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def client() -> FakeObjectClient:
    return FakeS3().client("bucket")


def new(**changes: object) -> NewVolume:
    values = {"bucket": "bucket", "prefix": "", "s3": S3Options(), "create_bucket": True, **changes}
    return NewVolume(**values)  # type: ignore[arg-type]


async def test_defaults(state: Path, client: FakeObjectClient) -> None:
    made = await make_volume_in(client, new(), Tracer())
    volume = made.settings
    assert made.index_path == state / "s3blobfs" / volume.volume_id / "index.db"
    assert volume.durability is Durability.S3
    descriptor = await get_descriptor(client, "")
    assert descriptor.settings == volume
    (store,) = descriptor.stores
    assert (store.name, store.keying, store.digest_algorithm) == (
        "default",
        Keying.DIGEST,
        DigestAlgorithm.MD5,
    )
    assert store.cached and store.conditional_put
    db = Database.open(made.index_path, tracer=Tracer())
    assert await db.read(settings.load) == volume
    assert await db.read(stores.every) == [store]
    root = await db.read(lambda tx: inodes.get(tx, inodes.ROOT_INODE_ID))
    assert (root.mode, root.nlink, root.uid, root.gid) == (0o40755, 2, os.geteuid(), os.getegid())
    assert await db.check() == []
    await db.aclose()
    assert [info.key async for info in client.list_objects("")] == [object_key("")]


async def test_versioned_below_a_prefix(tmp_path: Path, client: FakeObjectClient) -> None:
    index = tmp_path / "deep" / "my.db"
    wanted = new(prefix="a/b/", keying=Keying.VERSIONED, cached=False, index_path=index)
    made = await make_volume_in(client, wanted, Tracer())
    assert made.index_path == index and index.exists()
    assert await client.versioning_enabled()
    (store,) = (await get_descriptor(client, "a/b/")).stores
    assert (store.prefix, store.keying, store.cached) == ("a/b/", Keying.VERSIONED, False)
    await make_volume_in(client, new(prefix="a/c/", index_path=tmp_path / "other.db"), Tracer())


async def test_versioning_for_a_digest_volume(state: Path, client: FakeObjectClient) -> None:
    await make_volume_in(client, new(enable_versioning=True), Tracer())
    assert await client.versioning_enabled()


async def test_missing_bucket(state: Path, client: FakeObjectClient) -> None:
    with pytest.raises(UsageError, match=r"does not exist.*--create-bucket"):
        await make_volume_in(client, new(create_bucket=False), Tracer())
    assert not state.exists()


async def test_bucket_without_versioning(state: Path, client: FakeObjectClient) -> None:
    await client.create_bucket()
    with pytest.raises(UsageError, match="versioning off"):
        await make_volume_in(client, new(keying=Keying.VERSIONED), Tracer())
    assert not state.exists()


async def test_bucket_that_holds_a_volume(state: Path, client: FakeObjectClient) -> None:
    made = await make_volume_in(client, new(), Tracer())
    with pytest.raises(VolumeMismatch, match=f"already holds volume {made.settings.volume_id} .created 20"):
        await make_volume_in(client, new(), Tracer())
    assert [each.name for each in (state / "s3blobfs").iterdir()] == [made.settings.volume_id]


async def test_index_that_exists_is_left_alone(tmp_path: Path, client: FakeObjectClient) -> None:
    index = tmp_path / "index.db"
    index.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        await make_volume_in(client, new(index_path=index), Tracer())
    assert index.read_text() == "mine"
    assert [info.key async for info in client.list_objects("")] == []


class _LosesAnswers(FakeObjectClient):
    """The description arrives, and the answer does not."""

    async def put(self, key: str, *args: object, **kwargs: object) -> PutReceipt:
        receipt = await super().put(key, *args, **kwargs)  # type: ignore[arg-type]
        if key == object_key(""):
            raise TransientS3Error("the connection was lost")
        return receipt


async def test_nothing_is_left_when_the_description_fails(
    state: Path, client: FakeObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "__class__", _LosesAnswers)
    with pytest.raises(TransientS3Error):
        await make_volume_in(client, new(), Tracer())
    assert [info.key async for info in client.list_objects("")] == []
    assert list((state / "s3blobfs").iterdir()) == []


async def test_loser_of_a_race_leaves_the_winner_alone(
    state: Path, client: FakeObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = await make_volume_in(client, new(), Tracer())

    async def seen_nothing(*_: object) -> None:
        """The winner came between this look and the claim."""

    monkeypatch.setattr(making, "check_vacant", seen_nothing)
    with pytest.raises(VolumeMismatch):
        await make_volume_in(client, new(), Tracer())
    assert (await get_descriptor(client, "")).settings == winner.settings
    assert [each.name for each in (state / "s3blobfs").iterdir()] == [winner.settings.volume_id]


async def test_cancelled_while_claiming(
    state: Path, client: FakeObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(_: object, descriptor: VolumeDescriptor, **__: object) -> None:
        await client.put(object_key(""), descriptor.to_json())
        await trio.sleep_forever()

    monkeypatch.setattr(making, "put_new_descriptor", hangs)
    with trio.move_on_after(0.5):
        await make_volume_in(client, new(), Tracer())
    assert [info.key async for info in client.list_objects("")] == []
    assert list((state / "s3blobfs").iterdir()) == []


async def test_what_s3_refuses_is_passed_on(
    state: Path, client: FakeObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise PermanentS3Error("no", code="AccessDenied")

    monkeypatch.setattr(making, "put_new_descriptor", refused)
    with pytest.raises(PermanentS3Error):
        await make_volume_in(client, new(), Tracer())
    assert list((state / "s3blobfs").iterdir()) == []
