"""``versioned`` keying: one key per file, one version per change."""

from __future__ import annotations

import pytest

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.protocol import Left
from s3blobfs.blobstore.versioned import FIND_WRITE_DEPTH
from s3blobfs.errors import (
    AccessDenied,
    DamagedContent,
    ObjectNotFound,
    OutcomeUnknown,
    PermanentS3Error,
    TransientS3Error,
)
from s3blobfs.s3.faults import Operation
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import StoredContent
from tests.blobstore.bench import FOO, HINT, Bench, content, note
from tests.conftest import AllowLogs
from tests.support.early import as_sent_early


async def test_write_as_in_the_diagram(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.draw()
    stored = await bench.put(store, FOO, object_id="id1")
    version = stored.location.version_id
    assert bench.taken_lines() == [
        "client -> S3: write 3 bytes",
        note("id1"),
        f"client <-- S3: v={version}",
    ]
    assert bench.requests() == {"put": 1}
    assert stored.location.cache_name == f"id1@{version}"
    assert not stored.existed


async def test_same_content_again_is_another_version(bench: Bench) -> None:
    store = bench.versioned_store(prefix="other/")
    first = await bench.put(store, FOO, object_id="id2")
    second = await bench.put(store, FOO, object_id="id2")
    assert first.location.object_key == second.location.object_key == "other/id2"
    assert first.location.version_id != second.location.version_id
    assert second.location.cache_name == f"id2@{second.location.version_id}"
    assert bench.requests() == {"put": 2}


async def test_uncached_store_sends_from_its_temporary(bench: Bench) -> None:
    store = bench.versioned_store(cached=False)
    bench.draw()
    await bench.put(store, FOO, object_id="id1")
    assert "tmp -> S3: write 3 bytes" in bench.lines


@pytest.mark.parametrize("object_id", [None, "", "a@b", "a/b", ".s3blobfs"])
async def test_object_ids_that_cannot_be(bench: Bench, object_id: str | None) -> None:
    store = bench.versioned_store()
    with pytest.raises(ValueError, match="not the object id"):
        await bench.put(store, FOO, object_id=object_id)


async def test_versioning_was_turned_off(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.bucket().versioning = False
    with pytest.raises(PermanentS3Error, match=r"versioning is off.*put-bucket-versioning --bucket bucket"):
        await bench.put(store, FOO, object_id="id1")


async def test_direct_copy_is_one_request(bench: Bench) -> None:
    source, target = bench.versioned_store(), bench.versioned_store(prefix="other/")
    blob = await bench.blob(source, FOO, object_id="id1")
    await bench.put(source, b"newer", object_id="id1")
    bench.requests()
    bench.draw()
    stored = await target.copy_from(source, blob, object_id="id2", write_id="w2", hint=HINT)
    assert bench.taken_lines() == [
        "client -> S3: copyObject",
        note(f"id1 v={blob.location.version_id} to other/id2"),
        f"client <-- S3: v={stored.location.version_id}",
    ]
    assert bench.requests() == {"copy": 1}
    assert await target.open_source(content(target, FOO, stored)).fetch(0, 3) == FOO
    assert bench.object("other/id2").info.metadata["s3blobfs-write-id"] == "w2"


async def test_copy_from_a_digest_store_in_another_bucket(bench: Bench) -> None:
    source, target = bench.digest_store(bucket="digests"), bench.versioned_store()
    blob = await bench.blob(source, FOO)
    stored = await target.copy_from(source, blob, object_id="id2", write_id="w2", hint=HINT)
    assert await target.open_source(content(target, FOO, stored)).fetch(0, 3) == FOO


async def test_copy_of_a_missing_or_altered_source(bench: Bench) -> None:
    source, target = bench.digest_store(bucket="digests"), bench.versioned_store()
    blob = await bench.blob(source, FOO)
    await bench.client("digests").put(blob.location.object_key, b"bar")
    with pytest.raises(DamagedContent):
        await target.copy_from(source, blob, object_id="id2", write_id="w2", hint=HINT)
    await source.delete([blob.location])
    with pytest.raises(ObjectNotFound):
        await target.copy_from(source, blob, object_id="id2", write_id="w2", hint=HINT)


# --- a lost answer ------------------------------------------------------------------------------------


async def test_write_whose_answer_was_lost_is_found(bench: Bench) -> None:
    store = bench.versioned_store()
    await bench.put(store, b"old", object_id="id1", write_id="w0")
    bench.script.on("put").applies_then_raises(TransientS3Error("reset"))
    with pytest.raises(TransientS3Error):
        await bench.put(store, FOO, object_id="id1", write_id="w1")
    newest = bench.object("id1")
    found = await store.find_write(content_digests(FOO), object_id="id1", write_id="w1")
    assert found is not None
    assert (found.location.version_id, found.existed) == (newest.info.version_id, True)
    assert await store.open_source(content(store, FOO, found)).fetch(0, 3) == FOO


async def test_a_put_whose_answer_was_lost_makes_no_second_version(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.script.on("put", nth=1).applies_then_raises(OutcomeUnknown("reset"))
    stored = await bench.put(store, FOO, object_id="id1")
    assert stored.existed
    assert bench.object("id1").info.version_id == stored.location.version_id
    assert len(bench.server.buckets["bucket"].versions["id1"]) == 1


@pytest.mark.parametrize("tagged", [True, False])
async def test_a_write_that_was_begun_early_is_found(bench: Bench, tagged: bool) -> None:
    """Its tag is put if it did not get there."""
    store = bench.versioned_store()
    await bench.put(store, FOO, object_id="id1")
    as_sent_early(bench.bucket(), tagged=tagged)
    bench.requests()
    found = await store.find_write(content_digests(FOO), object_id="id1", write_id="w1")
    assert found is not None
    assert found.location.version_id == bench.object("id1").info.version_id
    assert bench.requests() == {"list": 1, "head": 1, "tag": 1 if tagged else 2}
    early = metadata.decode(bench.object("id1").info.metadata)
    assert metadata.complete(early, bench.object("id1").tags).matches(content_digests(FOO))
    assert await store.find_write(content_digests(FOO), object_id="id1", write_id="another") is None
    assert await store.find_write(content_digests(b"bar"), object_id="id1", write_id="w1") is None


@pytest.mark.parametrize("operation", ["get_tags", "put_tags"])
async def test_a_write_whose_tag_is_out_of_reach_is_not_found(
    bench: Bench, operation: Operation, allow_logs: AllowLogs
) -> None:
    allow_logs("no tag|cannot be seen")
    store = bench.versioned_store()
    await bench.put(store, FOO, object_id="id1")
    as_sent_early(bench.bucket(), tagged=False)
    bench.script.on(operation).raises(AccessDenied("403"))
    assert await store.find_write(content_digests(FOO), object_id="id1", write_id="w1") is None


async def test_a_put_that_did_not_take_place_is_made_again(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.script.on("put", nth=1).raises(OutcomeUnknown("reset"))
    bench.script.on("put", nth=2).raises(OutcomeUnknown("reset"))
    stored = await bench.put(store, FOO, object_id="id1")
    assert not stored.existed
    assert len(bench.server.buckets["bucket"].versions["id1"]) == 1


async def test_doubts_come_to_an_end(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.script.on("put").raises(OutcomeUnknown("reset"))
    with pytest.raises(OutcomeUnknown):
        await bench.put(store, FOO, object_id="id1")


async def test_a_copy_whose_answer_was_lost_makes_no_second_version(bench: Bench) -> None:
    source, target = bench.versioned_store(), bench.versioned_store(prefix="other/")
    blob = await bench.blob(source, FOO, object_id="id1")
    bench.script.on("copy", nth=1).applies_then_raises(OutcomeUnknown("reset"))
    stored = await target.copy_from(source, blob, object_id="id2", write_id="w2", hint=HINT)
    assert stored.existed
    assert len(bench.server.buckets["bucket"].versions["other/id2"]) == 1


async def test_no_write_took_place(bench: Bench) -> None:
    """Not: another content, another write of the same content, a file whose id begins alike, a marker."""
    store = bench.versioned_store()
    find = content_digests(FOO)
    assert await store.find_write(find, object_id="id1", write_id="w1") is None
    await bench.put(store, b"bar", object_id="id1", write_id="w1")
    await bench.put(store, FOO, object_id="id1", write_id="w2")
    await bench.put(store, FOO, object_id="id10", write_id="w1")
    await bench.client().put("id1", FOO)
    await bench.client().delete(ObjectId("id1"))
    assert await store.find_write(find, object_id="id1", write_id="w1") is None


async def test_version_that_goes_while_it_is_looked_for(bench: Bench) -> None:
    store = bench.versioned_store()
    await bench.put(store, FOO, object_id="id1")
    bench.script.on("head").raises(ObjectNotFound("gone"))
    assert await store.find_write(content_digests(FOO), object_id="id1", write_id="w1") is None


async def test_search_is_bounded(bench: Bench) -> None:
    store = bench.versioned_store()
    for number in range(FIND_WRITE_DEPTH + 3):
        await bench.put(store, FOO, object_id="id1", write_id=f"w{number}")
    bench.requests()
    assert await store.find_write(content_digests(FOO), object_id="id1", write_id="w0") is None
    assert bench.requests() == {"list": 1, "head": FIND_WRITE_DEPTH}


# --- several together ---------------------------------------------------------------------------------


async def test_versions_together_as_each_by_itself(bench: Bench) -> None:
    store = bench.versioned_store()
    puts = [
        bench.small(data, object_id=name) for name, data in (("id1", FOO), ("id2", FOO), ("id1", b"newer"))
    ]
    bench.draw()
    await store.put_each(puts)
    versions = [put.outcome.location.version_id for put in puts if isinstance(put.outcome, StoredContent)]
    assert len(set(versions)) == 3
    assert bench.taken_lines() == [
        line
        for put, version in zip(puts, versions, strict=True)
        for line in (
            f"client -> S3: write {len(put.body)} bytes",
            note(put.object_id or ""),
            f"client <-- S3: v={version}",
        )
    ]
    assert bench.requests() == {"put": 3}
    assert bench.object("id1").data == b"newer"


async def test_lost_answer_among_several_is_in_doubt(bench: Bench) -> None:
    store = bench.versioned_store()
    puts = [bench.small(FOO, object_id=name) for name in ("id1", "id2", "id3")]
    bench.script.on("put", key="id1").applies_then_raises(OutcomeUnknown("reset"))
    refused = TransientS3Error("503")
    bench.script.on("put", key="id2").raises(refused)
    await store.put_each(puts)
    assert [put.outcome for put in puts[:2]] == [Left.IN_DOUBT, refused]
    assert isinstance(puts[2].outcome, StoredContent)
    found = await store.find_write(content_digests(FOO), object_id="id1", write_id="w1")
    assert found is not None


async def test_versioning_was_turned_off_among_several(bench: Bench) -> None:
    store = bench.versioned_store()
    bench.bucket().versioning = False
    put = bench.small(FOO, object_id="id1")
    await store.put_each([put])
    assert isinstance(put.outcome, PermanentS3Error)
