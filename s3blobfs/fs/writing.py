"""Writing: staging, sealing, and waiting for S3.

A change stages the whole file (a copy of the cached blob, a large cached blob itself, or nothing for a new or
emptied one); a close,
fsync or barrier seals it: the digest is finished, the journal row is written, the upload is queued, and the
caller waits as far as the volume's durability asks. One index transaction before the upload (the journal),
one after it (the commit).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from s3blobfs.config import OBJECT_MAX_BYTES
from s3blobfs.errors import FilesystemError, TierUnavailable
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.fs import journal
from s3blobfs.fs.content import Content, State
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.journal import new_write_id
from s3blobfs.fs.lending import Lending
from s3blobfs.fs.reading import Reading
from s3blobfs.index import blobs, inodes, uploads
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.tier.cache import CacheEntry
from s3blobfs.tier.demotion import DEMOTED_LEAST_BYTES, demote
from s3blobfs.tier.staging import StagedFile
from s3blobfs.trace import Local
from s3blobfs.types import BlobContent, Buffer, Durability
from s3blobfs.writeback.uploader import UploadTicket

log = logging.getLogger(__name__)

COPY_CHUNK_BYTES = 4 * 1024 * 1024
"""Read at once when a blob that is not cached is staged for writing."""


class Writing:
    def __init__(
        self, core: Core, reading: Reading, lending: Lending, write_id: Callable[[], str] = new_write_id
    ) -> None:
        self._core = core
        self._reading = reading
        self._lending = lending
        self._write_id = write_id

    # -- changing ------------------------------------------------------------------------------------

    async def write(self, handle: FileHandle, offset: int, data: Buffer) -> int:
        """pwrite(2) of all of ``data``; with O_APPEND not beyond the end of the file.

        The kernel itself turns an append into a write at the end that it knows, and that can be ahead of
        ours (a direct copy has put a smaller content there). What comes before the end through such a handle
        is a store through a mapping, which the kernel sends by any handle that is open for writing.

        ``EFBIG`` beyond what one S3 object holds; :class:`TierFull` when the local tier has no room, or, with
        durability ``disk``, the queue of uploads (see :mod:`s3blobfs.writeback.admission`)."""
        if not handle.writable:
            raise FilesystemError(errno.EBADF)
        if self._core.durability is Durability.DISK:
            # With S3 the closer waits for its upload anyway. Not in close: what was taken is queued, and who
            # closes does not wait for S3. Not under the inode's lock: others may read it meanwhile.
            await self._core.uploader.admission.admit(len(data))
        inode = handle.inode
        async with inode.lock:
            if handle.appends:
                offset = min(offset, inode.size_bytes)
            if offset + len(data) > OBJECT_MAX_BYTES:
                raise FilesystemError(errno.EFBIG)
            staged = await self.writable(inode, changes_from=offset)
            written = await staged.write(offset, data)
            reached(Failpoint.STAGED)
            self._core.uploader.early.wrote(staged, inode.row, self._write_id)
            inode.touch(self._core.now_ns())
            return written

    async def truncate(self, inode: InCoreInode, size_bytes: int) -> None:
        """ftruncate(2): the caller sees to it that the change is sealed in the end. ``EFBIG`` beyond what one
        S3 object holds, unless somebody has the file open for writing, who may yet make it smaller."""
        self._core.refuse_if_read_only()
        if size_bytes > OBJECT_MAX_BYTES and inode.writer_count == 0:
            raise FilesystemError(errno.EFBIG)
        async with inode.lock:
            if inode.removed:
                return  # its last name went after the path was looked up, and nobody sees the bytes
            content = _content(inode)
            if size_bytes != inode.size_bytes:
                staged = await self.writable(inode, keep_bytes=size_bytes, changes_from=size_bytes)
                await staged.truncate(size_bytes)
            inode.touch(self._core.now_ns())
            if content.state is not State.DIRTY:
                # truncate(2) to the size the file has marks the times and nothing else.
                await self.write_times(inode)

    async def write_times(self, inode: InCoreInode) -> None:
        """Bring an inode's pending times into the index."""
        mtime_ns, ctime_ns, atime_ns = inode.mtime_ns, inode.ctime_ns, inode.atime_ns

        def transaction(tx: Transaction) -> InodeRow | None:
            if inodes.find(tx, inode.id) is None:
                return None
            return _update_times(tx, inode.id, mtime_ns, ctime_ns, atime_ns)

        row = await self._core.db.write(transaction)
        if row is not None:
            inode.apply(row)
        inode.settle_times(mtime_ns, ctime_ns, atime_ns)

    async def writable(
        self, inode: InCoreInode, keep_bytes: int | None = None, changes_from: int = 0
    ) -> StagedFile:
        """The inode's staged file, made from what the content is now. Caller holds the inode's lock.

        ``keep_bytes``: only so many bytes of the present content are wanted. ``changes_from``: the first byte
        that is going to be changed next."""
        self._core.refuse_if_read_only()
        content = _content(inode)
        live = await self._lending.make_live(inode)
        if content.state is State.DIRTY:
            assert content.staged is not None
            return content.staged
        if live is not None:
            self._lending.stage(inode, live)
            return live
        wanted = inode.size_bytes if keep_bytes is None else min(keep_bytes, inode.size_bytes)
        local = Local.of(self._core.store_of(inode).cached)
        if content.state is State.SEALED and wanted > 0:
            assert content.staged is not None
            staged = await _unsealed(content.staged, changes_from)
        elif wanted == 0:
            staged = await self._core.tier.staging.create(local)
        else:
            staged = await self._stage_blob(inode, wanted, local)
        content.stage(staged)
        return staged

    async def notice(self, inode: InCoreInode) -> None:
        """Find what was stored through mappings, unseen, until now."""
        if inode.live is not None:
            async with inode.lock:
                self._lending.notice(inode)

    async def overwrite_lent(self, inode: InCoreInode, blob: BlobContent) -> bool:
        """If others read a file that the inode is lent, write the bytes of the blob into it: they have no
        other. False if not. Caller holds the inode's lock."""
        if await self._lending.make_live(inode) is None:
            return False
        # All of it first: what S3 does not give must not leave a half of it.
        source = await self._copy_blob(blob, blob.size_bytes, Local.of(self._core.store_of(inode).cached))
        source.pin()
        try:
            staged = await self.writable(inode)
            await staged.truncate(0)
            await staged.fill_from(source.fd, blob.size_bytes)
            inode.touch(self._core.now_ns())
        finally:
            await source.discard()
            source.unpin()
        return True

    async def _stage_blob(self, inode: InCoreInode, wanted: int, local: Local) -> StagedFile:
        blob = await self._reading.blob(inode)
        if wanted == blob.size_bytes >= DEMOTED_LEAST_BYTES:
            staged = await self._stage_demoted(inode, blob, local)
            if staged is not None:
                return staged
        return await self._copy_blob(blob, wanted, local)

    async def _copy_blob(self, blob: BlobContent, wanted: int, local: Local) -> StagedFile:
        """A staged file with the first bytes of a blob."""
        tier = self._core.tier
        entry = tier.cache.get(blob.store_id, blob.location.cache_name, blob.size_bytes)
        if entry is not None:
            try:
                return await tier.staging.create_from(local, entry, wanted, blob.digests)
            except TierUnavailable as error:
                log.info("%s is staged by reading it: %s", blob.location.object_key, error)
            finally:
                entry.unpin()
        staged = await tier.staging.create(local)
        try:
            reader = await self._reading.open_blob(blob)
            try:
                for offset in range(0, wanted, COPY_CHUNK_BYTES):
                    data = await reader.read(offset, min(COPY_CHUNK_BYTES, wanted - offset))
                    await staged.write(offset, data)
            finally:
                await reader.aclose()
        except BaseException:
            await staged.discard()
            raise
        staged.came_from(blob.digests)
        return staged

    async def _stage_demoted(self, inode: InCoreInode, blob: BlobContent, local: Local) -> StagedFile | None:
        """The cached file itself, if no other file has the same content."""
        tier, name = self._core.tier, blob.location.cache_name
        row = await self._core.db.read(lambda tx: blobs.find_id(tx, blob.blob_id))
        if row is None or row.refs > 1 or not tier.cache.contains(blob.store_id, name):
            return None
        await self._reading.leave(inode)  # they read what is staged from now on
        try:
            return demote(tier.cache, tier.staging, local, blob.store_id, name, blob.digests)
        except TierUnavailable as error:
            log.info("%s is staged by copying it: %s", blob.location.object_key, error)
            return None

    # -- sealing -------------------------------------------------------------------------------------

    async def close(self, inode: InCoreInode) -> None:
        """What close(2) of a changed file promises: with durability ``s3`` the object is in S3 and its
        commit on disk; with ``disk`` staged file and journal row survive a crash of this process."""
        if inode.row.nlink == 0 or inode.removed:
            return  # without a name there is nothing to find again
        ticket = await self.seal(inode)
        if ticket is None or self._core.durability is Durability.DISK:
            # Of a file that was made and never written, too: it is there.
            await self._core.db.flush(inode.row.change)
        else:
            await self.wait(inode, ticket)

    async def sync(self, inode: InCoreInode, *, durability: Durability) -> None:
        """What fsync(2) promises: ``s3`` as close; ``disk``: staged data and index are on the local disk."""
        content = _content(inode)
        if inode.row.nlink == 0 or inode.removed:
            return
        _refuse_what_no_object_holds(inode)
        await self.notice(inode)
        if durability is Durability.S3:
            ticket = await self.seal(inode)
            if ticket is not None:
                await self.wait(inode, ticket)
        elif content.state is State.DIRTY or content.prefix is not None:
            await self._journal_dirty(inode)
        elif content.state is State.SEALED and content.staged is not None:
            await content.staged.sync()
        await self._core.db.commit()

    async def wait(self, inode: InCoreInode, ticket: UploadTicket) -> None:
        """Until the content is in S3; raises the error of an attempt that fails meanwhile. One that failed
        before is repeated at once: who waits is not to sit out its delay."""
        self._core.uploader.hurry(inode.id)
        await ticket.wait()

    async def seal(self, inode: InCoreInode) -> UploadTicket | None:
        """Journal the staged content and queue its upload. Answers the ticket of the upload that holds the
        present content, ``None`` when nothing is on its way. ``EFBIG`` for more than an object holds."""
        async with inode.lock:
            _refuse_what_no_object_holds(inode)
            content = _content(inode)
            if content.prefix is not None:
                await self.writable(inode)
            self._lending.notice(inode)
            if content.state is State.DIRTY:
                if inode.size_bytes == 0:
                    await self._seal_empty(inode, content)
                else:
                    await self._seal_staged(inode, content)
            return content.ticket

    async def _seal_staged(self, inode: InCoreInode, content: Content) -> None:
        core = self._core
        staged = await self._unchanging(inode)
        config = core.store_of(inode)
        try:
            digests = await staged.seal(rename=config.cached, keep_open=core.durability is Durability.S3)
        except BaseException:
            if staged is not content.staged:
                await staged.discard()
            raise
        reached(Failpoint.SEALED)
        write_id = core.uploader.early.write_id_of(staged) or self._write_id()
        dropped = core.uploader.supersede(inode.id)
        mtime_ns, ctime_ns, atime_ns = inode.mtime_ns, inode.ctime_ns, inode.atime_ns

        def transaction(tx: Transaction) -> tuple[InodeRow, UploadRow, list[UploadRow]]:
            old = [row for row in (uploads.finish(tx, upload_id) for upload_id in dropped) if row]
            old += journal.remove(tx, inode.id)
            row = inodes.take_changes(
                tx, inode.id, digests.size_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns, atime_ns=atime_ns
            )
            upload = uploads.insert(
                tx,
                inode_id=inode.id,
                store_id=config.id,
                staged_name=staged.name,
                size_bytes=digests.size_bytes,
                digests=digests,
                write_id=write_id,
                state=UploadState.SEALED,
                now_ns=core.now_ns(),
            )
            self._keep_mapped(tx, inode, digests.size_bytes)
            return row, upload, old

        row, upload, old = await core.db.write(transaction)
        reached(Failpoint.JOURNALLED)
        inode.apply(row)
        inode.settle_times(mtime_ns, ctime_ns, atime_ns)
        content.seal(upload.id, core.uploader.submit(upload, staged, row.object_id), staged)
        await core.discard_staged(old, keep=staged)

    def _keep_mapped(self, tx: Transaction, inode: InCoreInode, size_bytes: int) -> None:
        """Stores through mappings go on behind what is sealed."""
        if inode.mapped is not None:
            journal.insert(tx, self._core, inode, inode.mapped, size_bytes, self._write_id())

    async def _unchanging(self, inode: InCoreInode) -> StagedFile:
        """What a dirty content is sealed as."""
        staged = _content(inode).staged
        assert staged is not None
        return await self._lending.snapshot(inode) if staged is inode.live else staged

    async def _seal_empty(self, inode: InCoreInode, content: Content) -> None:
        """An emptied file has no object; what it had is superseded."""
        core = self._core
        staged = content.staged
        assert staged is not None
        mtime_ns, ctime_ns, atime_ns = inode.mtime_ns, inode.ctime_ns, inode.atime_ns

        def transaction(tx: Transaction) -> tuple[InodeRow, list[UploadRow]]:
            # An upload in flight loses its journal row too: its commit then lets go of the object.
            old = uploads.supersede(tx, inode.id)
            _update_times(tx, inode.id, mtime_ns, ctime_ns, atime_ns)
            before = inodes.get(tx, inode.id)
            row = inodes.update(tx, inode.id, size_bytes=0, blob_id=None)
            if before.blob_id is not None:
                blobs.drop_ref(tx, before.blob_id, core.now_ns(), superseded=True)
            self._keep_mapped(tx, inode, 0)
            return row, old

        row, old = await core.db.write(transaction, durable=core.durability is Durability.S3)
        core.uploader.forget_inode(inode.id)
        inode.apply(row)
        inode.settle_times(mtime_ns, ctime_ns, atime_ns)
        content.seal_empty()
        await core.discard_staged(old)
        if not staged.lent:
            await staged.discard()
        core.reaper.wake()

    async def _journal_dirty(self, inode: InCoreInode) -> None:
        """fsync(2) with durability ``disk``: bytes on disk, and a journal row that finds them again."""
        core = self._core
        async with inode.lock:
            content = _content(inode)
            if content.prefix is not None:
                await self.writable(inode)
            staged = content.staged
            if content.state is not State.DIRTY or staged is None:
                return
            await staged.sync()
            mtime_ns, ctime_ns, atime_ns = inode.mtime_ns, inode.ctime_ns, inode.atime_ns

            def transaction(tx: Transaction) -> InodeRow:
                journal.remove(tx, inode.id)
                row = inodes.take_changes(
                    tx, inode.id, staged.size_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns, atime_ns=atime_ns
                )
                journal.insert(tx, core, inode, staged, staged.size_bytes, self._write_id())
                return row

            inode.apply(await core.db.write(transaction))
            inode.settle_times(mtime_ns, ctime_ns, atime_ns)

    # -- after the upload ----------------------------------------------------------------------------

    def stored(self, upload_id: int, row: InodeRow, blob: BlobContent, entry: CacheEntry | None) -> None:
        """The uploader's news: an object is in S3 and committed (:class:`UploadListener`)."""
        if entry is not None:
            entry.unpin()
        inode = self._core.inodes.find(row.id)
        if inode is None:
            return
        inode.apply(row)
        if inode.content is not None and inode.content.stored(upload_id, blob):
            self._core.inodes.release(inode)


async def _unsealed(sealed: StagedFile, changes_from: int) -> StagedFile:
    """What a sealed file becomes when it is changed; the same local file if that is behind its end."""
    longer = sealed.extend() if changes_from >= sealed.size_bytes else None
    return await sealed.unseal_copy() if longer is None else longer


def _refuse_what_no_object_holds(inode: InCoreInode) -> None:
    if inode.size_bytes > OBJECT_MAX_BYTES:
        raise FilesystemError(errno.EFBIG, f"{inode.size_bytes} bytes; an S3 object has at most 5 TiB")


def _content(inode: InCoreInode) -> Content:
    if inode.content is None:
        raise FilesystemError(errno.EISDIR if inode.is_directory else errno.EINVAL)
    return inode.content


def _update_times(
    tx: Transaction, inode_id: int, mtime_ns: int | None, ctime_ns: int | None, atime_ns: int | None
) -> InodeRow:
    row = inodes.get(tx, inode_id)
    return inodes.update(
        tx,
        inode_id,
        mtime_ns=row.mtime_ns if mtime_ns is None else mtime_ns,
        ctime_ns=row.ctime_ns if ctime_ns is None else max(ctime_ns, row.ctime_ns),
        atime_ns=row.atime_ns if atime_ns is None else atime_ns,
    )
