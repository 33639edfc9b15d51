"""Settings, stores with their bindings, and extended attributes."""

from __future__ import annotations

import dataclasses

import pytest

from s3blobfs.errors import IndexDamaged, UsageError, VolumeIndexError
from s3blobfs.index import dentries, inodes, settings, stores, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import DigestAlgorithm, Durability, Keying, StoreConfig
from tests.index.volume import (
    DIGEST_STORE,
    ROOT,
    SETTINGS,
    VERSIONED_STORE,
    add_directory,
    add_file,
)


async def test_settings_come_back(db: Database) -> None:
    assert await db.read(settings.load) == SETTINGS
    changed = dataclasses.replace(SETTINGS, durability=Durability.DISK, garbage_grace_s=0.5, prefix="p/")
    await db.write(lambda tx: settings.store(tx, changed))
    assert await db.read(settings.load) == changed


async def test_an_index_that_mkfs_did_not_finish(unchecked: Database) -> None:
    await unchecked.write(lambda tx: tx.modify("DELETE FROM volume"))
    with pytest.raises(IndexDamaged, match="mkfs did not finish"):
        await unchecked.read(settings.load)


def _insert(tx: Transaction, name: str, prefix: str) -> StoreConfig:
    return stores.insert(
        tx,
        name=name,
        bucket="bucket",
        prefix=prefix,
        keying=Keying.VERSIONED,
        digest_algorithm=DigestAlgorithm.SHA256,
        cached=True,
        conditional_put=False,
    )


async def test_stores_come_back(db: Database) -> None:
    third = await db.write(lambda tx: _insert(tx, "third", "third/"))
    assert third == StoreConfig(
        id=3,
        name="third",
        bucket="bucket",
        prefix="third/",
        keying=Keying.VERSIONED,
        digest_algorithm=DigestAlgorithm.SHA256,
        cached=True,
        conditional_put=False,
    )
    assert await db.read(lambda tx: stores.get(tx, 3)) == third
    assert await db.read(lambda tx: stores.find(tx, "third")) == third
    assert await db.read(lambda tx: stores.find(tx, "fourth")) is None
    assert [store.name for store in await db.read(stores.every)] == ["default", "other", "third"]
    with pytest.raises(KeyError):
        await db.read(lambda tx: stores.get(tx, 4))


@pytest.mark.parametrize(("name", "prefix"), [("other", "new/"), ("new", "other/")])
async def test_stores_do_not_share_names_or_keys(db: Database, name: str, prefix: str) -> None:
    with pytest.raises(UsageError, match="already"):
        await db.write(lambda tx: _insert(tx, name, prefix))


async def test_a_prefix_ends_in_a_slash(db: Database) -> None:
    with pytest.raises(VolumeIndexError, match="CHECK"):
        await db.write(lambda tx: _insert(tx, "third", "third"))


async def test_the_nearest_binding_decides(db: Database) -> None:
    def write(tx: Transaction) -> list[int]:
        _insert(tx, "third", "third/")
        path = [ROOT]
        for name in (b"a", b"b", b"c", b"d"):
            path.append(add_directory(tx, path[-1], name).id)
        return path

    path = await db.write(write)

    async def chosen() -> list[int]:
        return [await db.read(lambda tx, at=at: stores.binding_of(tx, at)) for at in path]  # type: ignore[misc]

    assert await chosen() == [1, 1, 1, 1, 1]
    await db.write(lambda tx: stores.bind(tx, path[1], VERSIONED_STORE))
    assert await chosen() == [1, 2, 2, 2, 2]
    await db.write(lambda tx: stores.bind(tx, path[3], 3))
    assert await chosen() == [1, 2, 2, 3, 3]
    assert await db.read(stores.bindings) == {ROOT: 1, path[1]: 2, path[3]: 3}
    await db.write(lambda tx: stores.bind(tx, path[1], DIGEST_STORE))
    assert await chosen() == [1, 1, 1, 3, 3]
    await db.write(lambda tx: stores.unbind(tx, path[3]))
    assert await chosen() == [1, 1, 1, 1, 1]


async def test_the_root_stays_with_the_default_store(db: Database) -> None:
    await db.write(lambda tx: stores.bind(tx, ROOT, stores.DEFAULT_STORE_ID))
    with pytest.raises(UsageError, match="root"):
        await db.write(lambda tx: stores.bind(tx, ROOT, VERSIONED_STORE))
    await db.write(lambda tx: stores.unbind(tx, ROOT))
    assert await db.read(stores.bindings) == {ROOT: stores.DEFAULT_STORE_ID}


async def test_a_binding_goes_with_its_directory(db: Database) -> None:
    def write(tx: Transaction) -> None:
        directory = add_directory(tx, ROOT, b"a")
        stores.bind(tx, directory.id, VERSIONED_STORE)
        dentries.remove(tx, ROOT, b"a")
        inodes.remove(tx, directory.id)
        inodes.add_links(tx, ROOT, -1, 0)

    await db.write(write)
    assert await db.read(stores.bindings) == {ROOT: stores.DEFAULT_STORE_ID}


async def test_extended_attributes(db: Database) -> None:
    def write(tx: Transaction) -> None:
        file = add_file(tx, ROOT, b"file").id
        other = add_file(tx, ROOT, b"other").id
        xattrs.set(tx, file, b"user.b", b"1")
        xattrs.set(tx, file, b"user.a", b"")
        xattrs.set(tx, other, b"user.b", b"x" * 65536)
        xattrs.set(tx, file, b"user.b", b"\0\xff")
        assert xattrs.names(tx, file) == [b"user.a", b"user.b"]
        assert xattrs.find(tx, file, b"user.b") == b"\0\xff"
        assert xattrs.find(tx, file, b"user.a") == b""
        assert xattrs.find(tx, other, b"user.b") == b"x" * 65536
        assert xattrs.remove(tx, file, b"user.b")
        assert not xattrs.remove(tx, file, b"user.b")
        assert xattrs.find(tx, file, b"user.b") is None

    await db.write(write)


async def test_extended_attributes_need_an_inode(db: Database) -> None:
    with pytest.raises(VolumeIndexError, match="FOREIGN KEY"):
        await db.write(lambda tx: xattrs.set(tx, 99, b"user.a", b""))
