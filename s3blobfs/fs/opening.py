"""Opening and releasing files: who counts, and what the last one leaves."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass

from s3blobfs.errors import FilesystemError, S3BlobFSError
from s3blobfs.fs.content import Content, State
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.namespace import Namespace
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing
from s3blobfs.index import uploads

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The answer of open and create."""

    handle: int
    keep_cache: bool
    """The kernel's cached pages are still good."""


class Opening:
    def __init__(self, core: Core, namespace: Namespace, reading: Reading, writing: Writing) -> None:
        self._core = core
        self._namespace = namespace
        self._reading = reading
        self._writing = writing

    async def open(self, inode: InCoreInode, flags: int) -> OpenFile:
        """open(2) of a regular file, O_TRUNC included; ``ESTALE`` when it was removed meanwhile: the kernel
        then looks the path up again."""
        if inode.content is None:
            raise FilesystemError(errno.EISDIR if inode.is_directory else errno.ENXIO)
        if inode.removed:
            raise FilesystemError(errno.ESTALE)
        writes, truncates = flags & os.O_ACCMODE != os.O_RDONLY, bool(flags & os.O_TRUNC)
        if writes or truncates:
            self._core.refuse_if_read_only()
        # Counted before anything is awaited: from here an unlink leaves an orphan.
        inode.open_count += 1
        inode.writer_count += writes
        handle = self._core.handles.open_file(inode, flags)
        try:
            if truncates:
                await self._writing.truncate(inode, 0)
                if inode.writer_count == 0:
                    # With O_RDONLY, where Linux truncates, too: no close to come would store it.
                    await self._writing.close(inode)
                    await self._core.acknowledge()
        except BaseException:
            self._core.handles.close_file(handle.number)
            inode.writer_count -= writes
            await self.let_go(inode)
            raise
        keep_cache = inode.kernel_content_change == inode.content_change
        inode.kernel_content_change = inode.content_change
        return OpenFile(handle.number, keep_cache)

    async def release(self, number: int) -> None:
        """The last descriptor of an open(2) is gone, and every mapping made through it."""
        opened = self._core.handles.close_file(number)
        inode = opened.inode
        await self._reading.close(opened)
        inode.writer_count -= opened.writable
        try:
            if opened.writable and inode.writer_count == 0:
                await self._seal_leftover(opened)
        finally:
            await self.let_go(inode)

    async def _seal_leftover(self, opened: FileHandle) -> None:
        """Stores through a mapping can come after the close that flushed: nobody is left to hear of an error,
        so the content stays staged and the next sync tries again."""
        inode = opened.inode
        content = inode.content
        assert content is not None
        if not content.in_flux or inode.removed or inode.row.nlink == 0:
            return
        if content.staged is not None and content.staged.failure is not None:
            await self._abandon(inode, content)
            return
        try:
            await self._writing.seal(inode)
        except S3BlobFSError as error:
            log.error("inode %d stays staged after its last close: %s", inode.id, error)

    async def _abandon(self, inode: InCoreInode, content: Content) -> None:
        """The disk has lost bytes of the staged file, and nobody writes it any more. Each writer was told by
        its close or fsync, so nothing was acknowledged, and the file has again what it had before. Unless an
        earlier fsync or close was acknowledged, whose bytes are in this file or in one before it: then it
        stays, unreadable, until the next mount takes up what the disk has kept, as after a crash."""
        async with inode.lock:
            staged = content.staged
            if content.state is not State.DIRTY or staged is None or staged.failure is None:
                return
            core = self._core
            if await core.db.read(lambda tx: uploads.latest_of(tx, inode.id)) is not None:
                log.error("inode %d stays staged until the next mount: %s", inode.id, staged.failure)
                return
            log.error("what was written to inode %d is given up: %s", inode.id, staged.failure)
            content.abandon(stored=inode.row.blob_id is not None)
            inode.mtime_ns = inode.ctime_ns = None
            inode.content_change += 1
            await staged.discard()
            core.notifier.inode_changed(inode.id)

    async def let_go(self, inode: InCoreInode) -> None:
        """A handle on the inode is gone; with the last one goes an orphan."""
        inode.open_count -= 1
        if inode.open_count == 0 and inode.row.nlink == 0 and not inode.removed:
            await self._namespace.reap_orphan(inode)
        self._core.inodes.release(inode)
