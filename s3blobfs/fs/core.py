"""What the parts of the filesystem share: the layers below, the in-core tables, who is told of changes."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio
import trio.lowlevel

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import NAME_MAX_BYTES, AccessTimes
from s3blobfs.errors import FilesystemError, TierUnavailable
from s3blobfs.fs.handles import HandleTable
from s3blobfs.fs.incore import InCoreInode, InodeTable
from s3blobfs.fs.names import NameTable
from s3blobfs.index import inodes, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from s3blobfs.types import Durability, StoreConfig
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.uploader import Uploader

log = logging.getLogger(__name__)

RELATIME_NS = 24 * 3600 * 10**9
"""mount(8) relatime: atime is renewed when it is older than this, or not newer than mtime or ctime."""


class Notifier(Protocol):
    """Tells the kernel what changed without its doing. Must not block."""

    def entry_changed(self, parent_id: int, name: bytes) -> None:
        """Forget what the kernel knows of a name, its absence included."""
        ...

    def inode_changed(self, inode_id: int) -> None:
        """Forget an inode's cached attributes and pages."""
        ...

    async def delivered(self) -> None:
        """Return when the kernel has heard all that it was told so far."""
        ...


class SilentNotifier:
    """For a filesystem that no kernel looks at."""

    def entry_changed(self, parent_id: int, name: bytes) -> None:
        pass

    def inode_changed(self, inode_id: int) -> None:
        pass

    async def delivered(self) -> None:
        await trio.lowlevel.checkpoint()


class IndexCopy(Protocol):
    """The copy of the index in the bucket."""

    async def shipped(self) -> None:
        """Return when it has what was written until now; raises what S3 says when it cannot."""
        ...

    async def barrier(self) -> None:
        """The same, however long it takes."""
        ...


class NoIndexCopy:
    """There is none."""

    async def shipped(self) -> None:
        pass

    async def barrier(self) -> None:
        pass


@dataclass(slots=True)
class Core:
    """Shared by ``namespace``, ``reading``, ``writing``, ``copying`` and ``xattrs``; made by the facade."""

    db: Database
    tier: Tier
    stores: Mapping[int, BlobStore]
    uploader: Uploader
    reaper: Reaper
    tracer: Tracer
    durability: Durability
    read_only: bool
    notifier: Notifier = field(default_factory=SilentNotifier)
    index_copy: IndexCopy = field(default_factory=NoIndexCopy)
    index_sync: bool = False
    """With durability ``s3``, what is acknowledged is in the copy of the index, too."""
    access_times: AccessTimes = field(default_factory=AccessTimes)
    now_ns: Callable[[], int] = time.time_ns
    inodes: InodeTable = field(default_factory=InodeTable)
    names: NameTable = field(default_factory=NameTable)
    handles: HandleTable = field(default_factory=HandleTable)

    async def inode(self, inode_id: int) -> InCoreInode:
        """The in-core inode, brought in from the index if need be.

        :class:`FilesystemError` ``ESTALE`` when there is none: the kernel then looks the path up again."""
        inode = self.inodes.find(inode_id)
        if inode is not None:
            return inode
        row = await self.db.read(lambda tx: inodes.find(tx, inode_id))
        if row is None:
            raise FilesystemError(errno.ESTALE, f"inode {inode_id}")
        await self.make_room()
        inode = self.inodes.admit(row)
        # Who names an inode by its id refers to it. How often, was forgotten when it was evicted; the kernel
        # gives up all its references at once.
        inode.lookup_count = max(1, inode.lookup_count)
        return inode

    async def xattrs_of(self, inode: InCoreInode) -> dict[bytes, bytes]:
        """Every extended attribute of an inode, in core once one was asked for: the kernel asks for
        ``security.capability`` before the first write, and each file that is made for its directory's ACL."""
        if inode.xattrs is None:
            found = await self.db.read(lambda tx: xattrs.every(tx, inode.id))
            if inode.xattrs is None:
                inode.xattrs = found
        return inode.xattrs

    def mark_access(self, inode: InCoreInode) -> None:
        """A read renews the access time as with relatime, in core until the inode's row is written for
        another reason or leaves core."""
        wanted = self.access_times.directories if inode.is_directory else self.access_times.files
        if self.read_only or not wanted:
            return
        now = self.now_ns()
        atime = inode.row.atime_ns if inode.atime_ns is None else inode.atime_ns
        mtime = inode.row.mtime_ns if inode.mtime_ns is None else inode.mtime_ns
        ctime = inode.row.ctime_ns if inode.ctime_ns is None else inode.ctime_ns
        if atime <= mtime or atime <= ctime or now - atime >= RELATIME_NS:
            inode.atime_ns = now

    async def make_room(self) -> None:
        """Evict inodes that were not used for longest, if there are too many in core."""
        if self.inodes.crowded:
            leaving = self.inodes.idle()
            await self.write_pending_times(leaving)
            for inode in leaving:
                self.inodes.evict(inode)

    async def write_pending_times(self, leaving: Sequence[InCoreInode]) -> None:
        """Bring the access times of inodes that leave core into the index, all in one transaction."""
        pending = [(inode, inode.atime_ns) for inode in leaving if inode.atime_ns is not None]
        if not pending or self.read_only:
            return

        def transaction(tx: Transaction) -> list[InodeRow]:
            return [
                inodes.update(tx, inode.id, atime_ns=atime_ns)
                for inode, atime_ns in pending
                if inodes.find(tx, inode.id) is not None
            ]

        for row in await self.db.write(transaction):
            self.inodes.refresh(row)
        for inode, atime_ns in pending:
            inode.settle_times(None, None, atime_ns)

    def store_of(self, inode: InCoreInode) -> StoreConfig:
        """The store that a regular file's next blob goes to."""
        assert inode.row.store_id is not None
        return self.stores[inode.row.store_id].config

    async def discard_staged(self, rows: Sequence[UploadRow], keep: StagedFile | None = None) -> None:
        """Remove the staged files of journal rows that are gone, in favour of ``keep`` if there is one. One
        that the uploader is reading goes when it has finished."""
        doomed = []
        for row in rows:
            local = Local.of(self.stores[row.store_id].config.cached)
            try:
                staged = self.tier.staging.open(row.staged_name, local, row.digests)
            except TierUnavailable as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # else the uploader has removed it
                    log.warning("a staged file that is not needed any more stays: %s", error)
                continue
            if keep is not None and keep.origin is not None and row.digests is not None:
                keep.origin = keep.origin.without(row.digests)
            if staged is not keep and not staged.lent:
                doomed.append(staged)
        if not doomed:
            return
        # Until the commit a crash brings the rows back, and their files have to be there then.
        await self.uploader.secure(keep, promised=any(staged.promised for staged in doomed))
        for staged in doomed:
            await staged.discard()

    async def acknowledge(self) -> None:
        """The last step of a close or fsync that has changed something."""
        if self.index_sync and self.durability is Durability.S3:
            await self.index_copy.shipped()

    def refuse_if_read_only(self) -> None:
        if self.read_only:
            raise FilesystemError(errno.EROFS)


def check_name(name: bytes) -> None:
    """A directory entry's name: 1 to 255 bytes, neither ``.`` nor ``..``, without ``/`` and NUL."""
    if len(name) > NAME_MAX_BYTES:
        raise FilesystemError(errno.ENAMETOOLONG)
    if not name:
        raise FilesystemError(errno.ENOENT)
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FilesystemError(errno.EINVAL)
