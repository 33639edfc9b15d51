"""Objects that were stored after the last state of the index that reached the bucket, taken into it.

A file whose ``close()`` returned is in S3, but what the index says of it may not have been sent yet when the
machine was lost. Its object says what file it is: one that the index has gets the content, its earlier one
being kept as after any change; another is made where its path says. Where the path is another file's, or the
file's own content may be the later one, what is restored stands beside it, under its name and the object's
key: nothing that the index names is taken away from anybody, and nothing is left to guessing.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.replica.placing import free_name, insert_file, place_of
from s3blobfs.replica.stored import StoredObject
from s3blobfs.types import Keying


class Outcome(enum.Enum):
    """What became of an object that no row named."""

    MADE = "made"
    """A file that the index did not know."""
    CHANGED = "changed"
    """A file that it knew with an earlier content, or none."""
    BESIDE = "beside"
    """A file of its own, under another name since its own is taken: by another file, or by a content of the
    same that may be the later one."""
    LOST_AND_FOUND = "lost+found"
    """A file whose place cannot be made."""
    LEFT = "left"
    """Nothing: a later content of the same file counts, or the index has this one."""


@dataclass(frozen=True, slots=True)
class Restored:
    """An object, and what became of it."""

    path: bytes | None
    """Where the file is; of what was left, where it would have been, as far as is known."""
    size_bytes: int
    object_key: str
    version_id: str | None
    modified_ns: int
    """When it was stored, by S3's clock."""
    outcome: Outcome


async def restore(db: Database, found: Sequence[StoredObject], now_ns: int) -> list[Restored]:
    """Take in what was found, the oldest first, each in a transaction of its own. Raises what the index
    does."""
    restored = []
    newest = {_file(each): each for each in found}
    for each in found:
        outcome, path = Outcome.LEFT, each.stamp.path
        if newest[_file(each)] is each:
            outcome, path = await db.write(lambda tx, each=each: _restore(tx, each, now_ns))  # type: ignore[misc]
        location = each.stored.location
        restored.append(
            Restored(
                path,
                each.digests.size_bytes,
                location.object_key,
                location.version_id,
                each.modified_ns,
                outcome,
            )
        )
    return restored


def _file(found: StoredObject) -> tuple[object, ...]:
    """What is the same for two contents of one file."""
    if found.store.keying is Keying.VERSIONED or found.stamp.inode_id is None:
        return found.store.id, found.name
    return found.store.id, found.stamp.inode_id, found.stamp.path


def _restore(tx: Transaction, found: StoredObject, now_ns: int) -> tuple[Outcome, bytes | None]:
    inode = _known(tx, found)
    if inode is None:
        return _make(tx, found, shares_key=False)
    path = dentries.path_of(tx, inode.id)
    if inode.blob_id is not None:
        digests = blobs.get(tx, inode.blob_id).digests
        if (digests.size_bytes, digests.sha256) == (found.digests.size_bytes, found.digests.sha256):
            return Outcome.LEFT, path
        if found.mtime_ns < inode.mtime_ns:
            # Perhaps a request in doubt that reached S3 late; perhaps a copy that keeps an old time.
            return _make(tx, found, shares_key=True)
    _settle_journal(tx, inode.id, found)
    blob = blobs.adopt(tx, found.store.id, found.stored, found.digests, found.modified_ns)
    inodes.update(
        tx,
        inode.id,
        blob_id=blob.id,
        size_bytes=found.digests.size_bytes,
        mtime_ns=found.mtime_ns,
        ctime_ns=now_ns,
    )
    if inode.blob_id is not None:
        blobs.drop_ref(tx, inode.blob_id, now_ns, superseded=True)
    return Outcome.CHANGED, path


def _known(tx: Transaction, found: StoredObject) -> InodeRow | None:
    """The file that this is a content of. In a ``versioned`` store its key says so; in a ``digest`` store
    number and path together, for a number alone may be another file's in another history of the volume."""
    number = found.stamp.inode_id
    inode = inodes.find(tx, number) if number is not None else None
    if found.store.keying is Keying.VERSIONED:
        if inode is None or (inode.store_id, inode.object_id) != (found.store.id, found.name):
            inode = inodes.find_with_object_id(tx, found.store.id, found.name)
    elif inode is not None:
        path, hint = dentries.path_of(tx, inode.id), found.stamp.path
        if path is None or hint is None:
            return None
        if not (path == hint if found.stamp.path_is_whole else path.endswith(b"/" + hint)):
            return None
    if inode is None or not stat.S_ISREG(inode.mode) or inode.nlink == 0:
        return None
    return inode


def _settle_journal(tx: Transaction, inode_id: int, found: StoredObject) -> None:
    """Rows up to that of this very upload are done. An upload without a row here came after them all."""
    rows = uploads.of_inode(tx, inode_id)
    written = [row.id for row in rows if row.write_id == found.stamp.write_id]
    last = written[-1] if written else max((row.id for row in rows), default=0)
    for row in rows:
        if row.id <= last:
            uploads.finish(tx, row.id)


def _make(tx: Transaction, found: StoredObject, *, shares_key: bool) -> tuple[Outcome, bytes | None]:
    inode_id = insert_file(tx, found, shares_key=shares_key)
    parent, name, lost = place_of(tx, found)
    outcome = Outcome.LOST_AND_FOUND if lost else Outcome.MADE
    if dentries.find(tx, parent, name) is not None:
        name = free_name(tx, parent, name, found.name)
        outcome = outcome if lost else Outcome.BESIDE
    dentries.insert(tx, parent, name, inode_id)
    return outcome, dentries.path_of(tx, inode_id)
