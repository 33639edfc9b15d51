"""The journal of an index whose staged files are gone: it was recovered on another machine."""

from __future__ import annotations

from dataclasses import dataclass

from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.transaction import Transaction


@dataclass(frozen=True, slots=True)
class LostContent:
    """A content that was staged where nobody can look, and never stored."""

    inode_id: int
    path: bytes | None
    """``None`` where no name leads to the file."""
    size_bytes: int
    kept_bytes: int | None
    """The size of the earlier content that the file has again; ``None``: it never had one, and is empty."""


def forget_staged(tx: Transaction) -> list[LostContent]:
    """Give every file with a journalled content its last stored one, and empty the journal."""
    lost = []
    for inode_id in sorted({row.inode_id for row in uploads.every(tx)}):
        newest = uploads.supersede(tx, inode_id)[-1]
        inode = inodes.get(tx, inode_id)
        kept = blobs.get(tx, inode.blob_id).digests.size_bytes if inode.blob_id is not None else None
        inodes.update(tx, inode_id, size_bytes=kept or 0)
        lost.append(LostContent(inode_id, dentries.path_of(tx, inode_id), newest.size_bytes, kept))
    return lost
