"""Calls on a range of a file's bytes: copy_file_range(2), fallocate(2), and lseek(2) for data and holes.

A copy of a whole content shares it, as a direct copy does: within a store that is one index transaction, into
another one server-side copy. Anything else is a copy of just those bytes, by reading and writing.

A kernel request names less than 4 GiB. So a copy of a larger content begins with a part of it: the target
then gets all of it, and shows as much as was copied so far (:class:`~s3blobfs.fs.content.Prefix`). When the
copy goes on, it shows more; when it does not, the target is cut when it is closed or synced. In between a
crash leaves it uncut: with all that the copy was of, for its reference to the content, which keeps the object
from being reaped while the source may go, is the same as that of a file which has it all.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from s3blobfs.config import GIB, MIB, OBJECT_MAX_BYTES
from s3blobfs.errors import BlobIsDeleting, FilesystemError, S3BlobFSError
from s3blobfs.fs.content import Content, State
from s3blobfs.fs.copying import Copying
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing
from s3blobfs.types import BlobContent

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10
"""fallocate(2). Other modes move bytes or are about shared extents: there are none in an object."""

PREFIX_MIN_BYTES: Final = 1 * GIB
"""Who begins with so much of a larger content copies the rest as well: what programs ask for at once is 1 GiB
or more, and what the kernel does, nearly 4."""
COPIED_AT_ONCE_BYTES: Final = 64 * MIB
"""The answer to one request for a copy of bytes; the kernel, or the program, then asks for more."""
CHUNK_BYTES: Final = 4 * MIB
"""Held in memory."""


class RangeCalls:
    def __init__(self, core: Core, reading: Reading, writing: Writing, copying: Copying) -> None:
        self._core = core
        self._reading = reading
        self._writing = writing
        self._copying = copying

    # -- copying -------------------------------------------------------------------------------------

    async def copy(
        self, source: FileHandle, offset: int, target: FileHandle, target_offset: int, length: int
    ) -> int:
        """copy_file_range(2): answers how many bytes were copied, which may be fewer than asked for; 0 at
        the end of the source."""
        if not source.readable or not target.writable or target.appends:
            raise FilesystemError(errno.EBADF)
        self._core.refuse_if_read_only()
        length = min(length, source.inode.size_bytes - offset)
        if length <= 0:
            return 0
        if target_offset + length > OBJECT_MAX_BYTES:
            raise FilesystemError(errno.EFBIG)
        if offset == target_offset and source.inode is not target.inode:
            await self._writing.notice(source.inode)
            content = _content(source.inode)
            if content.state is State.CLEAN and content.prefix is None:
                blob = await self._reading.blob(source.inode)
                if await self._share(blob, target.inode, offset, length):
                    return length
        return await self._copy_bytes(source, offset, target, target_offset, length)

    async def _share(self, blob: BlobContent, target: InCoreInode, offset: int, length: int) -> bool:
        """Let the target have the bytes by having all of the blob. False when that is not what it comes
        to."""
        content = _content(target)
        if target.loan is not None:
            return False  # others read the very file that the bytes have to go to
        if offset > 0:
            prefix = content.prefix
            if prefix is None or prefix.source_blob_id != blob.blob_id or prefix.size_bytes != offset:
                return False
            content.show(blob, offset + length)
            target.touch(self._core.now_ns())
            return True
        if length < min(blob.size_bytes, PREFIX_MIN_BYTES) or target.size_bytes > length or target.removed:
            return False
        try:
            await self._copying.take_over(blob, target)
        except BlobIsDeleting:
            return False  # it is not the source's content any more
        content.show(blob, length)
        return True

    async def _copy_bytes(
        self, source: FileHandle, offset: int, target: FileHandle, target_offset: int, length: int
    ) -> int:
        copied, length = 0, min(length, COPIED_AT_ONCE_BYTES)
        while copied < length:
            try:
                wanted = min(CHUNK_BYTES, length - copied)
                data = await self._reading.read(source, offset + copied, wanted)
                if not data:
                    break
                copied += await self._writing.write(target, target_offset + copied, data)
            except S3BlobFSError:
                if copied == 0:
                    raise
                break  # the next request will meet it again
        return copied

    # -- allocating ----------------------------------------------------------------------------------

    async def allocate(self, handle: FileHandle, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Room is kept until the file is closed: then it is stored, with its holes as zeros."""
        if not handle.writable:
            raise FilesystemError(errno.EBADF)
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise FilesystemError(errno.EOPNOTSUPP)
        punch, zero = mode & FALLOC_PUNCH_HOLE, mode & FALLOC_ZERO_RANGE
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        if punch and (zero or not keep_size):
            raise FilesystemError(errno.EOPNOTSUPP)
        if offset < 0 or length <= 0:
            raise FilesystemError(errno.EINVAL)
        end = offset + length
        if end > OBJECT_MAX_BYTES:
            raise FilesystemError(errno.EFBIG)
        inode = handle.inode
        async with inode.lock:
            size = inode.size_bytes
            if punch and offset >= size:
                return  # nothing is there
            staged = await self._writing.writable(inode)
            if not punch:
                await staged.allocate(offset, length, keep_size=keep_size)
            if (punch or zero) and offset < size:
                await staged.zero(offset, min(end, size), keep_room=not punch)
            inode.touch(self._core.now_ns())

    # -- holes ---------------------------------------------------------------------------------------

    async def seek(self, handle: FileHandle, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE. What is stored has no holes."""
        inode = handle.inode
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FilesystemError(errno.EINVAL)
        if offset < 0 or offset >= inode.size_bytes:
            raise FilesystemError(errno.ENXIO)
        staged = inode.live or _content(inode).staged
        if staged is None:
            return offset if whence == os.SEEK_DATA else inode.size_bytes
        staged.pin()
        try:
            found = await staged.seek(offset, whence)
        finally:
            staged.unpin()
        if found is None:
            raise FilesystemError(errno.ENXIO)
        return found


def _content(inode: InCoreInode) -> Content:
    assert inode.content is not None  # of what has a file handle
    return inode.content
