"""The scripted faults do what they say, to the calls they name, and nothing else."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from s3blobfs.errors import ObjectNotFound, TransientS3Error
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultScript, FaultyObjectClient
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Tracer

LOST = TransientS3Error("lost")


@pytest.fixture
async def client() -> FaultyObjectClient:
    client = FaultyObjectClient(FakeS3().client("bucket"))
    await client.create_bucket()
    return client


async def test_raises_before_applying(client: FaultyObjectClient) -> None:
    fault = client.on("put", nth=2).raises(LOST)
    await client.put("a", b"1")
    with pytest.raises(TransientS3Error, match="lost"):
        await client.put("b", b"2")
    await client.put("c", b"3")
    assert [info.key async for info in client.list_objects("")] == ["a", "c"]
    assert fault.hits == 1


async def test_applies_then_raises(client: FaultyObjectClient) -> None:
    client.on("put", key="id1*").applies_then_raises(LOST)
    with pytest.raises(TransientS3Error):
        await client.put("id1", b"1")
    assert (await client.get("id1")).data == b"1"
    await client.put("other", b"2")


async def test_damaged_answers(client: FaultyObjectClient) -> None:
    await client.put("k", b"0123")
    client.on("get", nth=1).flips_byte(1)
    client.on("get", nth=2).truncates(2)
    assert (await client.get("k")).data == b"0\xce23"
    assert (await client.get("k")).data == b"01"
    assert (await client.get("k")).data == b"0123"


async def test_stall(client: FaultyObjectClient) -> None:
    stall = client.on("put").stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.put, "k", b"1")
        await stall.arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ObjectNotFound):
            await client.get("k")
        stall.release()
    assert (await client.get("k")).data == b"1"


async def test_stall_can_be_cancelled(client: FaultyObjectClient) -> None:
    client.on("put").stalls()
    with trio.move_on_after(0.01) as scope:
        await client.put("k", b"1")
    assert scope.cancelled_caught
    with pytest.raises(ObjectNotFound):
        await client.get("k")


async def test_delay(client: FaultyObjectClient, autojump_clock: trio.testing.MockClock) -> None:
    client.on("head").delays(5.0)
    await client.put("k", b"1")
    started = trio.current_time()
    await client.head("k")
    assert trio.current_time() - started == pytest.approx(5.0)


async def test_batches_and_listings(client: FaultyObjectClient) -> None:
    await client.put("a", b"1")
    await client.put("b", b"1")
    client.on("delete_many", key="b").raises(LOST)
    client.on("list_objects", nth=1).raises(LOST)
    client.on("list_versions").applies_then_raises(LOST)
    assert await client.delete_many([ObjectId("a")]) == []
    with pytest.raises(TransientS3Error):
        await client.delete_many([ObjectId("c"), ObjectId("b")])
    with pytest.raises(TransientS3Error):
        await anext(client.list_objects(""))
    seen = []
    with pytest.raises(TransientS3Error):
        async for version in client.list_versions(""):
            seen.append(version.key)
    assert seen == ["b"]


async def test_one_script_for_several_buckets() -> None:
    script = FaultScript()
    factory = script.wrap(FakeS3().factory(Tracer()))
    one, two = factory("one"), factory("two")
    fault = script.on("create_bucket", key="two").raises(LOST)
    await one.create_bucket()
    with pytest.raises(TransientS3Error):
        await two.create_bucket()
    script.clear()
    await two.create_bucket()
    assert fault.hits == 1
