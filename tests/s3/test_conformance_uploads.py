"""The conformance suite: multipart uploads that nobody finished."""

from __future__ import annotations

import time

import trio

from tests.s3.world import World

HOUR_NS = 3600 * 10**9


async def test_unfinished_uploads_are_listed_and_aborted(world: World) -> None:
    client = await world.bucket()
    started_ns = time.time_ns()
    keys = ["a/1", "a/2", "a/2", "b"]
    ids = [await trio.to_thread.run_sync(world.begin_upload, client.bucket, key) for key in keys]
    found = [upload async for upload in client.list_uploads("a/")]
    assert (
        sorted((upload.key, upload.upload_id) for upload in found) == sorted(zip(keys, ids, strict=True))[:3]
    )
    if world.kind == "weed":  # moto always tells the same moment, the fake counts changes
        assert all(abs(upload.initiated_ns - started_ns) < 24 * HOUR_NS for upload in found)

    await client.abort_upload("a/2", ids[1])
    left = [upload.upload_id async for upload in client.list_uploads("")]
    assert sorted(left) == sorted([ids[0], ids[2], ids[3]])
    assert [info async for info in client.list_objects("")] == []


async def test_an_upload_that_is_gone_is_aborted_all_the_same(world: World) -> None:
    client = await world.bucket()
    upload_id = await trio.to_thread.run_sync(world.begin_upload, client.bucket, "k")
    await client.abort_upload("k", upload_id)
    await client.abort_upload("k", upload_id)
    assert [upload async for upload in client.list_uploads("")] == []


async def test_finished_uploads_are_not_listed(world: World) -> None:
    client = await world.bucket()
    await client.put("k", bytes(7 * 1024 * 1024))
    assert [upload async for upload in client.list_uploads("")] == []
