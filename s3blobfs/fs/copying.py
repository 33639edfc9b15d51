"""Direct copies: no byte passes through the client.

Within one store a copy is one index transaction: both inodes refer to the same immutable blob. Into another
store it is one server-side copy, after which the cached file is linked under the name that S3 returned.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import FilesystemError
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.namespace import Namespace
from s3blobfs.fs.reading import Reading
from s3blobfs.fs.writing import Writing, new_write_id
from s3blobfs.index import blobs, dentries, inodes
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import BlobContent, ObjectHint, StoredContent


class Copying:
    def __init__(
        self,
        core: Core,
        namespace: Namespace,
        reading: Reading,
        writing: Writing,
        write_id: Callable[[], str] = new_write_id,
    ) -> None:
        self._core = core
        self._namespace = namespace
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
        if target is None:
            target = await self._namespace.make(
                parent_id, name, stat.S_IFREG | stat.S_IMODE(source.row.mode) & 0o777, caller
            )
            core.notifier.entry_changed(parent_id, name)
        elif not replace:
            raise FilesystemError(errno.EEXIST)
        if target.id == source.id or target.content is None:
            raise FilesystemError(errno.EINVAL)
        if source.content.state is State.EMPTY:
            await self._writing.truncate(target, 0)
            await self._writing.close(target)
        else:
            await self._give_blob(await self._reading.blob(source), target)
        core.notifier.inode_changed(target.id)
        return target.id

    async def _store_source(self, source: InCoreInode) -> None:
        """A copy shares a blob, so the source's bytes have to be one."""
        assert source.content is not None
        while source.content.in_flux:
            ticket = await self._writing.seal(source)
            if ticket is None:
                return
            await ticket.wait()

    async def _give_blob(self, blob: BlobContent, target: InCoreInode) -> None:
        """Put ``blob``, or its copy in the target's store, in place of the target's content."""
        core = self._core
        async with target.lock:
            content = target.content
            assert content is not None
            if target.writer_count or content.in_flux:
                raise FilesystemError(errno.ETXTBSY)
            destination = core.stores[_store_id(target.row)]
            # As an upload does: the reaper must not delete the object between HEAD and commit.
            async with core.reaper.claims.storing(destination.config.id, blob.digests.sha256):
                stored = await self._copy_into(destination, blob, target)
                row, given = await core.db.write(
                    lambda tx: self._commit(tx, blob, stored, target.row), durable=True
                )
            target.apply(row)
            target.content_change += 1
            content.replace(given.content())
            if stored is not None:
                await self._link_cached(blob, given)

    async def _copy_into(
        self, destination: BlobStore, blob: BlobContent, target: InCoreInode
    ) -> StoredContent | None:
        """A server-side copy of the blob's object; ``None`` where the blob is in that store already."""
        if destination.config.id == blob.store_id:
            return None
        return await destination.copy_from(
            self._core.stores[blob.store_id],
            blob,
            object_id=target.row.object_id,
            write_id=self._write_id(),
            hint=await self._hint(target),
        )

    def _commit(
        self, tx: Transaction, blob: BlobContent, stored: StoredContent | None, target: InodeRow
    ) -> tuple[InodeRow, BlobRow]:
        now = self._core.now_ns()
        before = inodes.get(tx, target.id)
        if stored is None:
            given = blobs.add_ref(tx, blob.blob_id)
        else:
            given = blobs.adopt(tx, _store_id(target), stored, blob.digests, now)
        row = inodes.update(
            tx, target.id, blob_id=given.id, size_bytes=blob.size_bytes, mtime_ns=now, ctime_ns=now
        )
        if before.blob_id is not None:
            blobs.drop_ref(tx, before.blob_id, now, superseded=True)
        return row, given

    async def _link_cached(self, blob: BlobContent, given: BlobRow) -> None:
        """What the cache has of the source serves the copy too, under the name that S3 gave it."""
        core = self._core
        source, destination = core.stores[blob.store_id].config, core.stores[given.store_id].config
        if not (source.cached and destination.cached):
            return
        await core.tier.cache.link(
            source.id, blob.location.cache_name, destination.id, given.location.cache_name
        )

    async def _hint(self, inode: InCoreInode) -> ObjectHint:
        row = inode.row
        path = await self._core.db.read(lambda tx: dentries.path_of(tx, row.id))
        return ObjectHint(row.id, path or b"", row.mode, row.uid, row.gid, row.mtime_ns)


def _store_id(row: InodeRow) -> int:
    assert row.store_id is not None, "regular files have a store"
    return row.store_id
