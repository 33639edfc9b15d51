"""Opening and releasing files: who counts, and what the last one leaves."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from typing import Final

import trio

from s3blobfs.errors import FilesystemError, S3BlobFSError, TierError
from s3blobfs.fs.content import Content, State
from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.lending import Access, Lending
from s3blobfs.fs.namespace import Namespace
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing
from s3blobfs.index import uploads

log = logging.getLogger(__name__)

LINGER_MIN_S: Final = 0.02
LINGER_MAX_S: Final = 30.0
"""Between two looks at whether a mapping is left that has outlived the last handle: longer and longer."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The answer of open and create."""

    handle: int
    keep_cache: bool
    """The kernel's cached pages are still good."""
    lent: Access | None = None
    """The file that the kernel reads in place of asking here; then it keeps no pages."""


class Opening:
    def __init__(
        self, core: Core, namespace: Namespace, reading: Reading, writing: Writing, lending: Lending
    ) -> None:
        self._core = core
        self._namespace = namespace
        self._reading = reading
        self._writing = writing
        self._lending = lending

    async def open(self, inode: InCoreInode, flags: int, *, created: bool = False) -> OpenFile:
        """open(2) of a regular file, O_TRUNC included; ``ESTALE`` when it was removed meanwhile: the kernel
        then looks the path up again. So it is, too, when what was to be created turns out to be lent: the
        answer to create cannot say that (``created``)."""
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
            await self._settle(inode)
            if created and inode.loan is not None:
                raise FilesystemError(errno.ESTALE)
            lent = await self._lending.admit(handle, may_be_lent=not created)
            if truncates:
                await self._writing.truncate(inode, 0)
                if inode.writer_count == 0:
                    # With O_RDONLY, where Linux truncates, too: no close to come would store it.
                    await self._writing.close(inode)
                    await self._core.acknowledge()
        except BaseException:
            self._core.handles.close_file(handle.number)
            inode.writer_count -= writes
            self._lending.leave(handle)
            await self.let_go(inode)
            raise
        if lent is not None:
            return OpenFile(handle.number, keep_cache=False, lent=lent)
        if not handle.readable:
            # Who reads through the kernel's pages opens the file later, and they are judged then: to drop
            # those of a large file that was just written takes the kernel tens of milliseconds.
            return OpenFile(handle.number, keep_cache=True)
        keep_cache = inode.kernel_content_change == inode.content_change
        inode.kernel_content_change = inode.content_change
        return OpenFile(handle.number, keep_cache)

    async def release(self, number: int) -> None:
        """The last descriptor of an open(2) is gone, and every mapping made through it, unless the inode is
        lent a file."""
        opened = self._core.handles.close_file(number)
        inode = opened.inode
        await self._reading.close(opened)
        inode.writer_count -= opened.writable
        self._lending.leave(opened)
        try:
            if not await self._settle(inode) and opened.writable and inode.writer_count == 0:
                await self._seal_leftover(inode)
        finally:
            await self.let_go(inode)

    async def _settle(self, inode: InCoreInode) -> bool:
        """End the inode's loan, if it has one that nobody needs any more. True if that was looked at, and
        whatever mappings have left is on its way."""
        if inode.loan is None or inode.loan.handles:
            return False
        try:
            async with inode.lock:
                await self._lending.end(inode, by_force=inode.removed)
        except TierError as error:
            log.warning("inode %d stays lent: %s", inode.id, error)
        if inode.writer_count == 0:
            await self._seal_leftover(inode)
        return True

    async def watch_loans(self) -> None:
        """Until cancelled, end loans when the mappings are gone that have outlived the last handle, and store
        what was changed through them."""
        delay_s, known = LINGER_MIN_S, frozenset[InCoreInode]()
        while True:
            lingering = frozenset(await self._lending.linger())
            delay_s = min(2 * delay_s, LINGER_MAX_S) if lingering <= known else LINGER_MIN_S
            known = lingering
            await trio.sleep(delay_s)
            for inode in lingering:
                try:
                    await self._settle(inode)
                except S3BlobFSError as error:
                    log.error("what was stored through a mapping of inode %d stays: %s", inode.id, error)

    async def end_loans(self) -> None:
        """Nothing is lent any more: the kernel has unmounted."""
        for inode in self._lending.lent_inodes():
            async with inode.lock:
                await self._lending.end(inode, by_force=True)

    async def _seal_leftover(self, inode: InCoreInode) -> None:
        """Stores through a mapping can come after the close that flushed: nobody is left to hear of an error,
        so the content stays staged and the next sync tries again."""
        content = inode.content
        assert content is not None
        if not (content.in_flux or inode.live) or inode.removed or inode.row.nlink == 0:
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
            if not staged.lent:
                await staged.discard()
            core.notifier.inode_changed(inode.id)

    async def let_go(self, inode: InCoreInode) -> None:
        """A handle on the inode is gone; with the last one goes an orphan."""
        inode.open_count -= 1
        if inode.open_count == 0 and inode.row.nlink == 0 and not inode.removed:
            await self._namespace.reap_orphan(inode)
            await self._settle(inode)
        self._core.inodes.release(inode)
