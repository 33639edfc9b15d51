"""The conformance suite: objects of which S3 copies what it has already (UploadPartCopy)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from s3blobfs.config import MIB
from s3blobfs.errors import ObjectAlreadyExists, ObjectNotFound, PreconditionFailed
from s3blobfs.s3.protocol import ObjectClient, ObjectId, Reuse
from s3blobfs.trace import Count
from tests.s3.world import World, pattern

SIZE = 40 * MIB
TAIL = b"appended"


async def stored(client: ObjectClient) -> tuple[bytes, Reuse]:
    """An object that another version, or another key, has come after."""
    data = pattern(SIZE)
    receipt = await client.put("k", data, metadata={"a": "1"})
    if receipt.version_id is not None:
        await client.put("k", b"newer")
    return data, Reuse(client.bucket, ObjectId("k", receipt.version_id), receipt.etag, [(0, SIZE)])


@pytest.mark.parametrize("versioning", [True, False])
async def test_what_is_appended_is_all_that_is_sent(world: World, versioning: bool) -> None:
    client = await world.bucket(versioning=versioning)
    data, reuse = await stored(client)
    world.tracer.counts.clear()
    receipt = await client.put("k2", data + TAIL, metadata={"b": "2"}, reuse=reuse)
    assert (world.tracer.counts[Count.S3_COPY], world.tracer.counts[Count.S3_PART]) == (2, 1)
    answer = await client.get("k2", version_id=receipt.version_id)
    assert answer.data == data + TAIL
    assert answer.info.metadata == {"b": "2"}
    assert answer.info.etag == receipt.etag


async def test_a_new_version_of_the_same_key(world: World) -> None:
    client = await world.bucket(versioning=True)
    data, reuse = await stored(client)
    receipt = await client.put("k", data + TAIL, reuse=reuse)
    assert receipt.version_id not in (None, reuse.source.version_id)
    assert (await client.get("k")).data == data + TAIL
    assert (await client.get("k", version_id=reuse.source.version_id)).data == data


async def test_a_change_in_the_middle(world: World) -> None:
    client = await world.bucket(versioning=True)
    data, reuse = await stored(client)
    at = 18 * MIB + 3
    changed = data[:at] + TAIL + data[at + len(TAIL) :]
    ranges = [(0, at), (at + len(TAIL), SIZE)]
    world.tracer.counts.clear()
    await client.put("k", changed, reuse=replace(reuse, ranges=ranges))
    assert (world.tracer.counts[Count.S3_COPY], world.tracer.counts[Count.S3_PART]) == (2, 1)
    assert (await client.get("k")).data == changed


async def test_a_condition_holds_for_it_too(world: World) -> None:
    if world.kind == "moto":
        pytest.skip("moto knows no If-None-Match of CompleteMultipartUpload")
    client = await world.bucket()
    data, reuse = await stored(client)
    with pytest.raises(ObjectAlreadyExists):
        await client.put("k", data + TAIL, if_none_match=True, reuse=reuse)
    assert (await client.get("k")).data == data


@pytest.mark.expected_log("k2 is sent whole|sent whole")
async def test_what_is_not_there_any_more_is_sent(world: World) -> None:
    client = await world.bucket(versioning=True)
    data, reuse = await stored(client)
    await client.delete(reuse.source)
    world.tracer.counts.clear()
    await client.put("k2", data + TAIL, reuse=reuse)
    assert world.tracer.counts[Count.S3_PART] >= 9  # the tail perhaps twice
    assert (await client.get("k2")).data == data + TAIL
    assert [upload async for upload in client.list_uploads("")] == []


@pytest.mark.expected_log("k2 is sent whole|sent whole")
async def test_what_is_not_what_it_was_is_sent(world: World) -> None:
    if world.kind == "moto":
        pytest.skip("moto knows no x-amz-copy-source-if-match")
    client = await world.bucket(versioning=True)
    data, reuse = await stored(client)
    await client.put("k2", data + TAIL, reuse=replace(reuse, etag="0" * 32))
    assert (await client.get("k2")).data == data + TAIL


async def test_a_range_becomes_an_object(world: World) -> None:
    client = await world.bucket(versioning=True)
    first = await client.put("k", b"0123456789")
    await client.put("k", b"newer")
    source = ObjectId("k", first.version_id)
    receipt = await client.copy_range(client.bucket, source, "k", offset=3, length=4, if_match=first.etag)
    assert (await client.get("k", version_id=receipt.version_id)).data == b"3456"


async def test_a_range_of_what_is_not_there(world: World) -> None:
    client = await world.bucket(versioning=True)
    with pytest.raises(ObjectNotFound):
        await client.copy_range(client.bucket, ObjectId("k"), "k", offset=0, length=4, if_match="0" * 32)


async def test_a_range_of_another_content(world: World) -> None:
    if world.kind == "moto":
        pytest.skip("moto knows no x-amz-copy-source-if-match")
    client = await world.bucket(versioning=True)
    await client.put("k", b"0123456789")
    with pytest.raises(PreconditionFailed):
        await client.copy_range(client.bucket, ObjectId("k"), "k", offset=0, length=4, if_match="0" * 32)
