"""Direct copies: no byte passes through the client.

Within one store a copy is one index transaction: both inodes refer to the same immutable blob. Into another
store it is one server-side copy, after which the cached file is linked under the name that S3 returned.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from s3blobfs.errors import FilesystemError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.journal import new_write_id
from s3blobfs.fs.making import GivenContent, Making, give_blob
from s3blobfs.fs.namespace import Namespace
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing
from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow
from s3blobfs.types import BlobContent, Durability, ObjectHint, StoredContent


class Copying:
    def __init__(
        self,
        core: Core,
        namespace: Namespace,
        making: Making,
        reading: Reading,
        writing: Writing,
        write_id: Callable[[], str] = new_write_id,
    ) -> None:
        self._core = core
        self._namespace = namespace
        self._making = making
        self._reading = reading
        self._writing = writing
        self._write_id = write_id

    async def copy_file(
        self, source_id: int, parent_id: int, name: bytes, *, replace: bool, caller: Caller
    ) -> int:
        """Make ``name`` a copy of a regular file, with its permissions; answers the copy's inode id.

        ``EEXIST`` when the name is taken and ``replace`` is false; ``ETXTBSY`` when the file to replace is
        open for writing; ``EINVAL`` for other than regular files and for a copy onto itself."""
        core = self._core
        source = await core.inode(source_id)
        if source.content is None:
            raise FilesystemError(errno.EINVAL)
        await self._store_source(source)
        target = await self._namespace.lookup(parent_id, name)
        mode = stat.S_IFREG | source.row.mode & 0o777
        if target is None and source.content.state is State.EMPTY:
            target = await self._making.make(parent_id, name, mode, caller)
            await core.db.commit()
        elif target is None:
            blob = await self._reading.blob(source)
            target = await self._make_copy(blob, parent_id, name, mode, caller)
        elif not replace:
            raise FilesystemError(errno.EEXIST)
        elif target.id == source.id or target.content is None:
            raise FilesystemError(errno.EINVAL)
        elif source.content.state is State.EMPTY:
            await self._writing.truncate(target, 0)
            await self._writing.close(target)
        else:
            await self._replace(await self._reading.blob(source), target)
        core.notifier.entry_changed(parent_id, name)
        core.notifier.inode_changed(parent_id)  # and its listing, which the kernel may keep
        core.notifier.inode_changed(target.id)
        return target.id

    async def _store_source(self, source: InCoreInode) -> None:
        """A copy shares a blob, so the source's bytes have to be one."""
        assert source.content is not None
        await self._writing.notice(source)
        while source.content.in_flux:
            ticket = await self._writing.seal(source)
            if ticket is None:
                return
            await self._writing.wait(source, ticket)

    async def _make_copy(
        self, blob: BlobContent, parent_id: int, name: bytes, mode: int, caller: Caller
    ) -> InCoreInode:
        """A new file with the blob, or its copy: object first, row second."""
        core = self._core
        (store_id, object_id), directory = await core.db.read(
            lambda tx: (self._making.place_below(tx, parent_id), dentries.path_of(tx, parent_id))
        )
        hint = ObjectHint(
            inode_id=0,  # it has none yet
            path=b"/".join(filter(None, (directory, name))),
            mode=mode,
            uid=caller.uid,
            gid=caller.gid,
            mtime_ns=core.now_ns(),
        )
        async with self._in_store(blob, store_id, object_id, hint) as given:
            inode = await self._making.make(parent_id, name, mode, caller, given=given)
            await core.db.commit()
        await self._link_cached(blob, inode)
        return inode

    async def _replace(self, blob: BlobContent, target: InCoreInode) -> None:
        """Put the blob, or its copy in the target's store, in place of the target's content."""
        async with target.lock:
            assert target.content is not None
            if target.writer_count or target.content.in_flux:
                raise FilesystemError(errno.ETXTBSY)
            lent = await self._writing.overwrite_lent(target, blob)
            if not lent:
                await self._take_over(blob, target, durable=True)
        if lent:
            await self._writing.close(target)
        else:
            await self._link_cached(blob, target)
        self._core.reaper.wake()

    async def take_over(self, blob: BlobContent, target: InCoreInode) -> None:
        """The same for a file that is being written: whatever it has, staged or on its way, is given up.

        :class:`BlobIsDeleting` when nothing refers to the blob any more."""
        async with target.lock:
            await self._take_over(blob, target, durable=self._core.durability is Durability.S3)
        # Nothing is staged, so that no close will see to that.
        await self._core.db.flush()
        await self._link_cached(blob, target)
        self._core.reaper.wake()

    async def _take_over(self, blob: BlobContent, target: InCoreInode, *, durable: bool) -> None:
        """Caller holds the target's lock."""
        core, content, row = self._core, target.content, target.row
        assert content is not None and row.store_id is not None
        path = await core.db.read(lambda tx: dentries.path_of(tx, row.id))
        hint = ObjectHint(row.id, path or b"", row.mode, row.uid, row.gid, core.now_ns())
        async with self._in_store(blob, row.store_id, row.object_id, hint) as given:

            def transaction(tx: Transaction) -> tuple[InodeRow, list[UploadRow]]:
                now = core.now_ns()
                # An upload in flight loses its journal row too: its commit then lets go of the object.
                old = uploads.supersede(tx, target.id)
                give_blob(tx, inodes.get(tx, target.id), given, now)
                return inodes.update(tx, target.id, mtime_ns=now, ctime_ns=now), old

            changed, old = await core.db.write(transaction, durable=durable)
        core.uploader.forget_inode(target.id)
        target.apply(changed)
        target.mtime_ns = target.ctime_ns = None
        target.content_change += 1
        staged = content.staged
        content.replace()
        await core.discard_staged(old)
        if staged is not None:
            await staged.discard()

    @asynccontextmanager
    async def _in_store(
        self, blob: BlobContent, store_id: int, object_id: str | None, hint: ObjectHint
    ) -> AsyncIterator[GivenContent]:
        """The blob in a store: itself, or a copy made by S3. The body commits it; until then the reaper
        leaves the object alone, and if the body fails, the object is let go of."""
        core = self._core
        async with core.reaper.claims.storing(store_id, blob.digests.sha256):
            if store_id == blob.store_id:
                yield GivenContent(blob, None, store_id, object_id)
                return
            stored = await core.stores[store_id].copy_from(
                core.stores[blob.store_id],
                blob,
                object_id=object_id,
                write_id=self._write_id(),
                hint=hint,
            )
            reached(Failpoint.COPIED)
            try:
                yield GivenContent(blob, stored, store_id, object_id)
            except FilesystemError:
                await core.db.write(lambda tx: _let_go(tx, store_id, stored, blob, core.now_ns()))
                core.reaper.wake()
                raise

    async def _link_cached(self, blob: BlobContent, copy: InCoreInode) -> None:
        """What the cache has of the source serves the copy too, under the name that S3 gave it."""
        given = await self._reading.blob(copy)
        stores = self._core.stores
        if given.store_id != blob.store_id and all(
            stores[each.store_id].config.cached for each in (blob, given)
        ):
            await self._core.tier.cache.link(
                blob.store_id, blob.location.cache_name, given.store_id, given.location.cache_name
            )
        reached(Failpoint.LINKED)


def _let_go(tx: Transaction, store_id: int, stored: StoredContent, blob: BlobContent, now_ns: int) -> None:
    """Nothing came to refer to a copy: the reaper finds it by its row."""
    row = blobs.adopt(tx, store_id, stored, blob.digests, now_ns)
    blobs.drop_ref(tx, row.id, now_ns, superseded=False)
