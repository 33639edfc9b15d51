"""What the fake has beyond the protocol: determinism, a clock, small pages, content to look into."""

from __future__ import annotations

import pytest

from s3blobfs.config import S3Options
from s3blobfs.errors import BucketNotFound, PermanentS3Error
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Count, Tracer


async def story(server: FakeS3) -> list[object]:
    client = server.client("bucket")
    await client.create_bucket()
    await client.enable_versioning()
    for data in (b"1", b"2"):
        await client.put("k", data)
    await client.delete(ObjectId("k"))
    return [version async for version in client.list_versions("")]


async def test_the_same_story_has_the_same_versions_and_times() -> None:
    assert await story(FakeS3()) == await story(FakeS3())


async def test_clock() -> None:
    client = FakeS3(clock_ns=lambda: 5_999_999_999).client("bucket")
    await client.create_bucket()
    await client.put("k", b"")
    assert (await client.head("k")).last_modified_ns == 5_000_000_000


async def test_small_pages_and_changes_between_them() -> None:
    tracer = Tracer()
    client = FakeS3(page_size=2).client("bucket", tracer)
    await client.create_bucket()
    for key in "abcde":
        await client.put(key, b"")
    seen = []
    async for info in client.list_objects(""):
        seen.append(info.key)
        if info.key == "b":
            await client.delete(ObjectId("c"))
    assert seen == list("abde")
    assert tracer.counts[Count.S3_LIST] == 2


async def test_content_can_be_looked_into() -> None:
    server = FakeS3(S3Options(multipart_threshold_bytes=10))
    client = server.client("bucket")
    with pytest.raises(BucketNotFound):
        server.bucket("bucket")
    await client.create_bucket()
    receipt = await client.put("k", bytes(10))
    assert receipt.etag.endswith("-1")
    found = server.bucket("bucket").find("k")
    assert found is not None and found.data == bytes(10)


async def test_a_copy_to_itself_must_change_something() -> None:
    client = FakeS3().client("bucket")
    await client.create_bucket()
    await client.put("k", b"1")
    with pytest.raises(PermanentS3Error, match="itself"):
        await client.copy("bucket", ObjectId("k"), "k", size_bytes=1)
    await client.copy("bucket", ObjectId("k"), "k", size_bytes=1, metadata={"a": "1"})
