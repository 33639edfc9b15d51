"""The journal."""

from __future__ import annotations

import pytest

from s3blobfs.errors import VolumeIndexError
from s3blobfs.index import inodes, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import Pending, UploadRow, UploadState
from s3blobfs.types import ContentDigests
from tests.index.volume import DIGEST_STORE, NOW, ROOT, add_file, digests_of


def _stage(
    tx: Transaction, inode_id: int, staged_name: str, content: bytes, *, dirty: bool = False, at: int = 0
) -> UploadRow:
    inodes.update(tx, inode_id, size_bytes=len(content))
    return uploads.insert(
        tx,
        inode_id=inode_id,
        store_id=DIGEST_STORE,
        staged_name=staged_name,
        size_bytes=len(content),
        digests=None if dirty else digests_of(content),
        write_id=f"write of {staged_name}",
        state=UploadState.DIRTY if dirty else UploadState.SEALED,
        now_ns=NOW + at,
    )


@pytest.mark.parametrize("dirty", [False, True])
async def test_what_was_inserted_is_found(db: Database, dirty: bool) -> None:
    file = await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    row = await db.write(lambda tx: _stage(tx, file.id, "a", b"content", dirty=dirty))
    assert (row.digests is None) == dirty
    assert (row.attempts, row.last_error) == (0, None)
    assert await db.read(lambda tx: uploads.get(tx, row.id)) == row
    assert await db.read(lambda tx: uploads.find(tx, row.id)) == row
    assert await db.read(lambda tx: uploads.latest_of(tx, file.id)) == row
    assert await db.read(uploads.every) == [row]
    assert await db.check({"a"}) == []
    await db.write(lambda tx: uploads.failed(tx, row.id, "503"))
    await db.write(lambda tx: uploads.failed(tx, row.id, "504"))
    failed = await db.read(lambda tx: uploads.get(tx, row.id))
    assert (failed.attempts, failed.last_error) == (2, "504")
    with pytest.raises(KeyError):
        await db.read(lambda tx: uploads.get(tx, 99))


async def test_the_newest_row_of_a_file_counts(db: Database) -> None:
    file, other = await db.write(lambda tx: (add_file(tx, ROOT, b"file"), add_file(tx, ROOT, b"other")))
    first = await db.write(lambda tx: _stage(tx, file.id, "a", b"content"))
    elsewhere = await db.write(lambda tx: _stage(tx, other.id, "b", b"1", at=1))
    second = await db.write(lambda tx: _stage(tx, file.id, "c", b"con", at=2))
    assert await db.read(lambda tx: uploads.latest_of(tx, file.id)) == second
    assert await db.read(uploads.pending) == Pending(files=3, bytes=11, oldest_ns=NOW)

    def replace(tx: Transaction) -> tuple[list[UploadRow], UploadRow]:
        return uploads.supersede(tx, file.id), _stage(tx, file.id, "d", b"newest", at=3)

    superseded, third = await db.write(replace)
    assert superseded == [first, second]
    assert await db.read(uploads.every) == [elsewhere, third]
    assert await db.read(uploads.pending) == Pending(files=2, bytes=7, oldest_ns=NOW + 1)
    await db.write(lambda tx: uploads.failed(tx, first.id, "late"))
    assert await db.write(lambda tx: uploads.finish(tx, first.id)) is None


async def test_finish(db: Database) -> None:
    file = await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    row = await db.write(lambda tx: _stage(tx, file.id, "a", b""))
    assert await db.write(lambda tx: uploads.finish(tx, row.id)) == row
    assert await db.read(lambda tx: uploads.latest_of(tx, file.id)) is None
    assert await db.read(uploads.pending) == Pending(files=0, bytes=0, oldest_ns=None)


@pytest.mark.parametrize(
    ("state", "digests"), [(UploadState.SEALED, None), (UploadState.DIRTY, digests_of(b"x"))]
)
async def test_digests_belong_to_what_is_sealed(
    db: Database, state: UploadState, digests: ContentDigests | None
) -> None:
    file = await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    with pytest.raises(VolumeIndexError, match="CHECK"):
        await db.write(
            lambda tx: uploads.insert(
                tx,
                inode_id=file.id,
                store_id=DIGEST_STORE,
                staged_name="a",
                size_bytes=1,
                digests=digests,
                write_id="w",
                state=state,
                now_ns=NOW,
            )
        )
