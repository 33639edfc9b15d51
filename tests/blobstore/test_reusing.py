"""Contents of which S3 copies what a stored one has already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from s3blobfs.blobstore.protocol import BlobStore, Kept
from s3blobfs.config import MIB
from s3blobfs.errors import OutcomeUnknown, TransientS3Error
from tests.blobstore.bench import Bench

OLD = b"0123456789abcdef" * (2 * MIB) + b"!"
"""A little more than 32 MiB."""
NEW = OLD + b"tail"


async def kept(bench: Bench, store: BlobStore) -> Kept:
    blob = await bench.blob(store, OLD, object_id="id1")
    bench.requests()
    bench.server.received_bytes = 0
    return Kept(store.config.bucket, blob, [(0, len(OLD))])


@pytest.fixture(params=["versioned", "digest"])
def store(request: pytest.FixtureRequest, bench: Bench) -> BlobStore:
    return bench.versioned_store() if request.param == "versioned" else bench.digest_store()


async def test_the_tail_is_all_that_is_sent(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    stored = await bench.put(store, NEW, object_id="id1", kept=source)
    location = stored.location
    assert bench.object(location.object_key, version_id=location.version_id).data == NEW
    assert bench.server.received_bytes < 1000
    assert location != source.blob.location
    bench.requests()
    await bench.put(store, NEW + b"more", object_id="id1", write_id="w2", kept=source)
    asked = bench.requests()
    assert (asked.pop("copy"), asked.pop("part")) == (2, 1)
    assert asked in ({}, {"head": 1})


async def test_nothing_is_left_of_the_probe(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    await bench.put(store, NEW, object_id="id1", kept=source)
    assert not [key for key in bench.server.buckets["bucket"].versions if ".s3blobfs" in key]


async def test_it_is_found_by_its_write_id(bench: Bench) -> None:
    store = bench.versioned_store()
    source = await kept(bench, store)
    bench.script.on("put", key="id1", nth=1).applies_then_raises(OutcomeUnknown("reset"))
    stored = await bench.put(store, NEW, object_id="id1", kept=source)
    assert stored.existed
    assert len(bench.server.buckets["bucket"].versions["id1"]) == 2


async def test_little_is_sent(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    little = replace(source, ranges=[(0, 31 * MIB)])
    await bench.put(store, NEW, object_id="id1", kept=little)
    assert "copy" not in bench.requests()
    assert bench.server.received_bytes == len(NEW)


@pytest.mark.parametrize(
    "copied",
    [
        None,
        lambda data, start, end: data,
        lambda data, start, end: data[start : end + 1],
        lambda data, start, end: b"the newer version\n"[start:end],
    ],
    ids=["not at all", "without the range", "with one byte more", "of another version"],
)
async def test_a_server_that_does_it_otherwise_is_not_asked_again(
    bench: Bench, store: BlobStore, copied: Callable[[bytes, int, int], bytes] | None
) -> None:
    source = await kept(bench, store)
    bench.server.copied_part = copied
    for tail in (b"a", b"b"):
        stored = await bench.put(store, OLD + tail, object_id="id1", write_id=f"w{tail.hex()}", kept=source)
        found = bench.object(stored.location.object_key, version_id=stored.location.version_id)
        assert found.data == OLD + tail
    assert bench.requests()["copy"] <= 2


async def test_a_server_that_ignores_the_condition(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    bench.server.conditional_copies = False
    await bench.put(store, NEW, object_id="id1", kept=source)
    assert bench.server.received_bytes >= len(NEW)


async def test_a_probe_without_an_answer_is_repeated(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    bench.script.on("copy_range", nth=1).raises(TransientS3Error("503"))
    with pytest.raises(TransientS3Error):
        await bench.put(store, NEW, object_id="id1", kept=source)
    bench.server.received_bytes = 0
    await bench.put(store, NEW, object_id="id1", kept=source)
    assert bench.server.received_bytes < 1000


@pytest.mark.expected_log("sent whole, for S3 does not copy")
async def test_a_source_that_is_gone(bench: Bench, store: BlobStore) -> None:
    source = await kept(bench, store)
    await store.delete([source.blob.location])
    stored = await bench.put(store, NEW, object_id="id1", kept=source)
    found = bench.object(stored.location.object_key, version_id=stored.location.version_id)
    assert found.data == NEW
