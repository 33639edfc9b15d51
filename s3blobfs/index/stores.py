"""The tables ``stores`` and ``store_bindings``: the volume's stores, and which directories use which."""

from __future__ import annotations

from typing import Any

from s3blobfs.errors import UsageError
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import DigestAlgorithm, Keying, StoreConfig

DEFAULT_STORE_ID = 1
"""The store ``default``, made first; the root is bound to it for ever."""

_SELECT = "SELECT id, name, bucket, prefix, keying, digest_algorithm, cached, conditional_put FROM stores"


def insert(
    tx: Transaction,
    *,
    name: str,
    bucket: str,
    prefix: str,
    keying: Keying,
    digest_algorithm: DigestAlgorithm,
    cached: bool,
    conditional_put: bool,
) -> StoreConfig:
    """Raises :class:`UsageError` when the name, or the bucket and prefix, belong to another store."""
    for other in every(tx):
        if other.name == name:
            raise UsageError(f"there is a store {name!r} already, at {other.uri}")
        if (other.bucket, other.prefix) == (bucket, prefix):
            raise UsageError(f"{other.uri} is the store {other.name!r} already; choose another prefix")
    tx.modify(
        "INSERT INTO stores (name, bucket, prefix, keying, digest_algorithm, cached, conditional_put)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, bucket, prefix, keying.value, digest_algorithm.value, int(cached), int(conditional_put)),
    )
    return get(tx, tx.last_id())


def get(tx: Transaction, store_id: int) -> StoreConfig:
    """Raises :class:`KeyError`: stores are never removed, so an id that is unknown was never one."""
    row = tx.execute(_SELECT + " WHERE id = ?", (store_id,)).fetchone()
    if row is None:
        raise KeyError(store_id)
    return _config(row)


def find(tx: Transaction, name: str) -> StoreConfig | None:
    row = tx.execute(_SELECT + " WHERE name = ?", (name,)).fetchone()
    return _config(row) if row is not None else None


def every(tx: Transaction) -> list[StoreConfig]:
    """In the order in which they were made."""
    return [_config(row) for row in tx.execute(_SELECT + " ORDER BY id")]


def bind(tx: Transaction, directory_inode: int, store_id: int) -> None:
    """Let files made below the directory go to the store, from now on; files there stay where they are.

    Raises :class:`UsageError` for the root and any other store than ``default``."""
    if directory_inode == ROOT_INODE_ID and store_id != DEFAULT_STORE_ID:
        raise UsageError("the root of the volume stays with the store 'default'; bind a directory below it")
    tx.modify("INSERT OR REPLACE INTO store_bindings VALUES (?, ?)", (directory_inode, store_id))


def unbind(tx: Transaction, directory_inode: int) -> None:
    """Let the directory follow its parent again; nothing happens where there was no binding."""
    tx.modify("DELETE FROM store_bindings WHERE directory_id = ?", (directory_inode,))


def bindings(tx: Transaction) -> dict[int, int]:
    """Directory inode to store id; the root's is always among them."""
    bound: list[Any] = tx.execute("SELECT * FROM store_bindings").fetchall()
    return {ROOT_INODE_ID: DEFAULT_STORE_ID} | dict(bound)


def binding_of(tx: Transaction, directory_inode: int) -> int:
    """The store for new files in the directory: that of the nearest bound ancestor, itself included."""
    # Every creation asks, and most volumes have one store: the way up is not worth walking there.
    if tx.execute("SELECT 1 FROM store_bindings LIMIT 1").fetchone() is None:
        return DEFAULT_STORE_ID
    row = tx.execute(
        # UNION, not UNION ALL: a damaged index with a cycle must not hold up its mount for ever.
        "WITH RECURSIVE upwards (id) AS ("
        " VALUES (?) UNION"
        " SELECT dentries.parent_id FROM upwards JOIN dentries ON dentries.inode_id = upwards.id"
        ") SELECT store_bindings.store_id FROM upwards"
        " CROSS JOIN store_bindings ON store_bindings.directory_id = upwards.id LIMIT 1",
        (directory_inode,),
    ).fetchone()
    return row[0] if row is not None else DEFAULT_STORE_ID


def _config(row: Any) -> StoreConfig:
    return StoreConfig(
        id=row[0],
        name=row[1],
        bucket=row[2],
        prefix=row[3],
        keying=Keying(row[4]),
        digest_algorithm=DigestAlgorithm(row[5]),
        cached=bool(row[6]),
        conditional_put=bool(row[7]),
    )
