"""The volume's description in the bucket, and what a mount makes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from s3blobfs.config import VolumeSettings
from s3blobfs.errors import VolumeMismatch
from s3blobfs.s3.fake import FakeObjectClient, FakeS3
from s3blobfs.types import DigestAlgorithm, Durability, Keying, StoreConfig
from s3blobfs.volume.descriptor import (
    VolumeDescriptor,
    check_vacant,
    compare,
    find_descriptor,
    get_descriptor,
    object_key,
    put_new_descriptor,
    replace_descriptor,
)

STORE = StoreConfig(
    id=1,
    name="default",
    bucket="bucket",
    prefix="p/",
    keying=Keying.DIGEST,
    digest_algorithm=DigestAlgorithm.MD5,
    cached=True,
    conditional_put=True,
)
OTHER_STORE = replace(STORE, id=2, name="other", prefix="p/other/", keying=Keying.VERSIONED)
DESCRIPTOR = VolumeDescriptor(
    VolumeSettings("0" * 32, "bucket", "p/", Durability.S3, created_ns=1_700_000_000 * 10**9), (STORE,)
)


@pytest.fixture
async def client() -> FakeObjectClient:
    client = FakeS3().client("bucket")
    await client.create_bucket()
    return client


async def test_comes_back_as_it_went(client: FakeObjectClient) -> None:
    assert await find_descriptor(client, "p/") is None
    await put_new_descriptor(client, DESCRIPTOR, conditional_put=True)
    assert await get_descriptor(client, "p/") == DESCRIPTOR
    both = replace(DESCRIPTOR, stores=(STORE, OTHER_STORE))
    await replace_descriptor(client, both)
    assert await get_descriptor(client, "p/") == both


async def test_prefix_is_claimed_once(client: FakeObjectClient) -> None:
    await check_vacant(client, "p/")
    await put_new_descriptor(client, DESCRIPTOR, conditional_put=True)
    settings = replace(DESCRIPTOR.settings, volume_id="1" * 32)
    with pytest.raises(
        VolumeMismatch, match=f"already holds volume {'0' * 32} .created 2023-11-14 22:13 UTC"
    ):
        await put_new_descriptor(client, replace(DESCRIPTOR, settings=settings), conditional_put=True)
    with pytest.raises(VolumeMismatch, match="s3blobfs mount s3://bucket/p/"):
        await check_vacant(client, "p/")
    await check_vacant(client, "")


async def test_no_volume(client: FakeObjectClient) -> None:
    with pytest.raises(VolumeMismatch, match=r"there is no volume at s3://bucket/p/.*s3blobfs mkfs"):
        await get_descriptor(client, "p/")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"format": 1}', b"null", json.dumps({"format": 1, "stores": 3}).encode()],
)
async def test_something_else_at_its_place(client: FakeObjectClient, data: bytes) -> None:
    await client.put(object_key("p/"), data)
    with pytest.raises(VolumeMismatch, match=r"s3://bucket/p/\.s3blobfs/volume\.json is not the description"):
        await find_descriptor(client, "p/")


async def test_newer_format(client: FakeObjectClient) -> None:
    await client.put(object_key("p/"), b'{"format": 2}')
    with pytest.raises(VolumeMismatch, match="install the newer program"):
        await find_descriptor(client, "p/")


def test_same_volume() -> None:
    assert compare(DESCRIPTOR, DESCRIPTOR)


def test_store_that_the_bucket_does_not_know_yet() -> None:
    assert not compare(DESCRIPTOR, replace(DESCRIPTOR, stores=(STORE, OTHER_STORE)))


def test_store_that_the_index_does_not_know() -> None:
    with pytest.raises(VolumeMismatch, match="the index is an older copy"):
        compare(replace(DESCRIPTOR, stores=(STORE, OTHER_STORE)), DESCRIPTOR)


def test_other_volume() -> None:
    other = replace(DESCRIPTOR, settings=replace(DESCRIPTOR.settings, volume_id="2" * 32))
    with pytest.raises(
        VolumeMismatch, match=f"holds volume {'2' * 32}.*but the index is of volume {'0' * 32}"
    ):
        compare(other, DESCRIPTOR)


def test_volume_that_was_moved() -> None:
    moved = replace(DESCRIPTOR, settings=replace(DESCRIPTOR.settings, prefix="q/"))
    with pytest.raises(VolumeMismatch, match="mount s3://bucket/p/"):
        compare(moved, DESCRIPTOR)
