"""The conformance suite: versions, delete markers, missing things, buckets, copies."""

from __future__ import annotations

import pytest

from s3blobfs.errors import (
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
)
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Count
from tests.conftest import unique_bucket_name
from tests.s3.world import THRESHOLD_BYTES, World, pattern

ABSENT_VERSION = "0" * 32


# --- versions -----------------------------------------------------------------------------------------


async def test_versions(world: World) -> None:
    client = await world.bucket(versioning=True)
    assert await client.versioning_enabled()
    first = await client.put("k", b"one", metadata={"n": "1"})
    second = await client.put("k", b"two")
    assert first.version_id is not None and second.version_id is not None
    assert first.version_id != second.version_id
    old = await client.get("k", version_id=first.version_id)
    assert (old.data, old.info.version_id, old.info.metadata) == (b"one", first.version_id, {"n": "1"})
    assert (await client.get("k")).info.version_id == second.version_id
    assert (await client.head("k", version_id=first.version_id)).size_bytes == 3

    await client.delete(ObjectId("k", second.version_id))
    assert (await client.get("k")).data == b"one"
    await client.delete(ObjectId("k", second.version_id))  # gone already: success
    await client.delete(ObjectId("k", first.version_id))
    with pytest.raises(ObjectNotFound):
        await client.head("k")
    assert [version async for version in client.list_versions("")] == []


async def test_delete_marker(world: World) -> None:
    client = await world.bucket(versioning=True)
    receipt = await client.put("k", b"one")
    await client.delete(ObjectId("k"))
    for call in (lambda: client.get("k"), lambda: client.head("k")):
        with pytest.raises(ObjectNotFound):
            await call()
    assert [info async for info in client.list_objects("")] == []
    assert (await client.get("k", version_id=receipt.version_id)).data == b"one"
    versions = [version async for version in client.list_versions("")]
    assert [(v.is_delete_marker, v.is_latest, v.size_bytes) for v in versions] == [
        (True, True, 0),
        (False, False, 3),
    ]
    for call in (
        lambda: client.get("k", version_id=versions[0].version_id),
        lambda: client.head("k", version_id=versions[0].version_id),
    ):
        with pytest.raises(ObjectNotFound):
            await call()
    await client.delete(ObjectId("k", versions[0].version_id))
    assert (await client.get("k")).data == b"one"


async def test_missing_things(world: World) -> None:
    client = await world.bucket(versioning=True)
    await client.put("k", b"one")
    for call in (
        lambda: client.get("absent"),
        lambda: client.head("absent"),
        lambda: client.get("absent", version_id=ABSENT_VERSION),
        lambda: client.get("k", version_id=ABSENT_VERSION),
        lambda: client.head("k", version_id=ABSENT_VERSION),
        lambda: client.copy(client.bucket, ObjectId("absent"), "to", size_bytes=1),
        lambda: client.copy(client.bucket, ObjectId("k", ABSENT_VERSION), "to", size_bytes=1),
    ):
        with pytest.raises(ObjectNotFound) as caught:
            await call()
        assert caught.value.key in ("absent", "k")
    await client.delete(ObjectId("k", ABSENT_VERSION))
    assert (await client.get("k")).data == b"one"


async def test_delete_of_a_missing_key(world: World) -> None:
    client = await world.bucket()
    await client.delete(ObjectId("absent"))
    assert await client.delete_many([ObjectId("absent")]) == []


async def test_missing_bucket(world: World) -> None:
    client = world.factory(unique_bucket_name())
    assert not await client.bucket_exists()
    for call in (
        lambda: client.put("k", b""),
        lambda: client.put("k", pattern(THRESHOLD_BYTES)),
        lambda: client.get("k"),
        lambda: client.delete_many([ObjectId("k")]),
        lambda: anext(client.list_objects("")),
        lambda: anext(client.list_versions("")),
        client.versioning_enabled,
        client.enable_versioning,
    ):
        with pytest.raises(BucketNotFound):
            await call()
    # The answer to HEAD has no body that could say what is missing.
    with pytest.raises((BucketNotFound, ObjectNotFound)):
        await client.head("k")


async def test_bucket(world: World) -> None:
    client = await world.bucket()
    assert await client.bucket_exists()
    await client.create_bucket()  # ours already: success
    assert not await client.versioning_enabled()
    await client.enable_versioning()
    await client.enable_versioning()
    assert await client.versioning_enabled()
    await client.aclose()


async def test_objects_older_than_versioning(world: World) -> None:
    client = await world.bucket()
    await client.put("k", b"old")
    await client.enable_versioning()
    assert (await client.head("k")).version_id is None
    receipt = await client.put("k", b"new")
    assert receipt.version_id is not None
    versions = [version async for version in client.list_versions("")]
    assert [(v.version_id, v.is_latest) for v in versions] == [(receipt.version_id, True), (None, False)]


# --- copies -------------------------------------------------------------------------------------------


async def test_copy_keeps_or_replaces_metadata(world: World) -> None:
    client = await world.bucket()
    await client.put("from", b"data", metadata={"a": "1"})
    receipt = await client.copy(client.bucket, ObjectId("from"), "kept", size_bytes=4)
    info = await client.head("kept")
    assert (info.metadata, info.etag, receipt.version_id) == ({"a": "1"}, receipt.etag, None)
    await client.copy(client.bucket, ObjectId("from"), "replaced", size_bytes=4, metadata={"b": "2"})
    answer = await client.get("replaced")
    assert (answer.data, answer.info.metadata) == (b"data", {"b": "2"})
    assert world.tracer.counts[Count.S3_COPY] == 2


async def test_copy_of_a_version_to_another_bucket(world: World) -> None:
    source, target = await world.bucket(versioning=True), await world.bucket(versioning=True)
    first = await source.put("k", b"one")
    await source.put("k", b"two")
    receipt = await target.copy(
        source.bucket, ObjectId("k", first.version_id), "to/k", size_bytes=3, if_match=first.etag
    )
    answer = await target.get("to/k", version_id=receipt.version_id)
    assert (answer.data, answer.info.version_id) == (b"one", receipt.version_id)
    assert receipt.version_id is not None


async def test_copy_if_match(world: World) -> None:
    if world.kind == "moto":
        pytest.skip("moto ignores CopySourceIfMatch")
    client = await world.bucket()
    await client.put("from", b"data")
    with pytest.raises(PreconditionFailed):
        await client.copy(client.bucket, ObjectId("from"), "to", size_bytes=4, if_match="0" * 32)
    with pytest.raises(ObjectNotFound):
        await client.head("to")


async def test_copy_from_a_missing_bucket(world: World) -> None:
    client = await world.bucket()
    with pytest.raises(BucketNotFound):
        await client.copy(unique_bucket_name(), ObjectId("k"), "to", size_bytes=1)
