"""A lost description, put together from what else the bucket holds."""

from __future__ import annotations

import hashlib

import pytest

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.keys import collision_name
from s3blobfs.errors import UsageError
from s3blobfs.replica import names
from s3blobfs.replica.segment import Kind, Segment, encode
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.types import ContentDigests, DigestAlgorithm, Durability, Keying, ObjectHint
from s3blobfs.volume.deriving import Derived, Stated, derive, find_volume_id

HINT = ObjectHint(7, b"a/file", 0o100644, 0, 0, 1)
OBJECT_ID = "0123456789abcdef" * 2


async def bucket_of(*, versioning: bool = False) -> ObjectClient:
    client = FakeS3().client("bucket")
    await client.create_bucket()
    if versioning:
        await client.enable_versioning()
    return client


def digests_of(data: bytes) -> ContentDigests:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return ContentDigests(len(data), md5, hashlib.sha256(data).digest(), b"")


async def put(client: ObjectClient, data: bytes, key: str | None = None, prefix: str = "") -> None:
    """As this program does, under the MD5 if no name is given."""
    digests = digests_of(data)
    await client.put(prefix + (key or digests.md5.hex()), data, metadata=metadata.encode("w", HINT, digests))


def default_of(derived: Derived) -> tuple[Keying, DigestAlgorithm]:
    store = derived.descriptor.stores[0]
    assert (store.id, store.name) == (1, "default")
    return store.keying, store.digest_algorithm


@pytest.mark.parametrize(
    ("algorithm", "collides"),
    [(algorithm, collides) for algorithm in DigestAlgorithm for collides in (False, True)],
)
async def test_digest_stores_tell_their_algorithm(algorithm: DigestAlgorithm, collides: bool) -> None:
    client = await bucket_of()
    for data in (b"one", b"two"):
        digests = digests_of(data)
        name = collision_name(digests, algorithm) if collides else digests.key_digest(algorithm)
        await put(client, data, name, "files/")
    derived = await derive(client, "files/", Stated())
    assert default_of(derived) == (Keying.DIGEST, algorithm)
    volume, (store,) = derived.descriptor.settings, derived.descriptor.stores
    assert (volume.bucket, volume.prefix, store.prefix) == ("bucket", "files/", "files/")
    assert derived.conditional_put and store.conditional_put
    assert any("as all 2 objects say" in remark for remark in derived.remarks)
    assert not [info async for info in client.list_objects("files/.s3blobfs/")]


async def test_versioned_stores_are_known_by_names_that_are_no_digests() -> None:
    client = await bucket_of(versioning=True)
    await put(client, b"one", OBJECT_ID)
    assert default_of(await derive(client, "", Stated()))[0] is Keying.VERSIONED


async def test_objects_that_were_begun_early_tell_it_too() -> None:
    client = await bucket_of(versioning=True)
    await client.put(OBJECT_ID, b"one", metadata=metadata.encode_early("w", HINT))
    assert default_of(await derive(client, "", Stated()))[0] is Keying.VERSIONED


async def test_other_stores_are_found_by_their_prefix() -> None:
    client = await bucket_of(versioning=True)
    await put(client, b"one")
    await put(client, b"two", OBJECT_ID, "other/")
    derived = await derive(client, "", Stated())
    assert [(store.id, store.name, store.prefix, store.keying) for store in derived.descriptor.stores] == [
        (1, "default", "", Keying.DIGEST),
        (2, "other", "other/", Keying.VERSIONED),
    ]
    assert any("store 'other'" in remark for remark in derived.remarks)


async def test_other_volumes_below_are_no_stores() -> None:
    client = await bucket_of()
    await put(client, b"one")
    await put(client, b"two", prefix="theirs/")
    await client.put("theirs/.s3blobfs/volume.json", b"{}")
    assert len((await derive(client, "", Stated())).descriptor.stores) == 1


async def test_what_contradicts_itself_has_to_be_stated() -> None:
    client = await bucket_of(versioning=True)
    await put(client, b"one")
    await put(client, b"two", OBJECT_ID)
    with pytest.raises(UsageError, match=r"several kinds: .*; state --mode"):
        await derive(client, "", Stated())
    assert default_of(await derive(client, "", Stated(Keying.VERSIONED)))[0] is Keying.VERSIONED
    with pytest.raises(UsageError, match=r"are not digest \(sha256\)"):
        await derive(client, "", Stated(digest_algorithm=DigestAlgorithm.SHA256))


async def test_a_bucket_of_others_is_no_volume() -> None:
    client = await bucket_of()
    await client.put("d41d8cd98f00b204e9800998ecf8427e", b"somebody's")
    await client.put("README", b"somebody's")
    with pytest.raises(UsageError, match="nor any object that this program wrote"):
        await derive(client, "", Stated())
    stated = Stated(Keying.DIGEST, DigestAlgorithm.SHA256, cached=False, durability=Durability.DISK)
    derived = await derive(client, "", stated)
    assert default_of(derived) == (Keying.DIGEST, DigestAlgorithm.SHA256)
    assert not derived.descriptor.stores[0].cached
    assert derived.descriptor.settings.durability is Durability.DISK
    assert not any("assumed" in remark for remark in derived.remarks)


async def test_versioned_needs_a_bucket_with_versions() -> None:
    client = await bucket_of()
    with pytest.raises(UsageError, match="versioning off"):
        await derive(client, "", Stated(Keying.VERSIONED))


async def test_the_copy_of_the_index_names_the_volume() -> None:
    client = await bucket_of()
    await put(client, b"one")
    assert await find_volume_id(client, "") is None
    segment = Segment(1, Kind.MARK, "5" * 32, "", 0, 0, 1, 1, "host")
    await client.put(names.segment_key("", 1), encode(segment)[0])
    await client.put(names.segment_key("", 2), b"damaged")
    await client.put(names.new_snapshot_key("", 2), b"")
    assert await find_volume_id(client, "") == "5" * 32
    derived = await derive(client, "", Stated())
    assert derived.descriptor.settings.volume_id == "5" * 32
    assert not any("from now on" in remark for remark in derived.remarks)
