"""The kernel's requests, translated to calls of the filesystem and back. Translates only."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FUSEError, InodeT, RequestContext

from s3blobfs.errors import S3BlobFSError
from s3blobfs.fs import acl
from s3blobfs.fs.attributes import Attributes
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fs.listing import DIRECTORY_PAGE_ENTRIES
from s3blobfs.fuse import convert, ioctl
from s3blobfs.fuse.errno_table import errno_of
from s3blobfs.fuse.extension.libfuse import OpenBit
from s3blobfs.fuse.extension.session import Extension

log = logging.getLogger(__name__)

FIRST_PAGE_ENTRIES = 32
"""Asked for in a listing before it is known how many the kernel takes in one request: some 20 (older ones) or
some hundreds. What it does not take has been read in vain."""

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


def _answering(handler: Handler) -> Handler:
    """Errors leave here, once: ours by the table, anything else as EIO with a traceback in the log, since a
    bug in one request must not take the mount down."""

    @functools.wraps(handler)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return await handler(*args, **kwargs)
        except S3BlobFSError as error:
            raise FUSEError(errno_of(error)) from error
        except FUSEError:
            raise
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from error

    return cast("Handler", answer)


class Operations(pyfuse3.Operations):
    """Handlers of pyfuse3; arguments and meanings are documented there."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        filesystem: Filesystem,
        *,
        entry_timeout_s: float,
        attr_timeout_s: float,
        extension: Extension,
    ) -> None:
        super().__init__()
        self._extension = extension
        self._fs = filesystem
        self._entry_timeout_s = entry_timeout_s
        self._attr_timeout_s = attr_timeout_s
        self._room = FIRST_PAGE_ENTRIES
        """How many entries the last answer had room for, of those that were full."""

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        return convert.entry_attributes(attributes, self._entry_timeout_s, self._attr_timeout_s)

    def init(self) -> None:
        self._extension.connected()

    # -- inodes --------------------------------------------------------------------------------------

    @_answering
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        attributes = await self._fs.lookup(parent_inode, name)
        if attributes is None:
            return convert.absent_entry(self._entry_timeout_s)
        return self._entry(attributes)

    @_answering
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        await self._fs.forget(inode_list)

    @_answering
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.getattr(inode))

    @_answering
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = convert.attribute_changes(attr, fields, convert.caller(ctx))
        return self._entry(await self._fs.setattr(inode, changes))

    @_answering
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(await self._fs.readlink(inode))

    @_answering
    async def access(self, inode: InodeT, mode: pyfuse3.ModeT, ctx: RequestContext) -> bool:
        return await self._fs.access(inode, mode, convert.caller(ctx))

    @_answering
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        return convert.statvfs(await self._fs.statfs())

    # -- names ---------------------------------------------------------------------------------------

    @_answering
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: pyfuse3.ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self._fs.mknod(parent_inode, name, mode, rdev, convert.caller(ctx)))

    @_answering
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: pyfuse3.ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self._fs.mkdir(parent_inode, name, mode, convert.caller(ctx)))

    @_answering
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self._fs.symlink(parent_inode, name, target, convert.caller(ctx)))

    @_answering
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self._fs.link(inode, new_parent_inode, new_name))

    @_answering
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.unlink(parent_inode, name)

    @_answering
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name)

    @_answering
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> None:
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # -- directories ---------------------------------------------------------------------------------

    @_answering
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = FileHandleT(await self._fs.opendir(inode))
        # Good until a name changes, which the kernel either does itself or is told of.
        self._extension.add_to_answer(handle, OpenBit.CACHE_READDIR | OpenBit.KEEP_CACHE)
        return handle

    @_answering
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        answered, limit = 0, self._room + self._room // 16
        while entries := await self._fs.readdir(fh, start_id, limit):
            taken = convert.reply_entries(token, entries, self._entry_timeout_s, self._attr_timeout_s)
            self._fs.refer(entries[:taken])
            answered += taken
            if taken < len(entries):
                self._room = max(1, answered)
                return
            start_id = entries[-1].cookie
            limit = min(max(FIRST_PAGE_ENTRIES, answered), DIRECTORY_PAGE_ENTRIES)

    @_answering
    async def releasedir(self, fh: FileHandleT) -> None:
        await self._fs.releasedir(fh)

    @_answering
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.fsyncdir()

    # -- files ---------------------------------------------------------------------------------------

    @_answering
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        opened, attributes = await self._fs.create(parent_inode, name, mode, flags, convert.caller(ctx))
        info = FileInfo(fh=FileHandleT(opened.handle), keep_cache=opened.keep_cache)
        return info, self._entry(attributes)

    @_answering
    async def open(self, inode: InodeT, flags: pyfuse3.FlagT, ctx: RequestContext) -> FileInfo:
        opened = await self._fs.open(inode, flags, convert.caller(ctx))
        reads_only = flags & os.O_ACCMODE == os.O_RDONLY
        if lent := opened.lent:
            self._extension.answer_open(
                opened.handle, lent.number, only_mappings=lent.only_mappings, reads_only=reads_only
            )
        elif reads_only:
            self._extension.add_to_answer(opened.handle, OpenBit.NOFLUSH)
        return FileInfo(fh=FileHandleT(opened.handle), keep_cache=opened.keep_cache)

    @_answering
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        data = await self._fs.read(fh, off, size)
        return cast("bytes", data)  # pyfuse3 takes whatever has a buffer

    @_answering
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @_answering
    async def flush(self, fh: FileHandleT) -> None:
        await self._fs.flush(fh)

    @_answering
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.fsync(fh)

    @_answering
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.release(fh)

    # -- what pyfuse3 does not bind ------------------------------------------------------------------

    @_answering
    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        return await self._fs.copy_file_range(fh_in, offset_in, fh_out, offset_out, length)

    @_answering
    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        await self._fs.fallocate(fh, mode, offset, length)

    @_answering
    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        return await self._fs.seek(fh, offset, whence)

    @_answering
    async def ioctl(self, inode: int, command: int, data: bytes, answer_max_bytes: int) -> bytes:
        if command != ioctl.SYNC:
            raise FUSEError(errno.ENOTTY)
        await self._fs.sync(inode, None)
        return b""

    # -- extended attributes -------------------------------------------------------------------------

    @_answering
    async def getxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> bytes:
        return await self._fs.getxattr(inode, name)

    @_answering
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in await self._fs.listxattr(inode)]

    @_answering
    async def setxattr(
        self, inode: InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        caller = convert.caller_in_groups(ctx) if name in acl.NAMES else convert.caller(ctx)
        await self._fs.setxattr(inode, name, value, caller)

    @_answering
    async def removexattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> None:
        await self._fs.removexattr(inode, name)
