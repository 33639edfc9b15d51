"""Reading: from the live or the staged file while there is one, else from the blob."""

from __future__ import annotations

import errno
import logging

from s3blobfs.errors import DamagedContent, FilesystemError, ObjectNotFound
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.siblings import Siblings
from s3blobfs.index import blobs, dentries
from s3blobfs.tier.fetch import ContentReader
from s3blobfs.trace import Arrow, Local, Party
from s3blobfs.types import BlobContent, Buffer

log = logging.getLogger(__name__)


class Reading:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._siblings = Siblings(core.db, core.tier, core.stores)

    async def read(self, handle: FileHandle, offset: int, size: int) -> Buffer:
        """pread(2): short only at the end of the file.

        A blob that is missing or altered in S3 is an error, never other bytes (:class:`DamagedContent`,
        :class:`ObjectNotFound`), logged with the file's path and the object."""
        if not handle.readable:
            raise FilesystemError(errno.EBADF)
        inode = handle.inode
        content = inode.content
        assert content is not None
        self._core.mark_access(inode)
        staged = inode.live or content.staged
        if staged is not None:
            staged.pin()
            try:
                data = await staged.read(offset, size)
            finally:
                staged.unpin()
            return data
        if content.state is State.EMPTY or size == 0 or offset >= inode.size_bytes:
            return b""
        if content.prefix is not None:
            size = min(size, inode.size_bytes - offset)
        handle.reads_under_way += 1
        try:
            data = await (await self._reader(handle)).read(offset, size)
        except (DamagedContent, ObjectNotFound) as error:
            await self._report_damage(inode, error)
            raise
        finally:
            handle.reads_under_way -= 1
            await self._close_left_readers(handle)
        self._trace_read(handle, offset, len(data))
        return data

    async def _reader(self, handle: FileHandle) -> ContentReader:
        blob = await self.blob(handle.inode)
        if handle.reader is not None and handle.reader_blob_id == blob.blob_id:
            return handle.reader
        async with handle.inode.lock:
            # Another read of this handle may have been here while this one waited.
            if handle.reader is None or handle.reader_blob_id != blob.blob_id:
                if handle.reader is not None:
                    handle.left_readers.append(handle.reader)
                handle.reader = await self.open_blob(blob)
                handle.reader_blob_id = blob.blob_id
                await self._siblings.opened(handle.inode.id, blob)
            return handle.reader

    async def _close_left_readers(self, handle: FileHandle) -> None:
        """Descriptors of one open file are duplicated across threads and processes: a reader that is in use
        by one read must not be closed by another."""
        while handle.left_readers and not handle.reads_under_way:
            await handle.left_readers.pop().aclose()

    async def leave(self, inode: InCoreInode) -> None:
        """Close what the handles of a file have open of its blob, unless they are reading. Caller holds the
        inode's lock."""
        for handle in self._core.handles.files():
            if handle.inode is inode and handle.reader is not None:
                handle.left_readers.append(handle.reader)
                handle.reader = handle.reader_blob_id = None
                await self._close_left_readers(handle)

    async def blob(self, inode: InCoreInode) -> BlobContent:
        """The blob of a ``CLEAN`` content; read from the index once."""
        content = inode.content
        assert content is not None
        if content.blob is None:
            blob_id = inode.row.blob_id
            assert blob_id is not None
            blob = self._siblings.known(inode.id, blob_id)
            if blob is None:
                blob = (await self._core.db.read(lambda tx: blobs.get(tx, blob_id))).content()
            if content.state is State.CLEAN and content.blob is None:
                content.blob = blob
            return blob
        return content.blob

    async def open_blob(self, blob: BlobContent) -> ContentReader:
        store = self._core.stores[blob.store_id]
        return await self._core.tier.fetcher.open(blob, store.open_source(blob), store.config.cached)

    async def close(self, handle: FileHandle) -> None:
        """The handle is released: nothing reads from it any more."""
        self.finish_trace(handle)
        if handle.reader is not None:
            handle.left_readers.append(handle.reader)
            handle.reader = handle.reader_blob_id = None
        await self._close_left_readers(handle)

    # -- trace ---------------------------------------------------------------------------------------

    def _trace_read(self, handle: FileHandle, offset: int, length: int) -> None:
        """Reads of a cached file are drawn as one step when they reach its end, or at close."""
        if not self._core.tracer.drawing:
            return
        handle.unreported_bytes += length
        if offset + length >= handle.inode.size_bytes:
            self.finish_trace(handle)

    def finish_trace(self, handle: FileHandle) -> None:
        """Draw what is left to draw of a handle's reads."""
        read_bytes, handle.unreported_bytes = handle.unreported_bytes, 0
        content = handle.inode.content
        if not read_bytes or content is None or content.blob is None:
            return
        blob = content.blob
        if self._core.stores[blob.store_id].config.cached:
            self._core.tracer.step(
                Party.CLIENT, Arrow.FROM, Local.CACHE, f"read {read_bytes} bytes", blob.location.cache_name
            )

    async def _report_damage(self, inode: InCoreInode, error: Exception) -> None:
        path = await self._core.db.read(lambda tx: dentries.path_of(tx, inode.id))
        log.error("reading %r (inode %d): %s", path, inode.id, error)
