"""Names: looking them up, moving and removing them. Each change is one index transaction.

Every check is made inside the transaction that acts on it. What the kernel checks before it asks
(permissions under ``default_permissions``, sticky directories, rename loops within one mount) is not checked
again, except where a caller that is not the kernel could break the tree.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import Final

from s3blobfs.errors import FilesystemError
from s3blobfs.fs.core import Core, check_name
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.making import live_directory
from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow

RENAME_NOREPLACE: Final = 1 << 0
RENAME_EXCHANGE: Final = 1 << 1
"""renameat2(2)."""

LINK_MAX: Final = 2**31 - 1
"""Names one file may have; the kernel keeps the count in 32 bits."""


@dataclass(slots=True)
class _Changed:
    """Rows that a transaction wrote, and inodes it removed from the index for good."""

    rows: list[InodeRow] = field(default_factory=list)
    destroyed: list[InodeRow] = field(default_factory=list)
    journal: list[UploadRow] = field(default_factory=list)
    """Rows of the journal that went with them."""


class Namespace:
    def __init__(self, core: Core) -> None:
        self._core = core

    # -- looking up ----------------------------------------------------------------------------------

    async def lookup(self, parent_id: int, name: bytes) -> InCoreInode | None:
        """The inode behind a name; ``None`` when there is no such name. ``.`` and ``..`` are answered for
        the sake of NFS export."""
        core = self._core
        if name in (b".", b".."):
            parent = await core.inode(parent_id)
            if name == b"." or parent_id == inodes.ROOT_INODE_ID:
                return parent
            above = await core.db.read(lambda tx: dentries.parent_of(tx, parent_id))
            return None if above is None else await core.inode(above)
        names = core.names
        known = names.find(parent_id, name)
        if known is not None and (inode := core.inodes.find(known)) is not None:
            return inode
        check_name(name)
        changes = names.changes
        row = await core.db.read(lambda tx: dentries.lookup(tx, parent_id, name))
        if row is None:
            return None
        names.note(parent_id, name, row.id, changes)
        return core.inodes.admit(row)

    # -- adding ----------------------------------------------------------------------------------------

    async def link(self, inode_id: int, parent_id: int, name: bytes) -> InCoreInode:
        """link(2)."""
        core = self._core
        core.refuse_if_read_only()
        check_name(name)

        def transaction(tx: Transaction) -> tuple[InodeRow, InodeRow]:
            live_directory(tx, parent_id)
            row = inodes.get(tx, inode_id)
            if stat.S_ISDIR(row.mode):
                raise FilesystemError(errno.EPERM)
            if row.nlink == 0:
                raise FilesystemError(errno.ENOENT)
            if row.nlink >= LINK_MAX:
                raise FilesystemError(errno.EMLINK)
            if dentries.find(tx, parent_id, name) is not None:
                raise FilesystemError(errno.EEXIST)
            now = core.now_ns()
            dentries.insert(tx, parent_id, name, inode_id)
            return (
                inodes.add_links(tx, inode_id, 1, now),
                inodes.entry_changed(tx, parent_id, now),
            )

        row, parent_row = await core.db.write(transaction)
        core.inodes.refresh(parent_row)
        inode = core.inodes.admit(row)
        inode.ctime_ns = None
        return inode

    # -- removing ------------------------------------------------------------------------------------

    async def unlink(self, parent_id: int, name: bytes) -> None:
        """unlink(2). The last name of a file that is open leaves an orphan, reaped at the last close."""
        core = self._core
        core.refuse_if_read_only()
        check_name(name)

        def transaction(tx: Transaction) -> _Changed:
            changed = _Changed()
            row = dentries.lookup(tx, parent_id, name)
            if row is None:
                raise FilesystemError(errno.ENOENT)
            if stat.S_ISDIR(row.mode):
                raise FilesystemError(errno.EISDIR)
            now = core.now_ns()
            dentries.remove(tx, parent_id, name)
            self._drop_name(tx, row, now, changed)
            changed.rows.append(inodes.entry_changed(tx, parent_id, now))
            return changed

        changed = await core.db.write(transaction)
        core.names.forget((parent_id, name))
        await self._after(changed)

    async def rmdir(self, parent_id: int, name: bytes) -> None:
        """rmdir(2)."""
        core = self._core
        core.refuse_if_read_only()
        check_name(name)

        def transaction(tx: Transaction) -> _Changed:
            changed = _Changed()
            row = dentries.lookup(tx, parent_id, name)
            if row is None:
                raise FilesystemError(errno.ENOENT)
            if not stat.S_ISDIR(row.mode):
                raise FilesystemError(errno.ENOTDIR)
            if not dentries.is_empty(tx, row.id):
                raise FilesystemError(errno.ENOTEMPTY)
            now = core.now_ns()
            dentries.remove(tx, parent_id, name)
            self._drop_directory(tx, row, now, changed)
            inodes.add_links(tx, parent_id, -1, now)
            changed.rows.append(inodes.entry_changed(tx, parent_id, now))
            return changed

        changed = await core.db.write(transaction)
        core.names.forget((parent_id, name))
        await self._after(changed)

    def _drop_name(self, tx: Transaction, row: InodeRow, now_ns: int, changed: _Changed) -> None:
        """A name of a file that is not a directory is gone."""
        inode = self._core.inodes.find(row.id)
        if row.nlink > 1 or (inode is not None and inode.open_count > 0):
            changed.rows.append(inodes.add_links(tx, row.id, -1, now_ns))
        else:
            self._destroy(tx, row, now_ns, changed)

    def _drop_directory(self, tx: Transaction, row: InodeRow, now_ns: int, changed: _Changed) -> None:
        """The only name of an empty directory is gone."""
        inode = self._core.inodes.find(row.id)
        if inode is not None and inode.open_count > 0:
            changed.rows.append(inodes.add_links(tx, row.id, -row.nlink, now_ns))
        else:
            self._destroy(tx, row, now_ns, changed)

    def _destroy(self, tx: Transaction, row: InodeRow, now_ns: int, changed: _Changed) -> None:
        """Remove an inode without names and handles, all that hangs on it, and its reference to a blob."""
        changed.journal += uploads.supersede(tx, row.id)
        inodes.remove(tx, row.id)
        if row.blob_id is not None:
            blobs.drop_ref(tx, row.blob_id, now_ns, superseded=False)
        changed.destroyed.append(row._replace(nlink=0, ctime_ns=now_ns, change=tx.sequence))

    async def _after(self, changed: _Changed) -> None:
        """Carry what a transaction changed into core."""
        core = self._core
        for row in changed.rows:
            core.inodes.refresh(row)
        await core.discard_staged(changed.journal)
        for row in changed.destroyed:
            core.uploader.forget_inode(row.id)
            inode = core.inodes.find(row.id)
            if inode is None:
                # Evicted, but the kernel has looked it up, and may be asked about what it refers to.
                inode = core.inodes.admit(row)
                inode.lookup_count = 1
            inode.apply(row)
            inode.removed = True
            if inode.content is not None:
                # Without handles, but a truncate(2) by the path may still be at work.
                async with inode.lock:
                    staged = inode.content.destroy()
                    if staged is not None:
                        await staged.discard()
            core.inodes.release(inode)
        if any(row.blob_id is not None for row in changed.destroyed):
            core.reaper.wake()

    async def reap_orphan(self, inode: InCoreInode) -> None:
        """The last handle of an inode without names was closed."""
        if self._core.read_only:
            return  # not any more this mount's to remove: the next one does

        def transaction(tx: Transaction) -> _Changed:
            changed = _Changed()
            row = inodes.find(tx, inode.id)
            if row is not None and row.nlink == 0 and inode.open_count == 0:
                self._destroy(tx, row, self._core.now_ns(), changed)
            return changed

        await self._after(await self._core.db.write(transaction))

    # -- moving --------------------------------------------------------------------------------------

    async def rename(
        self, old_parent_id: int, old_name: bytes, new_parent_id: int, new_name: bytes, flags: int
    ) -> None:
        """renameat2(2), with RENAME_NOREPLACE and RENAME_EXCHANGE; ``EINVAL`` for other flags. Never moves
        data, whatever stores it crosses."""
        core = self._core
        core.refuse_if_read_only()
        check_name(old_name)
        check_name(new_name)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise FilesystemError(errno.EINVAL)

        def transaction(tx: Transaction) -> _Changed:
            changed = _Changed()
            source = dentries.lookup(tx, old_parent_id, old_name)
            if source is None:
                raise FilesystemError(errno.ENOENT)
            live_directory(tx, new_parent_id)
            target = dentries.lookup(tx, new_parent_id, new_name)
            if stat.S_ISDIR(source.mode) and dentries.is_ancestor(tx, source.id, new_parent_id):
                raise FilesystemError(errno.EINVAL)
            if flags & RENAME_EXCHANGE:
                if target is None:
                    raise FilesystemError(errno.ENOENT)
                if stat.S_ISDIR(target.mode) and dentries.is_ancestor(tx, target.id, old_parent_id):
                    raise FilesystemError(errno.EINVAL)
            elif target is not None and flags & RENAME_NOREPLACE:
                raise FilesystemError(errno.EEXIST)
            if target is not None and target.id == source.id:
                return changed  # two names of one file: rename(2) does nothing
            now = core.now_ns()
            if flags & RENAME_EXCHANGE:
                assert target is not None
                dentries.retarget(tx, old_parent_id, old_name, target.id)
                dentries.retarget(tx, new_parent_id, new_name, source.id)
                changed.rows.append(inodes.update(tx, target.id, ctime_ns=now))
                from_old, to_new = stat.S_ISDIR(source.mode), stat.S_ISDIR(target.mode)
                moved_directories = int(from_old) - int(to_new)
            else:
                if target is not None:
                    _check_replaceable(tx, source, target)
                    dentries.remove(tx, new_parent_id, new_name)
                    if stat.S_ISDIR(target.mode):
                        self._drop_directory(tx, target, now, changed)
                        inodes.add_links(tx, new_parent_id, -1, now)
                    else:
                        self._drop_name(tx, target, now, changed)
                dentries.move(tx, old_parent_id, old_name, new_parent_id, new_name)
                moved_directories = int(stat.S_ISDIR(source.mode))
            if moved_directories and old_parent_id != new_parent_id:
                inodes.add_links(tx, old_parent_id, -moved_directories, now)
                inodes.add_links(tx, new_parent_id, moved_directories, now)
            changed.rows.append(inodes.update(tx, source.id, ctime_ns=now))
            for parent_id in {old_parent_id, new_parent_id}:
                changed.rows.append(inodes.entry_changed(tx, parent_id, now))
            return changed

        changed = await core.db.write(transaction)
        core.names.forget((old_parent_id, old_name), (new_parent_id, new_name))
        await self._after(changed)


def _check_replaceable(tx: Transaction, source: InodeRow, target: InodeRow) -> None:
    """rename(2): a directory replaces only an empty directory, anything else only what is no directory."""
    if stat.S_ISDIR(source.mode):
        if not stat.S_ISDIR(target.mode):
            raise FilesystemError(errno.ENOTDIR)
        if not dentries.is_empty(tx, target.id):
            raise FilesystemError(errno.ENOTEMPTY)
    elif stat.S_ISDIR(target.mode):
        raise FilesystemError(errno.EISDIR)
