"""Attributes: changing them, and the permissions they give."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from s3blobfs.fs import acl
from s3blobfs.fs.attributes import AttributeChanges, Caller
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.writing import Writing
from s3blobfs.index import inodes, xattrs
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction


class Changing:
    def __init__(self, core: Core, writing: Writing) -> None:
        self._core = core
        self._writing = writing

    async def change(self, inode: InCoreInode, changes: AttributeChanges) -> None:
        """Size first: times that are asked for together with it are set, not marked.

        A truncate of a file that nobody has open for writing waits for S3 as a close would."""
        self._core.refuse_if_read_only()
        if changes.size_bytes is not None:
            await self._writing.truncate(inode, changes.size_bytes)
            if inode.writer_count == 0:
                await self._writing.close(inode)
        changes = _with_dropped_bits(inode.row, changes)
        if changes.touches_row:
            await self._change_row(inode, changes)

    async def drop_set_id(self, inode: InCoreInode) -> None:
        """Somebody who may not keep set-id bits changes the content."""
        await self.change(inode, AttributeChanges(drops_set_id=True))

    async def _change_row(self, inode: InCoreInode, changes: AttributeChanges) -> None:
        async with inode.lock:
            row = inode.row
            pending = inode.mtime_ns, inode.ctime_ns, inode.atime_ns
            wanted = row._replace(
                mode=row.mode if changes.mode is None else stat.S_IFMT(row.mode) | changes.mode & 0o7777,
                uid=_first(changes.uid, row.uid),
                gid=_first(changes.gid, row.gid),
                atime_ns=_first(changes.atime_ns, inode.atime_ns, row.atime_ns),
                mtime_ns=_first(changes.mtime_ns, inode.mtime_ns, row.mtime_ns),
                ctime_ns=_first(changes.ctime_ns, self._core.now_ns()),
            )
            if inode.removed:
                inode.amend(wanted)
            elif _is_being_written(inode) and _differs_in_times_only(wanted, row):
                # As tar(1) and rsync(1) do before they close: that takes them along, as the times of writes.
                inode.atime_ns, inode.mtime_ns = wanted.atime_ns, wanted.mtime_ns
                inode.ctime_ns = wanted.ctime_ns
                return
            else:
                changed, access_list = await self._core.db.write(
                    lambda tx: _write_attributes(tx, wanted, mode_before=row.mode)
                )
                inode.apply(changed)
                if access_list is not None and inode.xattrs is not None:
                    inode.xattrs[acl.ACCESS] = access_list
            inode.settle_times(*pending)

    async def may(self, row: InodeRow, mask: int, caller: Caller) -> bool:
        """access(2) by the access ACL or the permission bits; ``mask`` of ``os.R_OK``, ``os.W_OK``,
        ``os.X_OK``."""
        if mask & os.W_OK and self._core.read_only:
            return False
        if caller.privileged:
            return not mask & os.X_OK or stat.S_ISDIR(row.mode) or bool(row.mode & 0o111)
        value = await self._core.db.read(lambda tx: xattrs.find(tx, row.id, acl.ACCESS))
        access_list = None if value is None else acl.Acl.decode(value)
        if access_list is not None:
            return access_list.allows(row.uid, row.gid, mask, caller)
        shift = 6 if caller.uid == row.uid else 3 if caller.in_group(row.gid) else 0
        return (row.mode >> shift) & mask & 0o7 == mask & 0o7


def _is_being_written(inode: InCoreInode) -> bool:
    """A close is still to come that writes the inode's row."""
    return inode.writer_count > 0 and inode.content is not None and inode.content.state is State.DIRTY


def _differs_in_times_only(wanted: InodeRow, row: InodeRow) -> bool:
    return (wanted.mode, wanted.uid, wanted.gid) == (row.mode, row.uid, row.gid)


def _with_dropped_bits(row: InodeRow, changes: AttributeChanges) -> AttributeChanges:
    """Set-user-ID goes, and set-group-ID where the group may execute (elsewhere it has meant mandatory
    locking): inode(7), chown(2)."""
    if not changes.drops_set_id or changes.mode is not None or stat.S_ISDIR(row.mode):
        return changes
    dropped = stat.S_ISUID | (stat.S_ISGID if row.mode & stat.S_IXGRP else 0)
    return replace(changes, mode=stat.S_IMODE(row.mode) & ~dropped) if row.mode & dropped else changes


def _first(*candidates: int | None) -> int:
    """The first that is set; the last one always is."""
    return next(candidate for candidate in candidates if candidate is not None)


def _write_attributes(
    tx: Transaction, wanted: InodeRow, *, mode_before: int
) -> tuple[InodeRow, bytes | None]:
    """Answers the access ACL, too, if the mode changed it (chmod(2) of a file that has one)."""
    # The list agrees with the mode as it was.
    access_list = _follow_mode(tx, wanted.id, wanted.mode) if wanted.mode != mode_before else None
    changed = inodes.update(
        tx,
        wanted.id,
        mode=wanted.mode,
        uid=wanted.uid,
        gid=wanted.gid,
        atime_ns=wanted.atime_ns,
        mtime_ns=wanted.mtime_ns,
        ctime_ns=wanted.ctime_ns,
    )
    return changed, access_list


def _follow_mode(tx: Transaction, inode_id: int, mode: int) -> bytes | None:
    """Bring the access ACL, if there is one, in step with new permission bits; answers it if it changed."""
    value = xattrs.find(tx, inode_id, acl.ACCESS)
    access_list = None if value is None else acl.Acl.decode(value)
    if access_list is None or access_list.permission_bits == mode & 0o777:
        return None
    value = access_list.with_permission_bits(mode).encode()
    xattrs.set(tx, inode_id, acl.ACCESS, value)
    return value
