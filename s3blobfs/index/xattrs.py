"""The table ``xattrs``: extended attributes, opaque to us."""

from __future__ import annotations

from s3blobfs.index.transaction import Transaction


def find(tx: Transaction, inode_id: int, name: bytes) -> bytes | None:
    row = tx.execute("SELECT value FROM xattrs WHERE inode_id = ? AND name = ?", (inode_id, name)).fetchone()
    return row[0] if row is not None else None


def every(tx: Transaction, inode_id: int) -> dict[bytes, bytes]:
    """In the order of their names' bytes."""
    return dict(tx.execute("SELECT name, value FROM xattrs WHERE inode_id = ? ORDER BY name", (inode_id,)))


def set(tx: Transaction, inode_id: int, name: bytes, value: bytes) -> None:
    """Add the attribute or change its value; ``ctime_ns`` of the inode is the caller's to set."""
    tx.modify("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (inode_id, name, value))


def names(tx: Transaction, inode_id: int) -> list[bytes]:
    """In the order of their bytes."""
    rows = tx.execute("SELECT name FROM xattrs WHERE inode_id = ? ORDER BY name", (inode_id,))
    return [name for (name,) in rows]


def remove(tx: Transaction, inode_id: int, name: bytes) -> bool:
    """Whether there was such an attribute."""
    tx.modify("DELETE FROM xattrs WHERE inode_id = ? AND name = ?", (inode_id, name))
    return tx.changes() > 0
