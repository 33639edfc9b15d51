"""The filesystem as a set of calls: POSIX semantics free of FUSE, S3 and SQL.

``fuse/operations.py`` translates kernel requests to these calls one by one; tests call them directly, with no
mount in the loop; the control socket calls the operator's part (sync, copy, stores, status). Errors are those
of :mod:`s3blobfs.errors`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import AccessTimes
from s3blobfs.errors import FilesystemError
from s3blobfs.fs.attributes import AttributeChanges, Attributes, Caller, FilesystemUsage
from s3blobfs.fs.changing import Changing
from s3blobfs.fs.content import Event
from s3blobfs.fs.copying import Copying
from s3blobfs.fs.core import Core, IndexCopy, NoIndexCopy, Notifier, SilentNotifier
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.lending import Lending
from s3blobfs.fs.listing import DIRECTORY_PAGE_ENTRIES, DirectoryEntry, Listing
from s3blobfs.fs.loan import BackingFiles
from s3blobfs.fs.making import Making
from s3blobfs.fs.namespace import Namespace
from s3blobfs.fs.opening import OpenFile, Opening
from s3blobfs.fs.operating import CoreStatus, Operating
from s3blobfs.fs.ranges import RangeCalls
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing
from s3blobfs.fs.xattrs import ExtendedAttributes
from s3blobfs.index import inodes
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.uploads import UploadRow
from s3blobfs.tier.cache import CacheEntry
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Tracer
from s3blobfs.types import BlobContent, Buffer, Durability
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.uploader import Uploader, UploadListener

log = logging.getLogger(__name__)

SUPERUSER = Caller(uid=0, gid=0)
FREE_BYTES = 1 << 50
FREE_INODES = 1 << 32
"""What statfs says is left: S3 has no end, and programs that ask want room, not infinity."""


class Filesystem:
    """One mounted volume."""

    def __init__(
        self,
        *,
        db: Database,
        tier: Tier,
        stores: Mapping[int, BlobStore],
        make_uploader: Callable[[UploadListener], Uploader],
        reaper: Reaper,
        tracer: Tracer,
        durability: Durability,
        read_only: bool = False,
        notifier: Notifier | None = None,
        index_copy: IndexCopy | None = None,
        index_sync: bool = False,
        access_times: AccessTimes | None = None,
        control_path: str | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        new_object_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """``stores`` by id; the mapping is read anew at each use, so that stores can be added.
        ``make_uploader`` is handed the listener of its news."""
        self._core = core = Core(
            db=db,
            tier=tier,
            stores=stores,
            uploader=make_uploader(self),
            reaper=reaper,
            tracer=tracer,
            durability=durability,
            read_only=read_only,
            notifier=notifier or SilentNotifier(),
            index_copy=index_copy or NoIndexCopy(),
            index_sync=index_sync,
            access_times=access_times or AccessTimes(),
            now_ns=now_ns,
        )
        self._namespace = Namespace(core)
        self._making = Making(core, new_object_id)
        self._reading = Reading(core)
        self._lending = Lending(core, self._reading)
        self._writing = Writing(core, self._reading, self._lending)
        self._opening = Opening(core, self._namespace, self._reading, self._writing, self._lending)
        self._listing = Listing(core)
        self._changing = Changing(core, self._writing)
        self._copying = Copying(core, self._namespace, self._making, self._reading, self._writing)
        self._ranges = RangeCalls(core, self._reading, self._writing, self._copying)
        self._operating = Operating(core, self._writing, self._lending)
        self._xattrs = ExtendedAttributes(core, self._reading, control_path)

    @property
    def stores(self) -> Mapping[int, BlobStore]:
        """The volume's stores by id."""
        return self._core.stores

    @property
    def uploader(self) -> Uploader:
        return self._core.uploader

    @property
    def reaper(self) -> Reaper:
        return self._core.reaper

    def stored(self, upload_id: int, inode: InodeRow, blob: BlobContent, entry: CacheEntry | None) -> None:
        """An upload ended (:class:`UploadListener`)."""
        self._writing.stored(upload_id, inode, blob, entry)

    def set_notifier(self, notifier: Notifier) -> None:
        """Who tells the kernel; known once there is a mount."""
        self._core.notifier = notifier

    def lend_to(self, kernel: BackingFiles, min_bytes: int) -> None:
        """Let the kernel read files of the cache by itself from now on, if they are not smaller than that.
        ``OSError`` where it cannot, or the cache's disk."""
        self._lending.start(kernel, min_bytes)

    async def watch_loans(self) -> None:
        """Beside the requests of a kernel that is lent files; until cancelled."""
        await self._opening.watch_loans()

    async def kernel_notified(self) -> None:
        """Return when the kernel has heard of what changed without its doing, so that every program sees it.

        Not for a request of the kernel's own, nor under an inode's lock: it may take a notice only after such
        a request, of any program, is answered."""
        await self._core.notifier.delivered()

    def refuse_changes(self) -> None:
        """From now on this is a read-only filesystem."""
        self._core.read_only = True

    async def resume(self, recovered: Mapping[int, tuple[UploadRow, StagedFile]]) -> None:
        """Show the acknowledged content of a previous process whose uploads are only now on their way."""
        for inode_id, (upload, staged) in recovered.items():
            inode = await self._core.inode(inode_id)
            content = inode.content
            assert content is not None
            content.stage(staged)
            content.move(Event.SEAL)
            content.upload_id = upload.id

    # -- inodes --------------------------------------------------------------------------------------

    async def lookup(self, parent_id: int, name: bytes) -> Attributes | None:
        """Attributes behind a name, and one more reference for the kernel; ``None`` without such a name."""
        inode = await self._namespace.lookup(parent_id, name)
        return None if inode is None else await self._refer(inode)

    async def _refer(self, inode: InCoreInode) -> Attributes:
        inode.lookup_count += 1
        await self._core.make_room()
        return inode.attributes()

    async def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """The kernel drops so many references to each inode."""
        leaving = []
        for inode_id, count in references:
            inode = self._core.inodes.find(inode_id)
            if inode is None:
                continue
            inode.lookup_count = max(0, inode.lookup_count - count)
            if inode.disposable:
                leaving.append(inode)
        await self._core.write_pending_times(leaving)
        for inode in leaving:
            self._core.inodes.release(inode)

    async def getattr(self, inode_id: int) -> Attributes:
        """stat(2)."""
        return (await self._core.inode(inode_id)).attributes()

    async def setattr(self, inode_id: int, changes: AttributeChanges) -> Attributes:
        """chmod(2), chown(2), truncate(2), utimensat(2): each field alone or several at once.

        A truncate of a file that nobody has open for writing is a change with no close to follow: it waits
        for S3 itself, as a close would."""
        inode = await self._core.inode(inode_id)
        await self._changing.change(inode, changes)
        if changes.size_bytes is not None:
            await self._core.acknowledge()
        return inode.attributes()

    async def readlink(self, inode_id: int) -> bytes:
        """readlink(2); ``EINVAL`` for what is no symbolic link."""
        target = (await self._core.inode(inode_id)).row.target
        if target is None:
            raise FilesystemError(errno.EINVAL)
        return target

    async def access(self, inode_id: int, mask: int, caller: Caller) -> bool:
        """access(2)."""
        return await self._changing.may((await self._core.inode(inode_id)).row, mask, caller)

    async def statfs(self) -> FilesystemUsage:
        """statfs(2)."""
        usage = await self._core.db.read(inodes.usage)
        return FilesystemUsage(usage.bytes, usage.inodes, FREE_BYTES, FREE_INODES)

    # -- names ---------------------------------------------------------------------------------------

    async def mknod(self, parent_id: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        """mknod(2): regular files, fifos, sockets and devices."""
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        if not any(test(mode) for test in _NODE_TYPES):
            raise FilesystemError(errno.EINVAL)
        return await self._refer(await self._making.make(parent_id, name, mode, caller, rdev=rdev))

    async def mkdir(self, parent_id: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """mkdir(2)."""
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return await self._refer(await self._making.make(parent_id, name, mode, caller))

    async def symlink(self, parent_id: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """symlink(2)."""
        mode = stat.S_IFLNK | 0o777
        return await self._refer(await self._making.make(parent_id, name, mode, caller, target=target))

    async def link(self, inode_id: int, parent_id: int, name: bytes) -> Attributes:
        """link(2)."""
        return await self._refer(await self._namespace.link(inode_id, parent_id, name))

    async def unlink(self, parent_id: int, name: bytes) -> None:
        """unlink(2)."""
        await self._namespace.unlink(parent_id, name)

    async def rmdir(self, parent_id: int, name: bytes) -> None:
        """rmdir(2)."""
        await self._namespace.rmdir(parent_id, name)

    async def rename(
        self, old_parent_id: int, old_name: bytes, new_parent_id: int, new_name: bytes, flags: int = 0
    ) -> None:
        """renameat2(2)."""
        await self._namespace.rename(old_parent_id, old_name, new_parent_id, new_name, flags)

    # -- directories ---------------------------------------------------------------------------------

    async def opendir(self, inode_id: int) -> int:
        """opendir(3)."""
        return (await self._listing.open(inode_id)).number

    async def readdir(
        self, handle: int, after: int, limit: int = DIRECTORY_PAGE_ENTRIES
    ) -> list[DirectoryEntry]:
        """readdir(3): a page of entries behind cookie ``after``; see :meth:`Listing.page`."""
        return await self._listing.page(self._core.handles.directory(handle), after, limit)

    def refer(self, entries: Sequence[DirectoryEntry]) -> None:
        """The kernel took entries of a listing; see :meth:`Listing.refer`."""
        self._listing.refer(entries)

    async def releasedir(self, handle: int) -> None:
        """closedir(3)."""
        await self._opening.let_go(self._core.handles.close_directory(handle).inode)

    async def fsyncdir(self) -> None:
        """fsync(2) of a directory: the index is on disk, and with durability ``s3`` every staged file is in
        S3."""
        if self._core.durability is Durability.S3:
            await self.sync(None, None)
        await self._core.db.commit()
        await self._core.acknowledge()

    # -- files ---------------------------------------------------------------------------------------

    async def create(
        self, parent_id: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[OpenFile, Attributes]:
        """open(2) with O_CREAT."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        inode = await self._making.make(parent_id, name, mode, caller, exclusive=bool(flags & os.O_EXCL))
        opened = await self._opening.open(inode, flags, created=True)
        return opened, await self._refer(inode)

    async def open(self, inode_id: int, flags: int, caller: Caller = SUPERUSER) -> OpenFile:
        """open(2) of a regular file that exists, O_TRUNC included."""
        inode = await self._core.inode(inode_id)
        if flags & os.O_TRUNC:
            if not caller.privileged:
                await self._changing.drop_set_id(inode)
            await self._xattrs.drop_capability(inode)
        return await self._opening.open(inode, flags)

    async def read(self, handle: int, offset: int, size: int) -> Buffer:
        """pread(2)."""
        return await self._reading.read(self._core.handles.file(handle), offset, size)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """pwrite(2)."""
        return await self._writing.write(self._core.handles.file(handle), offset, data)

    async def copy_file_range(
        self, source: int, offset: int, target: int, target_offset: int, length: int
    ) -> int:
        """copy_file_range(2); see :meth:`RangeCalls.copy`."""
        files = self._core.handles
        return await self._ranges.copy(files.file(source), offset, files.file(target), target_offset, length)

    async def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2); see :meth:`RangeCalls.allocate`."""
        await self._ranges.allocate(self._core.handles.file(handle), mode, offset, length)

    async def seek(self, handle: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        return await self._ranges.seek(self._core.handles.file(handle), offset, whence)

    async def flush(self, handle: int) -> None:
        """close(2) of one descriptor; what it promises depends on the durability."""
        opened = self._core.handles.file(handle)
        self._reading.finish_trace(opened)
        if opened.writable:
            await self._writing.close(opened.inode)
            await self._core.acknowledge()

    async def fsync(self, handle: int) -> None:
        """fsync(2) and fdatasync(2)."""
        inode = self._core.handles.file(handle).inode
        await self._writing.sync(inode, durability=self._core.durability)
        await self._core.acknowledge()

    async def release(self, handle: int) -> None:
        """The last descriptor of an open(2) is gone, and every mapping made through it."""
        await self._opening.release(handle)

    # -- extended attributes -------------------------------------------------------------------------

    async def getxattr(self, inode_id: int, name: bytes) -> bytes:
        """getxattr(2)."""
        return await self._xattrs.get(await self._core.inode(inode_id), name)

    async def listxattr(self, inode_id: int) -> list[bytes]:
        """listxattr(2)."""
        return await self._xattrs.names(await self._core.inode(inode_id))

    async def setxattr(self, inode_id: int, name: bytes, value: bytes, caller: Caller) -> None:
        """setxattr(2)."""
        await self._xattrs.set(await self._core.inode(inode_id), name, value, caller)

    async def removexattr(self, inode_id: int, name: bytes) -> None:
        """removexattr(2)."""
        await self._xattrs.remove(await self._core.inode(inode_id), name)

    # -- for the operator ----------------------------------------------------------------------------

    async def sync(self, inode_id: int | None, progress: Callable[[int, int], None] | None) -> None:
        """A barrier; see :meth:`Operating.sync`."""
        await self._operating.sync(inode_id, progress)

    def blob_changed(self, blob: BlobContent) -> None:
        """An object was made anew; see :meth:`Operating.blob_changed`."""
        self._operating.blob_changed(blob)

    async def close(
        self, progress: Callable[[int, int], None] | None = None, *, detach: bool = False
    ) -> None:
        """Unmount: let go of every handle, then the barrier; see :meth:`Operating.end`."""
        for handle in self._core.handles.files():
            await self.release(handle.number)
        await self._opening.end_loans()
        for directory in self._core.handles.directories():
            await self.releasedir(directory.number)
        await self._operating.end(progress, detach=detach)

    async def copy_file(
        self, source_id: int, parent_id: int, name: bytes, *, replace: bool, caller: Caller
    ) -> int:
        """Copy a regular file without moving its bytes; see :meth:`Copying.copy_file`. No close follows."""
        copy_id = await self._copying.copy_file(source_id, parent_id, name, replace=replace, caller=caller)
        await self._core.acknowledge()
        return copy_id

    async def bind_store(self, directory_id: int, store_id: int) -> None:
        """New files below a directory go to this store from now on."""
        await self._operating.bind_store(directory_id, store_id)

    def status(self) -> CoreStatus:
        return self._operating.status()


_NODE_TYPES = (stat.S_ISREG, stat.S_ISFIFO, stat.S_ISSOCK, stat.S_ISCHR, stat.S_ISBLK)
