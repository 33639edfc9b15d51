"""Making files of every type, as one index transaction each: place, owner, mode and access lists.

Every check is made inside the transaction; see :mod:`s3blobfs.fs.namespace`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass

from s3blobfs.config import SYMLINK_TARGET_MAX_BYTES
from s3blobfs.errors import FilesystemError
from s3blobfs.fs import acl
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.core import Core, check_name
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.index import blobs, dentries, inodes, stores, xattrs
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import BlobContent, Keying, StoredContent


@dataclass(frozen=True, slots=True)
class GivenContent:
    """What a file is made with: a blob that is there already."""

    blob: BlobContent
    """The original; in the new file's store it is referred to itself."""
    stored: StoredContent | None
    """Its copy in the new file's store, if that is another one."""
    store_id: int
    object_id: str | None


class Making:
    def __init__(self, core: Core, new_object_id: Callable[[], str]) -> None:
        self._core = core
        self._new_object_id = new_object_id

    async def make(
        self,
        parent_id: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
        exclusive: bool = True,
        given: GivenContent | None = None,
    ) -> InCoreInode:
        """Make a file of any type, as mknod(2), mkdir(2), symlink(2) and open(2) with O_CREAT do.

        ``EEXIST`` when the name is taken; with ``exclusive=False`` a regular file that is there already is
        the answer. ``mode`` holds the type; the directory's default ACL or the umask takes from it."""
        core = self._core
        core.refuse_if_read_only()
        check_name(name)
        if target is not None and len(target) > SYMLINK_TARGET_MAX_BYTES:
            raise FilesystemError(errno.ENAMETOOLONG)
        if target == b"":
            raise FilesystemError(errno.ENOENT)

        lists: dict[bytes, bytes] = {}
        known = await self._known_xattrs(parent_id)

        def transaction(tx: Transaction) -> tuple[InodeRow, InodeRow]:
            parent = live_directory(tx, parent_id)
            now = core.now_ns()
            made_mode, gid = _inherit(parent, mode, caller)
            handed_on = xattrs.find(tx, parent_id, acl.DEFAULT) if known is None else known.get(acl.DEFAULT)
            made_mode, inherited = _inherit_acl(handed_on, made_mode, caller)
            lists.update(inherited)
            store_id = object_id = None
            if given is not None:
                store_id, object_id = given.store_id, given.object_id
            elif stat.S_ISREG(mode):
                store_id, object_id = self.place_below(tx, parent_id)
            row = inodes.insert(
                tx,
                mode=made_mode,
                uid=caller.uid,
                gid=gid,
                nlink=2 if stat.S_ISDIR(mode) else 1,
                now_ns=now,
                rdev=rdev,
                target=target,
                store_id=store_id,
                object_id=object_id,
            )
            for list_name, value in lists.items():
                xattrs.set(tx, row.id, list_name, value)
            if given is not None:
                row = give_blob(tx, row, given, now)
            dentries.insert(tx, parent_id, name, row.id)
            if stat.S_ISDIR(mode):
                inodes.add_links(tx, parent_id, 1, now)
            return row, inodes.entry_changed(tx, parent_id, now)

        try:
            row, parent_row = await core.db.write(transaction)
        except FilesystemError as error:
            if error.errno != errno.EEXIST or exclusive:
                raise
            # The kernel has looked before, so somebody else was quicker.
            taken = await core.db.read(lambda tx: dentries.lookup(tx, parent_id, name))
            if taken is None or not stat.S_ISREG(taken.mode):
                raise
            return core.inodes.admit(taken)
        core.inodes.refresh(parent_row)
        inode = core.inodes.admit(row)
        if inode.xattrs is None:
            inode.xattrs = lists
        return inode

    async def _known_xattrs(self, inode_id: int) -> dict[bytes, bytes] | None:
        """``None`` where the inode is not in core: who makes something there is told so by the index."""
        inode = self._core.inodes.find(inode_id)
        return None if inode is None else await self._core.xattrs_of(inode)

    def place_below(self, tx: Transaction, directory_id: int) -> tuple[int, str | None]:
        """Where a new file in a directory goes: the store bound to the nearest directory at or above it, and
        there, if its keys are for life, a key."""
        config = self._core.stores[stores.binding_of(tx, directory_id)].config
        return config.id, self._new_object_id() if config.keying is Keying.VERSIONED else None


def give_blob(tx: Transaction, row: InodeRow, given: GivenContent, now_ns: int) -> InodeRow:
    """Make the blob, or its copy, the content of a file; the times are the caller's."""
    if given.stored is None:
        blob = blobs.add_ref(tx, given.blob.blob_id)
    else:
        blob = blobs.adopt(tx, given.store_id, given.stored, given.blob.digests, now_ns)
    changed = inodes.update(tx, row.id, blob_id=blob.id, size_bytes=given.blob.size_bytes)
    if row.blob_id is not None:
        blobs.drop_ref(tx, row.blob_id, now_ns, superseded=True)
    return changed


def live_directory(tx: Transaction, inode_id: int) -> InodeRow:
    """The row of a directory that still has its name; ``ENOENT`` for one that was removed while open."""
    row = inodes.find(tx, inode_id)
    if row is None or row.nlink == 0:
        raise FilesystemError(errno.ENOENT)
    if not stat.S_ISDIR(row.mode):
        raise FilesystemError(errno.ENOTDIR)
    return row


def _inherit(parent: InodeRow, mode: int, caller: Caller) -> tuple[int, int]:
    """Mode and group of what is made in a directory: set-group-ID directories hand on their group, and to
    directories the bit itself (inode(7)). Stripping the bit from files of a foreign group is the kernel's
    part (``mode_strip_sgid``)."""
    if not parent.mode & stat.S_ISGID:
        return mode, caller.gid
    return mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode, parent.gid


def _inherit_acl(handed_on: bytes | None, mode: int, caller: Caller) -> tuple[int, dict[bytes, bytes]]:
    """Mode and ACLs of what is made in a directory. Its default ACL, ``handed_on``, stands in the place of
    the umask, and goes on to directories (acl(5))."""
    if stat.S_ISLNK(mode):
        return mode, {}
    default = None if handed_on is None else acl.Acl.decode(handed_on)
    if handed_on is None or default is None:
        return mode & ~caller.umask, {}
    access, mode = default.inherited(mode)
    lists = {} if access is None else {acl.ACCESS: access.encode()}
    if stat.S_ISDIR(mode):
        lists[acl.DEFAULT] = handed_on
    return mode, lists
