"""The conformance suite: listings over several pages, and batches."""

from __future__ import annotations

import pytest

from s3blobfs.s3.limits import DELETE_BATCH_MAX, LIST_PAGE_MAX
from s3blobfs.s3.protocol import ObjectId, ObjectVersionInfo
from s3blobfs.trace import Count
from tests.s3.world import World, fill, listed_keys


@pytest.mark.parametrize("versioning", [False, True])
@pytest.mark.parametrize("after_name", [("/", "0", "z", ""), ("/", "-", ".", "")])
async def test_a_page_ends_anywhere(world: World, after_name: tuple[str, ...], versioning: bool) -> None:
    """In a tree, where servers that keep directories go on from a marker in their own way."""
    if world.kind == "moto":
        pytest.skip("moto keeps no directories, and takes its time")
    client = await world.bucket(versioning=versioning)
    heads = {f"{a}{b}" for a in ("d", "e/f", "ef", "e") for b in after_name}
    keys = sorted({f"{head}{n:02x}{tail}" for head in heads for n in range(45) for tail in ("", "/x")})
    # Where a key is also a directory's name, SeaweedFS can lose one of two that are made at the same moment.
    await fill(client, [key for key in keys if not key.endswith("/x")])
    await fill(client, [key for key in keys if key.endswith("/x")])
    assert len(keys) > LIST_PAGE_MAX
    assert await listed_keys(client) == keys
    assert await listed_keys(client, "e/f") == [key for key in keys if key.startswith("e/f")]
    if world.kind == "weed" and "-" in after_name:
        # It sorts by component what it pages by key: between pages it loses keys with characters below "/".
        return
    assert sorted([version.key async for version in client.list_versions("")]) == keys


async def test_batch_delete_and_a_listing_of_more_than_a_page(world: World) -> None:
    client = await world.bucket()
    keys = [f"n/{number:04d}" for number in range(LIST_PAGE_MAX + 5)]
    await fill(client, keys)
    await client.put("other", b"x")
    world.tracer.counts.clear()
    assert [info.key async for info in client.list_objects("n/")] == keys
    assert world.tracer.counts[Count.S3_LIST] == 2
    assert await client.delete_many([ObjectId(key) for key in keys[:DELETE_BATCH_MAX]]) == []
    assert world.tracer.counts[Count.S3_DELETE_BATCH] == 1
    assert [info.key async for info in client.list_objects("")] == [*keys[DELETE_BATCH_MAX:], "other"]


async def test_listing_of_versions_of_more_than_a_page(world: World) -> None:
    client = await world.bucket(versioning=True)
    keys = [f"n/{number:04d}" for number in range(LIST_PAGE_MAX // 2 + 1)]
    await fill(client, keys)
    await fill(client, keys)
    await client.delete(ObjectId(keys[7]))
    world.tracer.counts.clear()
    versions = [version async for version in client.list_versions("n/")]
    assert world.tracer.counts[Count.S3_LIST] == 2
    by_key: dict[str, list[ObjectVersionInfo]] = {}
    for version in versions:
        by_key.setdefault(version.key, []).append(version)
    assert list(by_key) == keys
    assert {key: len(found) for key, found in by_key.items()} == dict.fromkeys(keys, 2) | {keys[7]: 3}
    assert all(
        [v.is_latest for v in found] == [True] + [False] * (len(found) - 1) for found in by_key.values()
    )
    targets = [ObjectId(v.key, v.version_id) for v in versions]
    assert await client.delete_many(targets[:DELETE_BATCH_MAX]) == []
    assert await client.delete_many(targets[DELETE_BATCH_MAX:]) == []
    assert [version async for version in client.list_versions("")] == []


async def test_listing_facts(world: World) -> None:
    client = await world.bucket()
    receipt = await client.put("k", b"four", metadata={"a": "1"})
    (listed,) = [info async for info in client.list_objects("k")]
    head = await client.head("k")
    assert (listed.size_bytes, listed.etag, listed.version_id, listed.metadata) == (4, receipt.etag, None, {})
    assert listed.last_modified_ns // 10**9 == head.last_modified_ns // 10**9
    assert [info async for info in client.list_objects("absent/")] == []


async def test_batch_too_large(world: World) -> None:
    client = world.factory("unused-bucket")
    with pytest.raises(ValueError, match="1000"):
        await client.delete_many([ObjectId(f"{number}") for number in range(DELETE_BATCH_MAX + 1)])


async def test_empty_batch(world: World) -> None:
    client = world.factory("unused-bucket")
    assert await client.delete_many([]) == []
    assert not world.tracer.counts
