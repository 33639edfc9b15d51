"""Journal rows of staged files that may still change: a mount that finds one takes up what the file has then.

Such a row stands for bytes that somebody counts on and that no upload has yet: those of an fsync with
durability ``disk``, and those that are stored through mappings of a live file (:mod:`s3blobfs.fs.lending`),
which msync(2) brings to the local disk without a word to us. It is the newest row of its inode, so it goes
and comes again with each seal.
"""

from __future__ import annotations

import uuid

from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.index import uploads
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.tier.staging import StagedFile


def new_write_id() -> str:
    """Names one upload for good, so that a PUT whose answer was lost can be found again."""
    return uuid.uuid4().hex


def insert(
    tx: Transaction, core: Core, inode: InCoreInode, staged: StagedFile, size_bytes: int, write_id: str
) -> None:
    """From now on the next mount finds the file. ``size_bytes``: what the index has for the inode; recovery
    goes by the file's."""
    uploads.insert(
        tx,
        inode_id=inode.id,
        store_id=core.store_of(inode).id,
        staged_name=staged.name,
        size_bytes=size_bytes,
        digests=None,
        write_id=write_id,
        state=UploadState.DIRTY,
        now_ns=core.now_ns(),
    )


def remove(tx: Transaction, inode_id: int) -> list[UploadRow]:
    """The row of a file that may still change, which is gone now; empty if there was none."""
    latest = uploads.latest_of(tx, inode_id)
    if latest is None or latest.state is not UploadState.DIRTY:
        return []
    uploads.finish(tx, latest.id)
    return [latest]
