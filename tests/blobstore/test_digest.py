"""``digest`` keying: what counts as a hit, and what does not."""

from __future__ import annotations

import hashlib

import pytest
import trio
import trio.testing

from s3blobfs.blobstore.protocol import Left
from s3blobfs.errors import (
    DamagedContent,
    ObjectAlreadyExists,
    ObjectNotFound,
    PermanentS3Error,
    TransientS3Error,
)
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import DigestAlgorithm, StoredContent
from tests.blobstore.bench import FOO, FOO_MD5, HINT, Bench, content, note

# The first published collision: X. Wang, D. Feng, X. Lai, H. Yu, "Collisions for Hash Functions MD4, MD5,
# HAVAL-128 and RIPEMD" (2004), as commonly reprinted.
_COLLISION = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89"
    "55ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
_DIFFERENCES = {19: 0x80, 45: 0x80, 59: 0x80, 83: 0x80, 109: 0x80, 123: 0x80}


def _colliding_pair() -> tuple[bytes, bytes]:
    other = bytes(byte ^ _DIFFERENCES.get(at, 0) for at, byte in enumerate(_COLLISION))
    return _COLLISION, other


def test_the_pair_collides() -> None:
    one, other = _colliding_pair()
    assert one != other
    assert hashlib.md5(one).digest() == hashlib.md5(other).digest()
    assert hashlib.sha256(one).digest() != hashlib.sha256(other).digest()


# --- storing ------------------------------------------------------------------------------------------


async def test_write_as_in_the_diagram(bench: Bench) -> None:
    store = bench.digest_store()
    bench.draw()
    stored = await bench.put(store, FOO)
    assert bench.taken_lines() == [
        "client --> S3: getObjectMetadata",
        note(FOO_MD5),
        "client <-- S3: missing",
        "tmp -> S3: write 3 bytes",
        note(FOO_MD5),
    ]
    assert not stored.existed
    assert (stored.location.object_key, stored.location.version_id) == (FOO_MD5, None)
    assert bench.requests() == {"head": 1, "put": 1}


async def test_write_same_again_as_in_the_diagram(bench: Bench) -> None:
    store = bench.digest_store()
    first = await bench.put(store, FOO)
    bench.requests()
    bench.draw()
    second = await bench.put(store, FOO, write_id="w2")
    assert bench.taken_lines() == [
        "client --> S3: getObjectMetadata",
        note(FOO_MD5),
        "client <-- S3: exists (3 bytes)",
    ]
    assert second.existed
    assert (second.location, second.etag) == (first.location, first.etag)
    assert bench.requests() == {"head": 1}


async def test_cached_store_sends_from_the_client(bench: Bench) -> None:
    store = bench.digest_store(cached=True)
    bench.draw()
    await bench.put(store, FOO)
    assert "client -> S3: write 3 bytes" in bench.lines


async def test_sha256_keys_below_a_prefix(bench: Bench) -> None:
    store = bench.digest_store(prefix="some/where/", algorithm=DigestAlgorithm.SHA256)
    stored = await bench.put(store, FOO)
    digest = hashlib.sha256(FOO).hexdigest()
    assert stored.location.object_key == f"some/where/{digest}"
    assert stored.location.cache_name == digest


async def test_empty_content(bench: Bench) -> None:
    store = bench.digest_store()
    stored = await bench.put(store, b"")
    assert stored.location.object_key == "d41d8cd98f00b204e9800998ecf8427e"
    assert await store.open_source(content(store, b"", stored)).fetch(0, 0) == b""


# --- what is no hit -----------------------------------------------------------------------------------


@pytest.mark.expected_log("is not the content its name says")
async def test_colliding_contents_stay_apart(bench: Bench) -> None:
    store = bench.digest_store()
    one, other = _colliding_pair()
    first, second = await bench.put(store, one), await bench.put(store, other)
    md5 = hashlib.md5(one).hexdigest()
    assert first.location.object_key == md5
    assert second.location.object_key == f"{md5}-{hashlib.sha256(other).hexdigest()}"
    assert not second.existed
    for data, stored in ((one, first), (other, second)):
        assert await store.open_source(content(store, data, stored)).fetch(0, 128) == data
    # The same protocol holds under the second name, and the first content is still a hit under its own.
    again, first_again = await bench.put(store, other), await bench.put(store, one)
    assert (again.location, again.existed) == (second.location, True)
    assert (first_again.location, first_again.existed) == (first.location, True)
    assert len(bench.keys()) == 2


@pytest.mark.expected_log("is not the content its name says")
async def test_object_without_our_stamp_is_neither_trusted_nor_overwritten(bench: Bench) -> None:
    store = bench.digest_store()
    await bench.client().put(FOO_MD5, FOO)
    stored = await bench.put(store, FOO)
    assert stored.location.object_key.startswith(f"{FOO_MD5}-")
    assert bench.object(FOO_MD5).info.metadata == {}


@pytest.mark.expected_log("is not the content its name says")
async def test_stamp_with_another_size_is_no_hit(bench: Bench) -> None:
    store = bench.digest_store()
    await bench.put(store, FOO)
    stamp = bench.object(FOO_MD5).info.metadata
    await bench.client().put(FOO_MD5, b"foo, cut short", metadata=stamp)
    stored = await bench.put(store, FOO)
    assert not stored.existed
    assert stored.location.object_key != FOO_MD5


@pytest.mark.expected_log("is not the content its name says")
async def test_both_names_taken(bench: Bench) -> None:
    store = bench.digest_store()
    for key in (FOO_MD5, f"{FOO_MD5}-{hashlib.sha256(FOO).hexdigest()}"):
        await bench.client().put(key, b"foreign")
    with pytest.raises(PermanentS3Error, match="taken by other objects"):
        await bench.put(store, FOO)


# --- others at the same key ---------------------------------------------------------------------------


async def test_another_writer_between_head_and_put(bench: Bench) -> None:
    """412 is judged like a HEAD: the other one stored the same content."""
    mine, theirs = bench.digest_store(), bench.digest_store()
    stall = bench.script.on("put", nth=1).stalls()
    stored = []

    async def put_mine() -> None:
        stored.append(await bench.put(mine, FOO))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_mine)
        await stall.arrived.wait()
        other = await bench.put(theirs, FOO, write_id="w2")
        stall.release()
    assert stored[0].existed
    assert stored[0].etag == other.etag
    assert bench.requests() == {"head": 3, "put": 2}


async def test_refused_put_of_an_object_that_is_gone_again(bench: Bench) -> None:
    store = bench.digest_store()
    bench.script.on("put").raises(ObjectAlreadyExists("the key is taken"))
    with pytest.raises(TransientS3Error, match="came and went"):
        await bench.put(store, FOO)


async def test_condition_is_sent_only_where_it_is_honoured(bench: Bench) -> None:
    """Without the condition the later PUT wins, with the same content."""
    mine = bench.digest_store(conditional_put=False)
    stall = bench.script.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.put, mine, FOO)
        await stall.arrived.wait()
        await bench.put(bench.digest_store(), FOO)
        stall.release()
    assert bench.requests() == {"head": 2, "put": 2}


async def test_concurrent_uploads_of_one_content_send_it_once(bench: Bench) -> None:
    store = bench.digest_store(conditional_put=False)
    bench.script.on("put").delays(1)
    stored = []

    async def put(write_id: str) -> None:
        stored.append(await bench.put(store, FOO, write_id=write_id))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(put, f"w{number}")
    assert sorted(each.existed for each in stored) == [False, True, True]
    assert bench.requests() == {"head": 3, "put": 1}


async def test_uploads_of_different_contents_do_not_wait(bench: Bench) -> None:
    store = bench.digest_store()
    stall = bench.script.on("put", key=FOO_MD5).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.put, store, FOO)
        await stall.arrived.wait()
        await bench.put(store, b"bar")
        stall.release()


async def test_waiting_for_the_same_content_can_be_cancelled(bench: Bench) -> None:
    store = bench.digest_store()
    stall = bench.script.on("put").stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.put, store, FOO)
        await stall.arrived.wait()
        with trio.move_on_after(1) as scope:
            await bench.put(store, FOO)
        assert scope.cancelled_caught
        stall.release()
    assert (await bench.put(store, FOO)).existed


# --- copying ------------------------------------------------------------------------------------------


async def test_copy_as_in_the_diagram(bench: Bench) -> None:
    source, target = bench.digest_store(), bench.digest_store(prefix="other/")
    blob = await bench.blob(source, FOO)
    bench.requests()
    bench.draw()
    stored = await target.copy_from(source, blob, object_id=None, write_id="w2", hint=HINT)
    assert bench.taken_lines() == [
        "client --> S3: getObjectMetadata",
        note(f"other/{FOO_MD5}"),
        "client <-- S3: missing",
        "client --> S3: getObjectMetadata",
        note(FOO_MD5),
        "client <-- S3: exists (3 bytes)",
        "client -> S3: copyObject",
        note(f"{FOO_MD5} to other/{FOO_MD5}"),
        "client <-- S3: copied",
    ]
    assert bench.requests() == {"head": 2, "copy": 1}
    assert stored.location.object_key == f"other/{FOO_MD5}"
    assert bench.object(f"other/{FOO_MD5}").info.metadata["s3blobfs-write-id"] == "w2"
    # What a copy made is a hit for an upload, and for another copy.
    assert (await bench.put(target, FOO)).existed
    assert (await target.copy_from(source, blob, object_id=None, write_id="w3", hint=HINT)).existed


async def test_copy_into_another_bucket_from_a_versioned_store(bench: Bench) -> None:
    source = bench.versioned_store(bucket="versions", cached=False)
    target = bench.digest_store(bucket="bucket")
    blob = await bench.blob(source, FOO, object_id="id1")
    await bench.put(source, b"newer", object_id="id1")
    bench.draw()
    stored = await target.copy_from(source, blob, object_id=None, write_id="w2", hint=HINT)
    assert note(f"id1 v={blob.location.version_id} to {FOO_MD5}") in bench.lines
    assert await target.open_source(content(target, FOO, stored)).fetch(0, 3) == FOO


async def test_copy_of_a_missing_source(bench: Bench) -> None:
    source, target = bench.digest_store(), bench.digest_store(prefix="other/")
    blob = await bench.blob(source, FOO)
    await source.delete([blob.location])
    with pytest.raises(ObjectNotFound, match="nothing to copy"):
        await target.copy_from(source, blob, object_id=None, write_id="w2", hint=HINT)


async def test_copy_of_an_altered_source(bench: Bench) -> None:
    source, target = bench.digest_store(), bench.digest_store(prefix="other/")
    blob = await bench.blob(source, FOO)
    await bench.client().put(FOO_MD5, b"bar")
    with pytest.raises(DamagedContent, match="not the one that was stored"):
        await target.copy_from(source, blob, object_id=None, write_id="w2", hint=HINT)


# --- a lost answer ------------------------------------------------------------------------------------


async def test_write_whose_answer_was_lost_is_found(bench: Bench) -> None:
    store = bench.digest_store()
    bench.script.on("put").applies_then_raises(TransientS3Error("reset"))
    with pytest.raises(TransientS3Error):
        await bench.put(store, FOO)
    found = await store.find_write(content_digests(FOO), object_id=None, write_id="w1")
    assert found is not None
    assert found.location.object_key == FOO_MD5


@pytest.mark.expected_log("is not the content its name says")
async def test_lost_write_of_a_colliding_content_is_found(bench: Bench) -> None:
    store = bench.digest_store()
    one, other = _colliding_pair()
    await bench.put(store, one)
    assert await store.find_write(content_digests(other), object_id=None, write_id="w1") is None
    stored = await bench.put(store, other)
    found = await store.find_write(content_digests(other), object_id=None, write_id="w1")
    assert found is not None
    assert found.location == stored.location


async def test_no_write_took_place(bench: Bench) -> None:
    store = bench.digest_store()
    assert await store.find_write(content_digests(FOO), object_id=None, write_id="w1") is None


@pytest.mark.expected_log("is not the content its name says")
async def test_foreign_objects_are_no_write_of_ours(bench: Bench) -> None:
    store = bench.digest_store()
    for key in (FOO_MD5, f"{FOO_MD5}-{hashlib.sha256(FOO).hexdigest()}"):
        await bench.client().put(key, b"foreign")
    assert await store.find_write(content_digests(FOO), object_id=None, write_id="w1") is None
    with pytest.raises(PermanentS3Error):
        await bench.put(store, FOO)


# --- several together ---------------------------------------------------------------------------------


@pytest.mark.expected_log("is not the content its name says")
async def test_contents_together_as_each_by_itself(bench: Bench) -> None:
    """New, there already, the same twice, and one whose name another content has."""
    store = bench.digest_store()
    await bench.put(store, b"there")
    one, colliding = _colliding_pair()
    await bench.put(store, one)
    bench.requests()
    puts = [bench.small(data) for data in (FOO, b"there", FOO, colliding, b"last")]
    bench.draw()
    await store.put_each(puts)
    stored = [put.outcome for put in puts]
    assert all(isinstance(outcome, StoredContent) for outcome in stored)
    assert [outcome.existed for outcome in stored if isinstance(outcome, StoredContent)] == [
        *(False, True, True, False, False)
    ]
    # Of the colliding one both names are looked for.
    assert bench.requests() == {"head": 6, "put": 3}
    assert bench.taken_lines()[:5] == [
        "client --> S3: getObjectMetadata",
        note(FOO_MD5),
        "client <-- S3: missing",
        "tmp -> S3: write 3 bytes",
        note(FOO_MD5),
    ]
    for put in puts:
        assert isinstance(put.outcome, StoredContent)
        assert bench.object(put.outcome.location.object_key).data == put.body


async def test_one_of_several_fails_alone(bench: Bench) -> None:
    store = bench.digest_store()
    puts = [bench.small(data) for data in (b"1", b"2", b"3", b"4")]
    error = TransientS3Error("503")
    bench.script.on("put", nth=2).raises(error)
    bench.script.on("head", nth=3).raises(error)
    await store.put_each(puts)
    assert [put.outcome is error for put in puts] == [False, True, True, False]
    assert bench.requests() == {"head": 3, "put": 2}
    await store.put_each(puts[1:3])
    assert all(isinstance(put.outcome, StoredContent) for put in puts)


async def test_content_that_another_is_storing_is_left_to_who_waits(bench: Bench) -> None:
    store = bench.digest_store()
    stall = bench.script.on("put", nth=1).stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.put, store, FOO)
        await stall.arrived.wait()
        puts = [bench.small(FOO), bench.small(b"other")]
        await store.put_each(puts)
        stall.release()
    assert puts[0].outcome is Left.BUSY
    assert isinstance(puts[1].outcome, StoredContent)


async def test_who_waits_for_a_content_of_several_finds_it(bench: Bench) -> None:
    store = bench.digest_store()
    stall = bench.script.on("put", nth=1).stalls()
    found: list[StoredContent] = []

    async def put() -> None:
        found.append(await bench.put(store, FOO))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put_each, [bench.small(FOO)])
        await stall.arrived.wait()
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        assert not found
        stall.release()
    assert found[0].existed
    assert bench.requests() == {"head": 2, "put": 1}


async def test_cancelled_among_several_its_name_is_free(bench: Bench) -> None:
    store = bench.digest_store()
    bench.script.on("put", nth=1).stalls()
    with trio.move_on_after(0.01):
        await store.put_each([bench.small(FOO)])
    await bench.put(store, FOO)
