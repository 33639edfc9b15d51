"""One suite for every object client: the fake must do what servers do, and so must what wraps it.

Here: PUT, GET, HEAD, ranges, conditions. Versions, copies and listings are in the modules beside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3blobfs.config import KIB
from s3blobfs.errors import (
    DamagedContent,
    ObjectAlreadyExists,
    ObjectNotFound,
    PreconditionFailed,
)
from s3blobfs.s3.protocol import ObjectData, ObjectId, TakeAnswer, WholeObject
from s3blobfs.trace import Count
from tests.s3.world import PART_BYTES, THRESHOLD_BYTES, World, listed_keys, pattern

# --- put, get, head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 1, 255 * KIB, PART_BYTES, THRESHOLD_BYTES - 1])
async def test_single_put(
    world: World, body_file: Callable[[bytes], Path], size_bytes: int, as_file: bool
) -> None:
    client = await world.bucket()
    data = pattern(size_bytes)
    receipt = await client.put("a/b", body_file(data) if as_file else data)
    assert receipt.etag == hashlib.md5(data).hexdigest()
    assert receipt.version_id is None
    answer = await client.get("a/b")
    assert answer.data == data
    assert (answer.info.key, answer.info.size_bytes, answer.info.etag) == ("a/b", size_bytes, receipt.etag)
    assert answer.info.version_id is None
    assert world.tracer.counts[Count.S3_PUT] == 1
    assert world.tracer.counts[Count.S3_PART] == 0


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("size_bytes", [THRESHOLD_BYTES, 2 * PART_BYTES, 2 * PART_BYTES + 1])
async def test_multipart_put(
    world: World, body_file: Callable[[bytes], Path], size_bytes: int, as_file: bool
) -> None:
    client = await world.bucket(versioning=True)
    data = pattern(size_bytes)
    receipt = await client.put(
        "big", body_file(data) if as_file else data, metadata={"s3b-path": "x y", "n": "1"}
    )
    parts = -(-size_bytes // PART_BYTES)
    assert receipt.etag.endswith(f"-{parts}")
    assert receipt.version_id is not None
    info = await client.head("big", version_id=receipt.version_id)
    assert (info.size_bytes, info.etag, info.version_id) == (size_bytes, receipt.etag, receipt.version_id)
    assert info.metadata == {"s3b-path": "x y", "n": "1"}
    answer = await client.get("big")
    assert hashlib.sha256(answer.data).digest() == hashlib.sha256(data).digest()
    edge = await client.get("big", offset=PART_BYTES - 3, length=7, if_match=receipt.etag)
    assert edge.data == data[PART_BYTES - 3 : PART_BYTES + 4]
    assert world.tracer.counts[Count.S3_PART] == parts
    assert world.tracer.counts[Count.S3_PUT] == 0


async def test_objects_one_after_the_other(world: World) -> None:
    """Each answer before the next is asked for; what is missing or altered ends nothing."""
    client = await world.bucket(versioning=True)
    receipts = {key: await client.put(key, key.encode()) for key in ("a", "b", "c")}
    newer = await client.put("b", b"newer")
    wanted = [
        WholeObject("a", receipts["a"].version_id, receipts["a"].etag),
        WholeObject("missing", None, "etag"),
        WholeObject("b", receipts["b"].version_id, receipts["b"].etag),
        WholeObject("b", None, receipts["b"].etag),
        WholeObject("c", None, receipts["c"].etag),
    ]
    assert newer.etag != receipts["b"].etag
    found: list[bytes | type] = []

    def requests() -> Iterator[tuple[WholeObject, TakeAnswer]]:
        for number, target in enumerate(wanted):
            assert len(found) == number
            yield (
                target,
                lambda answer: found.append(answer.data if isinstance(answer, ObjectData) else type(answer)),
            )

    before = world.tracer.counts[Count.S3_GET]
    await client.get_each(requests())
    assert found == [b"a", ObjectNotFound, b"b", PreconditionFailed, b"c"]
    assert world.tracer.counts[Count.S3_GET] - before == len(wanted)


async def test_put_replaces(world: World) -> None:
    client = await world.bucket()
    await client.put("k", b"first", metadata={"a": "1"})
    await client.put("k", b"second")
    answer = await client.get("k")
    assert answer.data == b"second"
    assert answer.info.metadata == {}


@pytest.mark.parametrize("size_bytes", [3, THRESHOLD_BYTES])
async def test_conditional_put(world: World, size_bytes: int) -> None:
    client = await world.bucket()
    data = pattern(size_bytes)
    receipt = await client.put("k", data, if_none_match=True)
    with pytest.raises(ObjectAlreadyExists) as caught:
        await client.put("k", data[::-1], if_none_match=True)
    assert caught.value.key == "k"
    assert (await client.head("k")).etag == receipt.etag


async def test_conditional_put_over_a_delete_marker(world: World) -> None:
    client = await world.bucket(versioning=True)
    await client.put("k", b"1", if_none_match=True)
    await client.delete(ObjectId("k"))
    await client.put("k", b"2", if_none_match=True)
    assert (await client.get("k")).data == b"2"


async def test_metadata_round_trip(world: World) -> None:
    client = await world.bucket()
    metadata = {"s3blobfs-path": "dir/na%20me", "mode": "33188", "sha256": "ab" * 32, "empty-ish": "-"}
    await client.put("k", b"x", metadata=metadata)
    assert (await client.head("k")).metadata == metadata
    assert (await client.get("k")).info.metadata == metadata


async def test_keys_that_need_quoting(world: World) -> None:
    client = await world.bucket(versioning=True)
    keys = ["sp ace", "per%20cent", "plus+", "ünï/ሴ", "*~#?[]&=;:@$,'\"<>"]
    for key in keys:
        receipt = await client.put(key, key.encode())
        assert (await client.get(key, version_id=receipt.version_id)).data == key.encode()
        copy = await client.copy(
            client.bucket, ObjectId(key, receipt.version_id), f"copy/{key}", size_bytes=1
        )
        assert (await client.get(f"copy/{key}", version_id=copy.version_id)).data == key.encode()
    assert await listed_keys(client) == sorted(keys + [f"copy/{key}" for key in keys])
    assert await client.delete_many([ObjectId(key) for key in keys]) == []
    assert await listed_keys(client) == sorted(f"copy/{key}" for key in keys)


@pytest.mark.parametrize(
    "key", ["", "a" * 1025, "/a", "a/", "a//b", "a/../b", ".", "a\\b", "a\nb", "\x7f", "\ud800"]
)
async def test_keys_refused(world: World, key: str) -> None:
    client = world.factory("unused-bucket")
    for call in (
        lambda: client.put(key, b""),
        lambda: client.get(key),
        lambda: client.head(key),
        lambda: client.copy("unused-bucket", ObjectId("a"), key, size_bytes=1),
        lambda: client.copy("unused-bucket", ObjectId(key), "a", size_bytes=1),
        lambda: client.delete(ObjectId(key)),
        lambda: client.delete_many([ObjectId(key)]),
    ):
        with pytest.raises(ValueError, match="object key"):
            await call()


@pytest.mark.parametrize(
    "metadata", [{"A": "1"}, {"": "1"}, {"a": "ü"}, {"a": " x"}, {"a": "x\n"}, {"a": "x" * 2048}]
)
async def test_metadata_refused(world: World, metadata: dict[str, str]) -> None:
    client = world.factory("unused-bucket")
    with pytest.raises(ValueError, match="metadata"):
        await client.put("k", b"", metadata=metadata)
    with pytest.raises(ValueError, match="metadata"):
        await client.copy("unused-bucket", ObjectId("a"), "b", size_bytes=1, metadata=metadata)


async def test_missing_file(world: World, tmp_path: Path) -> None:
    client = world.factory("unused-bucket")
    with pytest.raises(FileNotFoundError):
        await client.put("k", tmp_path / "absent")


# --- ranges and conditions ----------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 10), (3, 4), (9, 1), (0, None), (4, None)])
async def test_ranges(world: World, offset: int, length: int | None) -> None:
    client = await world.bucket()
    await client.put("k", b"0123456789", metadata={"a": "1"})
    answer = await client.get("k", offset=offset, length=length)
    assert answer.data == b"0123456789"[offset : None if length is None else offset + length]
    assert answer.info.size_bytes == 10
    assert answer.info.metadata == {"a": "1"}


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (10, 1), (100, 1), (10, None), (11, None)])
async def test_range_beyond_the_end(world: World, offset: int, length: int | None) -> None:
    client = await world.bucket()
    await client.put("k", b"0123456789")
    with pytest.raises(DamagedContent, match="k"):
        await client.get("k", offset=offset, length=length)


async def test_range_of_an_empty_object(world: World) -> None:
    client = await world.bucket()
    await client.put("k", b"")
    assert (await client.get("k")).data == b""
    with pytest.raises(DamagedContent):
        await client.get("k", length=1)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, 0), (0, -1)])
async def test_range_refused(world: World, offset: int, length: int | None) -> None:
    client = world.factory("unused-bucket")
    with pytest.raises(ValueError, match="range"):
        await client.get("k", offset=offset, length=length)


async def test_if_match(world: World) -> None:
    client = await world.bucket()
    receipt = await client.put("k", b"one")
    assert (await client.get("k", length=2, if_match=receipt.etag)).data == b"on"
    await client.put("k", b"two")
    with pytest.raises(PreconditionFailed) as caught:
        await client.get("k", length=2, if_match=receipt.etag)
    assert caught.value.status == 412
