"""Names for files that come back from what their objects say of themselves.

The path in a stamp is a hint: it may be cut, it may be in the way of another file, and it may be hostile.
What has no place of its own goes to ``lost+found`` under its object's key.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from urllib.parse import quote

from s3blobfs.blobstore.keys import new_object_id
from s3blobfs.config import NAME_MAX_BYTES
from s3blobfs.errors import FilesystemError
from s3blobfs.index import blobs, dentries, inodes
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.replica.stored import StoredObject

LOST_AND_FOUND = b"lost+found"


def insert_file(tx: Transaction, found: StoredObject, *, shares_key: bool = False) -> int:
    """A file with the object as its content and the attributes that that says, still without a name; answers
    its id. ``shares_key``: the object's key is another file's, and what is written to this one goes under a
    key of its own."""
    stamp = found.stamp
    permissions = stat.S_IMODE(stamp.mode) if stamp.mode is not None else 0o600
    inode = inodes.insert(
        tx,
        mode=stat.S_IFREG | permissions,
        uid=stamp.uid if stamp.uid is not None else os.geteuid(),
        gid=stamp.gid if stamp.gid is not None else os.getegid(),
        nlink=1,
        now_ns=found.mtime_ns,
        store_id=found.store.id,
        object_id=new_object_id() if shares_key and found.object_id is not None else found.object_id,
        size_bytes=found.digests.size_bytes,
    )
    blob = blobs.adopt(tx, found.store.id, found.stored, found.digests, found.modified_ns)
    inodes.update(tx, inode.id, blob_id=blob.id)
    return inode.id


def place_of(tx: Transaction, found: StoredObject) -> tuple[int, bytes, bool]:
    """The directory, made if it is missing, and the name, which may be taken; and whether that is in
    ``lost+found``."""
    path = found.stamp.path
    own = _short(quote(found.name, safe="").encode())
    parts = path.split(b"/") if path else []
    if not parts or any(len(part) > NAME_MAX_BYTES for part in parts):
        parts = [LOST_AND_FOUND, own]
    elif not found.stamp.path_is_whole or parts[0] == LOST_AND_FOUND:
        rest = [part for part in parts if part != LOST_AND_FOUND]
        parts = [LOST_AND_FOUND, *(rest or [own])]
    try:
        parent = directory(tx, parts[:-1], found.mtime_ns)
    except FilesystemError:
        # A file has the name that this one's directory needs.
        parts = [LOST_AND_FOUND, parts[-1]]
        parent = directory(tx, parts[:-1], found.mtime_ns)
    return parent, parts[-1], parts[0] == LOST_AND_FOUND


def directory(tx: Transaction, parts: list[bytes], now_ns: int) -> int:
    """The directory of that path, made if it is missing, with the permissions and the owner of the one that
    it is in. Raises :class:`FilesystemError` where a file is in the way."""
    parent = inodes.get(tx, ROOT_INODE_ID)
    for name in parts:
        row = dentries.lookup(tx, parent.id, name)
        if row is None:
            row = inodes.insert(
                tx,
                mode=stat.S_IFDIR | stat.S_IMODE(parent.mode),
                uid=parent.uid,
                gid=parent.gid,
                nlink=2,
                now_ns=now_ns,
            )
            dentries.insert(tx, parent.id, name, row.id)
            inodes.add_links(tx, parent.id, 1, now_ns)
        elif not stat.S_ISDIR(row.mode):
            raise FilesystemError(errno.ENOTDIR, repr(name))
        parent = row
    return parent.id


def free_name(tx: Transaction, parent: int, name: bytes, key: str) -> bytes:
    """A name like this one that is free: with the object's key, and a number if need be."""
    mark = f"~{quote(key, safe='')[:32]}".encode()
    for number in range(1, 1_000_000):
        end = mark if number == 1 else mark + b".%d" % number
        candidate = name[: NAME_MAX_BYTES - len(end)] + end
        if dentries.find(tx, parent, candidate) is None:
            return candidate
    raise AssertionError("a million files of one name and one key")


def _short(name: bytes) -> bytes:
    """A name of at most NAME_MAX bytes; a longer one keeps its end, and what tells it from others."""
    if len(name) <= NAME_MAX_BYTES:
        return name
    mark = hashlib.sha256(name).hexdigest()[:16].encode() + b"~"
    return mark + name[len(mark) - NAME_MAX_BYTES :]
