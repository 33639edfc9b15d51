"""Blobs: references, and the one-way street to deletion."""

from __future__ import annotations

import dataclasses

import pytest

from s3blobfs.errors import BlobIsDeleting, DamagedContent, VolumeIndexError
from s3blobfs.index import blobs, inodes
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, BlobContent
from tests.index.volume import (
    DIGEST_STORE,
    NOW,
    ROOT,
    VERSIONED_STORE,
    add_file,
    adopt,
    adopt_version,
    digests_of,
    give_content,
    stored,
)


async def _adopted(db: Database, content: bytes) -> BlobRow:
    """A blob that one file refers to."""

    def write(tx: Transaction) -> BlobRow:
        file = add_file(tx, ROOT, digests_of(content).md5.hex().encode())
        return give_content(tx, file.id, content)

    return await db.write(write)


async def test_what_was_adopted_is_found(db: Database) -> None:
    content = b"x" * (2 * CHECKSUM_BLOCK_BYTES + 1)
    row = await _adopted(db, content)
    assert (row.refs, row.state, row.unreferenced_ns) == (1, BlobState.LIVE, None)
    assert len(row.digests.checksums) == 3 * 4
    key = row.location.object_key
    assert await db.read(lambda tx: blobs.get(tx, row.id)) == row
    assert await db.read(lambda tx: blobs.find(tx, DIGEST_STORE, key, None)) == row
    assert await db.read(lambda tx: blobs.find(tx, DIGEST_STORE, key, "v")) is None
    assert await db.read(lambda tx: blobs.find(tx, VERSIONED_STORE, key, None)) is None
    assert row.content() == BlobContent(row.id, DIGEST_STORE, row.location, row.etag, digests_of(content))
    with pytest.raises(VolumeIndexError):
        await db.read(lambda tx: blobs.get(tx, 99))


async def test_empty_content_has_no_checksums(db: Database) -> None:
    row = await _adopted(db, b"")
    assert row.digests == digests_of(b"")
    assert await db.read(lambda tx: blobs.get(tx, row.id)) == row


async def test_the_same_content_is_one_blob(db: Database) -> None:
    first = await _adopted(db, b"same")
    again = await db.write(lambda tx: give_content(tx, add_file(tx, ROOT, b"again").id, b"same"))
    assert again == dataclasses.replace(first, refs=2)


async def test_the_etag_is_that_of_the_object_there_now(unchecked: Database) -> None:
    await _adopted(unchecked, b"same")
    anew = dataclasses.replace(stored(b"same"), etag='"another"')
    row = await unchecked.write(lambda tx: blobs.adopt(tx, DIGEST_STORE, anew, digests_of(b"same"), NOW))
    assert row.etag == '"another"'


async def test_checksums_are_taken_when_they_become_known(unchecked: Database) -> None:
    unknown = dataclasses.replace(digests_of(b"same"), checksums=b"")
    first = await unchecked.write(lambda tx: blobs.adopt(tx, DIGEST_STORE, stored(b"same"), unknown, NOW))
    assert first.digests == unknown
    assert (await unchecked.write(lambda tx: adopt(tx, b"same"))).digests == digests_of(b"same")


async def test_another_content_is_never_merged(db: Database) -> None:
    """A store that is fooled by a collision would give one file another's bytes."""
    first = await _adopted(db, b"one")
    colliding = stored(b"two", key=first.location.object_key)
    with pytest.raises(DamagedContent):
        await db.write(lambda tx: blobs.adopt(tx, DIGEST_STORE, colliding, digests_of(b"two"), NOW))


async def test_find_by_digest_prefers_the_living(unchecked: Database) -> None:
    def write(tx: Transaction) -> list[BlobRow]:
        gone = adopt_version(tx, "other/id1", "1", b"same")
        blobs.drop_ref(tx, gone.id, NOW, superseded=True)
        garbage = adopt(tx, b"same")
        blobs.drop_ref(tx, garbage.id, NOW, superseded=False)
        living = adopt_version(tx, "other/id1", "2", b"same")
        adopt(tx, b"else")
        return [living, blobs.get(tx, gone.id), blobs.get(tx, garbage.id)]

    expected = await unchecked.write(write)
    digests = digests_of(b"same")

    def find(tx: Transaction) -> list[BlobRow]:
        return blobs.find_by_digest(tx, digests.sha256, digests.size_bytes)

    assert await unchecked.read(find) == expected
    assert await unchecked.read(lambda tx: blobs.find_by_digest(tx, digests.sha256, 5)) == []


@pytest.mark.parametrize(
    ("versioned", "superseded", "expected"),
    [
        (True, True, BlobState.SUPERSEDED),
        (True, False, BlobState.DELETING),
        (False, True, BlobState.GARBAGE),
        (False, False, BlobState.GARBAGE),
    ],
)
async def test_what_the_last_reference_leaves(
    unchecked: Database, versioned: bool, superseded: bool, expected: BlobState
) -> None:
    def write(tx: Transaction) -> tuple[BlobRow, BlobRow]:
        row = adopt_version(tx, "other/id1", "1", b"x") if versioned else adopt(tx, b"x")
        blobs.add_ref(tx, row.id)
        return (
            blobs.drop_ref(tx, row.id, NOW + 1, superseded=superseded),
            blobs.drop_ref(tx, row.id, NOW + 2, superseded=superseded),
        )

    last_but_one, last = await unchecked.write(write)
    assert (last_but_one.refs, last_but_one.state, last_but_one.unreferenced_ns) == (1, BlobState.LIVE, None)
    assert (last.refs, last.state, last.unreferenced_ns) == (0, expected, NOW + 2)
    with pytest.raises(VolumeIndexError, match="no reference to drop"):
        await unchecked.write(lambda tx: blobs.drop_ref(tx, last.id, NOW, superseded=superseded))

    if expected is BlobState.DELETING:
        with pytest.raises(BlobIsDeleting):
            await unchecked.write(lambda tx: blobs.add_ref(tx, last.id))
    else:
        back = await unchecked.write(lambda tx: blobs.add_ref(tx, last.id))
        assert (back.refs, back.state, back.unreferenced_ns) == (1, BlobState.LIVE, None)


async def test_garbage_becomes_due_the_oldest_first(unchecked: Database) -> None:
    def write(tx: Transaction) -> list[int]:
        ids = [adopt(tx, b"%d" % at).id for at in range(5)]
        for at, blob_id in enumerate(ids[:4]):
            blobs.drop_ref(tx, blob_id, NOW - at, superseded=False)
        return ids

    ids = await unchecked.write(write)
    assert await unchecked.read(blobs.next_due_ns) == NOW - 3
    assert await unchecked.write(lambda tx: blobs.mark_due(tx, NOW - 4, 10)) == []
    due = await unchecked.write(lambda tx: blobs.mark_due(tx, NOW - 1, 2))
    assert [row.id for row in due] == [ids[2], ids[3]]
    assert {row.state for row in due} == {BlobState.DELETING}
    assert await unchecked.read(blobs.next_due_ns) == NOW - 1
    rest = await unchecked.write(lambda tx: blobs.mark_due(tx, NOW, 10))
    assert [row.id for row in rest] == [ids[0], ids[1]]
    assert await unchecked.read(blobs.next_due_ns) is None

    assert [row.id for row in await unchecked.read(lambda tx: blobs.deleting(tx, 3))] == ids[:3]
    assert [row.id for row in await unchecked.read(lambda tx: blobs.deleting(tx, 3, ids[2]))] == [ids[3]]


async def test_a_hit_on_what_is_being_deleted(unchecked: Database) -> None:
    """Upload again once the row is gone."""
    row = await unchecked.write(lambda tx: adopt(tx, b"x"))
    await unchecked.write(lambda tx: blobs.drop_ref(tx, row.id, NOW, superseded=False))
    await unchecked.write(lambda tx: blobs.mark_due(tx, NOW, 1))
    with pytest.raises(BlobIsDeleting):
        await unchecked.write(lambda tx: adopt(tx, b"x"))
    await unchecked.write(lambda tx: blobs.forget(tx, [row.id, 99]))
    anew = await unchecked.write(lambda tx: adopt(tx, b"x"))
    assert anew.id > row.id


async def test_forget_spares_what_is_not_marked(db: Database) -> None:
    row = await _adopted(db, b"x")
    await db.write(lambda tx: blobs.forget(tx, [row.id]))
    assert await db.read(lambda tx: blobs.get(tx, row.id)) == row


async def test_history(unchecked: Database) -> None:
    def write(tx: Transaction) -> None:
        for version in ("1", "2"):
            adopt_version(tx, "other/id1", version, version.encode())
        adopt_version(tx, "other/id2", "1", b"x")

    await unchecked.write(write)
    rows = await unchecked.read(lambda tx: blobs.history(tx, VERSIONED_STORE, "other/id1"))
    assert [row.location.version_id for row in rows] == ["1", "2"]


async def test_a_file_moves_from_content_to_content(db: Database) -> None:
    file = await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    for content in (b"first", b"second", b"first"):
        await db.write(lambda tx, content=content: give_content(tx, file.id, content))  # type: ignore[misc]
        assert await db.check() == []
    row = await db.read(lambda tx: inodes.get(tx, file.id))
    assert row.size_bytes == len(b"first")
