"""The conformance suite: objects that are sent while their content grows, and tags of versions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from s3blobfs.config import GIB, KIB, MIB, TIB
from s3blobfs.errors import DamagedContent, EarlyPartsUseless, ObjectNotFound, PermanentS3Error
from s3blobfs.s3.begun import BegunUpload
from s3blobfs.s3.limits import COPY_MAX_BYTES, PARTS_MAX
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.tier.digest import content_digests
from s3blobfs.trace import Count
from tests.s3.world import PART_BYTES, World, pattern

WHOLE = pattern(3 * PART_BYTES + 300 * KIB + 7)


def checksums_of(data: bytes) -> bytes:
    return content_digests(data).checksums


async def send(client: ObjectClient, upload: BegunUpload, path: Path, sent: bytes) -> None:
    """The next part, of a content that begins with ``sent`` (whole blocks)."""
    checksums = checksums_of(sent)
    await client.send_part(upload, upload.add(checksums), path, checksums=checksums)


async def left_over(client: ObjectClient) -> list[str]:
    return [upload.key async for upload in client.list_uploads("")]


async def test_what_grows_is_sent_in_parts_and_becomes_one_object(world: World, tmp_path: Path) -> None:
    client = await world.bucket(versioning=True)
    path = tmp_path / "growing"
    upload = await client.begin_upload("k", metadata={"write-id": "1"})
    for number in (1, 2):
        path.write_bytes(WHOLE[: number * PART_BYTES + 12345])  # it is ahead of what is sent
        await send(client, upload, path, WHOLE[: number * PART_BYTES])
    assert upload.end == 2 * PART_BYTES
    assert await left_over(client) == ["k"]
    assert [info async for info in client.list_objects("")] == []
    path.write_bytes(WHOLE)
    receipt = await client.finish_upload(upload, path, checksums=checksums_of(WHOLE))
    assert receipt.version_id is not None
    answer = await client.get("k", version_id=receipt.version_id)
    assert answer.data == WHOLE
    assert answer.info.etag == receipt.etag
    assert answer.info.metadata == {"write-id": "1"}
    assert await left_over(client) == []
    assert world.tracer.counts[Count.S3_PART] == 4


async def test_nothing_is_left_to_send(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "whole"
    whole = WHOLE[: 2 * PART_BYTES]
    path.write_bytes(whole)
    upload = await client.begin_upload("k")
    await send(client, upload, path, whole)
    await send(client, upload, path, whole)
    await client.finish_upload(upload, path, checksums=checksums_of(whole))
    assert (await client.get("k")).data == whole
    assert world.tracer.counts[Count.S3_PART] == 2


async def test_bytes_that_are_not_what_was_hashed_are_not_sent(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "changed"
    path.write_bytes(WHOLE[: PART_BYTES - 1] + b"?" + WHOLE[PART_BYTES:])
    upload = await client.begin_upload("k")
    with pytest.raises(DamagedContent):
        await send(client, upload, path, WHOLE[:PART_BYTES])
    with pytest.raises(DamagedContent):
        await upload.parts[0].etag()
    await client.abort_upload("k", upload.upload_id)
    assert await left_over(client) == []


async def test_a_content_that_is_another_in_the_end(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "rewritten"
    path.write_bytes(WHOLE)
    upload = await client.begin_upload("k")
    await send(client, upload, path, WHOLE[:PART_BYTES])
    another = b"?" + WHOLE[1:]
    path.write_bytes(another)
    with pytest.raises(EarlyPartsUseless, match="changed"):
        await client.finish_upload(upload, path, checksums=checksums_of(another))
    assert [info async for info in client.list_objects("")] == []
    assert await left_over(client) == []


async def test_a_content_that_was_cut(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "cut"
    path.write_bytes(WHOLE)
    upload = await client.begin_upload("k")
    await send(client, upload, path, WHOLE[:PART_BYTES])
    path.write_bytes(WHOLE[: PART_BYTES - 1])
    with pytest.raises(EarlyPartsUseless, match="changed"):
        await client.finish_upload(upload, path, checksums=checksums_of(WHOLE[: PART_BYTES - 1]))
    assert await left_over(client) == []


async def test_what_was_sent_is_thrown_away_meanwhile(world: World, tmp_path: Path) -> None:
    if world.kind == "moto":
        pytest.skip("moto fails by itself when a part of an unknown upload comes")
    client = await world.bucket()
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    upload = await client.begin_upload("k")
    await send(client, upload, path, WHOLE[:PART_BYTES])
    await client.abort_upload("k", upload.upload_id)
    with pytest.raises(PermanentS3Error):
        await send(client, upload, path, WHOLE[: 2 * PART_BYTES])
    del upload.parts[1:]
    with pytest.raises(EarlyPartsUseless):
        await client.finish_upload(upload, path, checksums=checksums_of(WHOLE))
    assert [info async for info in client.list_objects("")] == []


async def test_a_part_that_did_not_arrive(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    upload = await client.begin_upload("k")
    upload.add(checksums_of(WHOLE)).failed(DamagedContent("not these bytes"))
    with pytest.raises(EarlyPartsUseless, match="not these bytes"):
        await client.finish_upload(upload, path, checksums=checksums_of(WHOLE))
    assert await left_over(client) == []


async def test_the_end_waits_for_parts_on_their_way(world: World, tmp_path: Path) -> None:
    client = await world.bucket()
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    upload = await client.begin_upload("k")
    checksums = checksums_of(WHOLE[: 2 * PART_BYTES])
    parts = [upload.add(checksums), upload.add(checksums)]

    async def finish() -> None:
        await client.finish_upload(upload, path, checksums=checksums_of(WHOLE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        for part in reversed(parts):
            await client.send_part(upload, part, path, checksums=checksums)
    assert (await client.get("k")).data == WHOLE


def test_no_more_parts_than_s3_takes() -> None:
    for part_bytes in (PART_BYTES, 16 * MIB, GIB):
        upload = BegunUpload("k", "u", part_bytes)
        while (part := upload.next_part()).end < 5 * TIB:
            assert part_bytes <= part.length <= COPY_MAX_BYTES
            assert part.length % (256 * KIB) == 0
            upload.add(b"")
        assert len(upload.parts) + len(upload.rest(5 * TIB)) <= PARTS_MAX
        assert upload.rest(upload.end) == []


def test_the_rest_of_a_content_that_came_late() -> None:
    upload = BegunUpload("k", "u", PART_BYTES)
    upload.add(b"")
    rest = upload.rest(5 * TIB)
    assert len(rest) < PARTS_MAX
    assert (rest[0].offset, rest[-1].end) == (PART_BYTES, 5 * TIB)
    assert all(part.end == after.offset for part, after in pairwise(rest))


VALUE = "size=134217728 md5=" + "a" * 32 + " sha256=" + "b" * 64 + " mtime=-1ns mode=0100644 uid=0 gid=0"


async def test_tags_are_of_one_version(world: World, tmp_path: Path) -> None:
    client = await world.bucket(versioning=True)
    first = await client.put("k", b"first", metadata={"a": "b"})
    second = await client.put("k", b"second")
    one, two = ObjectId("k", first.version_id), ObjectId("k", second.version_id)
    assert await client.get_tags(one) == {}
    await client.put_tags(one, {"s3blobfs": VALUE})
    assert await client.get_tags(one) == {"s3blobfs": VALUE}
    assert await client.get_tags(two) == await client.get_tags(ObjectId("k")) == {}
    info = await client.head("k", version_id=first.version_id)
    assert (info.etag, info.metadata) == (first.etag, {"a": "b"})
    assert (await client.get("k", version_id=first.version_id)).data == b"first"
    assert len([version async for version in client.list_versions("k")]) == 2

    await client.put_tags(ObjectId("k"), {"new": "2", "and another": "x+y=@/:._-"})
    assert await client.get_tags(two) == {"new": "2", "and another": "x+y=@/:._-"}
    await client.put_tags(one, {"only": "this"})
    assert await client.get_tags(one) == {"only": "this"}
    assert world.tracer.counts[Count.S3_TAG] == 9


async def test_tags_of_an_object_in_parts(world: World, tmp_path: Path) -> None:
    client = await world.bucket(versioning=True)
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    receipt = await client.put("k", path)
    target = ObjectId("k", receipt.version_id)
    await client.put_tags(target, {"s3blobfs": VALUE})
    assert await client.get_tags(target) == {"s3blobfs": VALUE}
    assert (await client.head("k", version_id=receipt.version_id)).etag == receipt.etag


async def test_no_tags_of_what_is_not_there(world: World) -> None:
    client = await world.bucket(versioning=True)
    await client.put("k", b"x")
    missing: list[Callable[[], ObjectId]] = [
        lambda: ObjectId("none"),
        lambda: ObjectId("k", "0" * 32),
    ]
    for target in missing:
        with pytest.raises(ObjectNotFound):
            await client.get_tags(target())
        with pytest.raises(ObjectNotFound):
            await client.put_tags(target(), {"a": "b"})


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"": "x"},
        {"a" * 129: "x"},
        {"a": "b" * 257},
        {"a": "%"},
        {"é": "x"},
        dict.fromkeys("abcdefghijk", "x"),
    ],
)
async def test_tags_that_not_every_server_takes_are_refused(world: World, tags: dict[str, str]) -> None:
    client = await world.bucket()
    with pytest.raises(ValueError, match="tag"):
        await client.put_tags(ObjectId("k"), tags)
