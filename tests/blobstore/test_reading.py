"""What both keyings share: reading, probing and deleting."""

from __future__ import annotations

import pytest

from s3blobfs.blobstore.base import DELETE_BATCH_MAX
from s3blobfs.blobstore.keys import digest_location
from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import AccessDenied, DamagedContent, ObjectNotFound, PermanentS3Error, TransientS3Error
from s3blobfs.s3.protocol import DeleteFailure, ObjectId
from s3blobfs.types import BlobContent, BlobLocation, Keying
from tests.blobstore.bench import FOO, FOO_MD5, Bench, content, note


@pytest.fixture(params=["digest", "versioned"])
def store(request: pytest.FixtureRequest, bench: Bench) -> BlobStore:
    return bench.digest_store() if request.param == "digest" else bench.versioned_store()


@pytest.fixture
async def blob(bench: Bench, store: BlobStore) -> BlobContent:
    return await bench.blob(store, FOO, object_id="id1")


# --- reading ------------------------------------------------------------------------------------------


async def test_whole_object_in_one_get(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    bench.requests()
    assert await store.open_source(blob).fetch(0, 3) == FOO
    assert bench.requests() == {"get": 1}


async def test_range(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    source = store.open_source(blob)
    assert await source.fetch(1, 2) == b"oo"
    assert await source.fetch(0, 1) == b"f"


async def test_read_as_in_the_diagram(bench: Bench) -> None:
    store = bench.digest_store()
    blob = await bench.blob(store, FOO)
    bench.draw()
    await store.open_source(blob).fetch(0, 3)
    assert bench.taken_lines() == ["client <- S3: read 3 bytes", note(FOO_MD5)]


async def test_cached_store_reads_into_the_cache(bench: Bench) -> None:
    store = bench.versioned_store()
    blob = await bench.blob(store, FOO, object_id="id1")
    bench.draw()
    await store.open_source(blob).fetch(0, 3)
    assert bench.taken_lines()[-2:] == [
        "Cache <- S3: read 3 bytes",
        note(f"id1 v={blob.location.version_id}"),
    ]


async def test_earlier_version_stays_readable(bench: Bench) -> None:
    store = bench.versioned_store()
    blob = await bench.blob(store, FOO, object_id="id1")
    await bench.put(store, b"newer", object_id="id1")
    assert await store.open_source(blob).fetch(0, 3) == FOO


async def test_altered_object_is_an_error(bench: Bench) -> None:
    store = bench.digest_store()
    blob = await bench.blob(store, FOO)
    await bench.client().put(FOO_MD5, b"bar")
    for length in (3, 2):
        with pytest.raises(DamagedContent, match=FOO_MD5):
            await store.open_source(blob).fetch(0, length)


async def test_whole_object_of_another_length(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    bench.script.on("get").truncates(2)
    with pytest.raises(DamagedContent):
        await store.open_source(blob).fetch(0, 3)


async def test_missing_object(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    assert await store.delete([blob.location]) == []
    bench.draw()
    with pytest.raises(ObjectNotFound):
        await store.open_source(blob).fetch(0, 3)
    version = blob.location.version_id
    subject = FOO_MD5 if version is None else f"id1 v={version}"
    assert bench.taken_lines() == ["client <-- S3: missing", note(subject)]


async def test_exists(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    assert await store.exists(blob.location, 3)
    assert not await store.exists(blob.location, 4)
    await store.delete([blob.location])
    assert not await store.exists(blob.location, 3)


# --- deleting -----------------------------------------------------------------------------------------


async def test_delete_one_version_as_in_the_diagram(bench: Bench) -> None:
    store = bench.versioned_store()
    first = await bench.put(store, FOO, object_id="id1")
    second = await bench.put(store, b"bar", object_id="id1")
    bench.requests()
    bench.draw()
    assert await store.delete([second.location]) == []
    assert bench.taken_lines() == [
        "client -> S3: deleteVersion",
        note(f"id1 v={second.location.version_id}"),
    ]
    assert bench.requests() == {"delete": 1}
    (left,) = bench.bucket().versions["id1"]
    assert (left.info.version_id, left.is_delete_marker) == (first.location.version_id, False)


async def test_delete_of_a_digest(bench: Bench) -> None:
    store = bench.digest_store()
    stored = await bench.put(store, FOO)
    bench.draw()
    assert await store.delete([stored.location]) == []
    assert bench.taken_lines() == ["client -> S3: deleteObject", note(FOO_MD5)]
    assert bench.keys() == set()


async def test_nothing_to_delete(bench: Bench, store: BlobStore) -> None:
    assert await store.delete([]) == []
    assert bench.requests() == {}


async def test_batches(bench: Bench, store: BlobStore) -> None:
    locations = [digest_location("", f"key{number}") for number in range(2 * DELETE_BATCH_MAX + 1)]
    bench.draw()
    assert await store.delete(locations) == []
    assert bench.requests() == {"delete_batch": 3}
    assert bench.lines.count("client -> S3: deleteObject") == len(locations)


async def test_failing_delete_of_one(bench: Bench, store: BlobStore, blob: BlobContent) -> None:
    error = AccessDenied("no")
    bench.script.on("delete").raises(error)
    ((location, failure),) = [(each.location, each.error) for each in await store.delete([blob.location])]
    assert (location, failure) == (blob.location, error)


async def test_failing_batch_does_not_hold_up_the_next(bench: Bench, store: BlobStore) -> None:
    bench.script.on("delete_many", nth=1).raises(TransientS3Error("503"))
    locations = [digest_location("", f"key{number}") for number in range(DELETE_BATCH_MAX + 5)]
    failed = await store.delete(locations)
    assert [each.location for each in failed] == locations[:DELETE_BATCH_MAX]
    assert bench.requests() == {"delete_batch": 1}


async def test_batch_answers_what_it_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.client()
    bench.bucket()

    async def refuse_some(targets: list[ObjectId]) -> list[DeleteFailure]:
        return [
            DeleteFailure(targets[0], "AccessDenied", "locked"),
            DeleteFailure(targets[2], "InternalError", ""),
        ]

    monkeypatch.setattr(client, "delete_many", refuse_some)
    store = open_store(bench.config(Keying.DIGEST), client, bench.tracer)
    locations = [BlobLocation(f"key{number}", None, f"key{number}") for number in range(3)]
    first, second = await store.delete(locations)
    assert (first.location, type(first.error), second.location) == (locations[0], AccessDenied, locations[2])
    assert str(first.error) == "locked (AccessDenied, key key0)"
    assert isinstance(second.error, PermanentS3Error)


def test_store_and_client_of_different_buckets(bench: Bench) -> None:
    with pytest.raises(ValueError, match="is in bucket bucket, not elsewhere"):
        open_store(bench.config(Keying.DIGEST), bench.client("elsewhere"), bench.tracer)


async def test_source_serves_content_of_known_size_only(bench: Bench, store: BlobStore) -> None:
    stored = await bench.put(store, FOO, object_id="id1")
    longer = content(store, b"foo and more", stored)
    with pytest.raises(DamagedContent):
        await store.open_source(longer).fetch(0, 12)
