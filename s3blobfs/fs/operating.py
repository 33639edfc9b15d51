"""What an operator asks of a whole mount: barriers, its end, where a store is bound, gauges."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass

from s3blobfs.errors import FilesystemError, S3BlobFSError
from s3blobfs.fs.core import Core
from s3blobfs.fs.lending import Lending
from s3blobfs.fs.writing import Writing
from s3blobfs.index import stores
from s3blobfs.types import BlobContent, Durability

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoreStatus:
    """Gauges of the filesystem itself."""

    inodes_in_core: int
    open_files: int
    dirty_files: int
    dirty_bytes: int
    lent_files: int
    """That the kernel reads by itself."""


class Operating:
    def __init__(self, core: Core, writing: Writing, lending: Lending) -> None:
        self._core = core
        self._writing = writing
        self._lending = lending

    async def sync(self, inode_id: int | None, progress: Callable[[int, int], None] | None) -> None:
        """A barrier: returns when the file (``None``: everything) is in S3 as it is now and the index is on
        disk. ``progress`` hears of files and bytes left. Files open for writing are stored as they are."""
        core = self._core
        if inode_id is not None:
            inode = await core.inode(inode_id)
            if inode.content is not None:
                await self._writing.sync(inode, durability=Durability.S3)
                await core.index_copy.barrier()
                return
        failure = await self._seal_all()
        await core.uploader.barrier(progress)
        await core.db.commit()
        await core.index_copy.barrier()
        if failure is not None:
            raise failure

    def blob_changed(self, blob: BlobContent) -> None:
        """An object was made anew: readers, those at work too, go to where it is now."""
        for inode in self._core.inodes:
            content = inode.content
            if content is not None and content.blob is not None and content.blob.blob_id == blob.blob_id:
                content.blob = blob
        for handle in self._core.handles.files():
            if handle.reader_blob_id == blob.blob_id:
                handle.reader_blob_id = None

    async def _seal_all(self) -> S3BlobFSError | None:
        """Seal everything that is staged; one that cannot be sealed does not keep the others. Answers the
        last failure."""
        failure: S3BlobFSError | None = None
        for inode in self._core.inodes:
            content = inode.content
            staged = content is not None and (content.staged is not None or inode.live is not None)
            if staged and inode.row.nlink and not inode.removed:
                try:
                    await self._writing.seal(inode)
                except S3BlobFSError as error:
                    log.error("inode %d cannot be sealed: %s", inode.id, error)
                    failure = error
        return failure

    async def end(self, progress: Callable[[int, int], None] | None, *, detach: bool) -> None:
        """The last calls of a mount, when nothing is open any more: the barrier, then the reaper's due work.
        ``detach`` leaves to the next mount what is not in S3 yet: it is sealed and journalled, on disk."""
        core = self._core
        await core.write_pending_times(list(core.inodes))
        if core.read_only:
            return
        if detach:
            await self._seal_all()
            await core.db.commit()
            return
        await self.sync(None, progress)
        left = await core.reaper.drain()
        if left:
            log.info("%d objects are left to delete at the next mount", left)
        await core.index_copy.barrier()

    async def bind_store(self, directory_id: int, store_id: int) -> None:
        """New files below a directory go to this store from now on."""
        inode = await self._core.inode(directory_id)
        if not inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        await self._core.db.write(lambda tx: stores.bind(tx, directory_id, store_id), durable=True)

    def status(self) -> CoreStatus:
        dirty = [
            inode.content.staged
            for inode in self._core.inodes
            if inode.content is not None and inode.content.staged is not None
        ]
        return CoreStatus(
            inodes_in_core=len(self._core.inodes),
            open_files=len(self._core.handles.files()),
            dirty_files=len(dirty),
            dirty_bytes=sum(staged.size_bytes for staged in dirty),
            lent_files=self._lending.count,
        )
