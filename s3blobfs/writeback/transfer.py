"""One attempt to bring one content to S3 and into the index: object first, row second.

No request is made inside a transaction. The transaction is durable when :meth:`Transfer.store` returns,
because the staged file is removed next: until then that is the only copy that anything durable names.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from s3blobfs.blobstore.protocol import BlobStore, Kept, SmallPut
from s3blobfs.errors import BlobIsDeleting, DamagedContent, TierError, TransientS3Error
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow
from s3blobfs.tier.origin import Origin
from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import BlobContent, ContentDigests, Keying, ObjectHint, StoredContent
from s3blobfs.writeback.early import EarlyUploads
from s3blobfs.writeback.reaper import Reaper

_REAP_ROUNDS = 5
_REAP_WAIT_S = 10.0
"""How often and how long an upload waits for the deletion of an earlier object of the same content."""


@dataclass(eq=False, slots=True)
class Content:
    """A sealed content on its way."""

    upload: UploadRow
    digests: ContentDigests
    staged: StagedFile
    object_id: str | None
    """Of the file: the inode may be gone before S3 is asked what became of a PUT."""
    in_doubt: bool
    """A PUT of it may have taken place; S3 is asked before another is made."""


C = TypeVar("C", bound=Content)


@dataclass(frozen=True, slots=True)
class Committed:
    """The inode and its new content, as the index has them."""

    inode: InodeRow
    blob: BlobContent


Commit = Committed | BlobIsDeleting | DamagedContent | None
"""What a commit came to; ``None``: the content is not wanted any more."""


class Transfer:
    """Stores contents, whoever decides when."""

    def __init__(
        self,
        db: Database,
        stores: Mapping[int, BlobStore],
        reaper: Reaper,
        early: EarlyUploads,
        now_ns: Callable[[], int],
    ) -> None:
        self._db = db
        self._stores = stores
        self._reaper = reaper
        self._early = early
        self._now_ns = now_ns

    async def store(self, content: Content) -> Committed | None:
        """``None`` when the content is not wanted any more: its journal row is gone, and what reached S3 is
        left to the reaper. Raises what the store or the index does, and ``OSError`` of the staged file."""
        inode, path, kept = await self._db.read(lambda tx: self._look(tx, content))
        if inode is None:
            await self.settle(content)
            return None
        hint = _hint(inode, path)
        for _ in range(_REAP_ROUNDS):
            async with self._claim(content):
                stored = await self._find_or_put(content, hint, kept)
                ((_, result),) = await self.commit([(content, stored)])
            if not isinstance(result, Exception):
                return result
            if not isinstance(result, BlobIsDeleting):
                raise result
            content.in_doubt = False
            # The object is as good as gone; once its row is, a new one can be made.
            self._reaper.hurry()
            await self._reaper.claims.wait_reaped(_REAP_WAIT_S)
        raise TransientS3Error(
            "an earlier object of the same content is still being deleted", key=stored.location.object_key
        )

    def _look(self, tx: Transaction, content: Content) -> tuple[InodeRow | None, bytes | None, Kept | None]:
        inode_id = content.upload.inode_id
        inode = inodes.find(tx, inode_id)
        return inode, dentries.path_of(tx, inode_id), self._kept(tx, inode, content.staged.origin)

    def _kept(self, tx: Transaction, inode: InodeRow | None, origin: Origin | None) -> Kept | None:
        """What S3 has of it, if the file's present content is what it was made from. That one stays until
        this one is committed in its place."""
        if inode is None or inode.blob_id is None or origin is None:
            return None
        blob = blobs.get(tx, inode.blob_id).content()
        ranges = origin.in_common_with(blob.digests)
        return Kept(self._stores[blob.store_id].config.bucket, blob, ranges) if ranges else None

    async def settle(self, content: Content) -> None:
        """End the journal row of a content that nobody wants any more. What a PUT in doubt left in S3 is
        looked for by its write id and left to the reaper, in the same transaction: until then the row tells
        of it. Raises what the store or the index does."""
        upload, now_ns = content.upload, self._now_ns()

        def transaction(tx: Transaction) -> bool:
            uploads.finish(tx, upload.id)
            if found is None:
                return False
            location = found.location
            if blobs.find(tx, upload.store_id, location.object_key, location.version_id) is not None:
                return False  # the same content by another upload: it is named, and not this one's to remove
            blob = blobs.adopt(tx, upload.store_id, found, content.digests, now_ns)
            blobs.drop_ref(tx, blob.id, now_ns, superseded=False)
            return True

        async with self._claim(content):
            found = None
            if content.in_doubt:
                found = await self._stores[upload.store_id].find_write(
                    content.digests, object_id=content.object_id, write_id=upload.write_id
                )
            if await self._db.write(transaction):
                self._reaper.wake()

    # -- several at once -------------------------------------------------------------------------------

    async def prepare(self, contents: Sequence[C]) -> tuple[list[tuple[C, SmallPut]], list[C]]:
        """What to tell their store of small contents that were never sent, each of them claimed until
        :meth:`let_go`; and those for which :meth:`store` has to be asked. Raises what the index does."""

        def look(tx: Transaction) -> list[tuple[InodeRow | None, bytes | None]]:
            ids = [content.upload.inode_id for content in contents]
            return [(inodes.find(tx, inode_id), dentries.path_of(tx, inode_id)) for inode_id in ids]

        found = zip(contents, await self._db.read(look), strict=True)
        ready: list[tuple[C, SmallPut]] = []
        left: list[C] = []
        try:
            for content, (inode, path) in found:
                # Not by the thread: the file may have another name by then.
                body = await _in_memory(content.staged)
                if inode is None or body is None or not self._try_claim(content):
                    left.append(content)
                    continue
                write_id, hint = content.upload.write_id, _hint(inode, path)
                put = SmallPut(body, content.digests, content.object_id, write_id, hint)
                ready.append((content, put))
            if ready:
                await self._db.flush()  # as for one
        except BaseException:
            for content, _ in ready:
                self.let_go(content, in_doubt=False)
            raise
        for content, _ in ready:
            content.in_doubt = True
            reached(Failpoint.PUT_SENT)
        return ready, left

    def let_go(self, content: Content, *, in_doubt: bool) -> None:
        """Of one that was prepared: give its claim back. ``in_doubt``: a PUT of it may have taken place."""
        content.in_doubt = in_doubt
        if self._is_shared(content):
            self._reaper.claims.release(content.upload.store_id, content.digests.sha256)

    def _try_claim(self, content: Content) -> bool:
        return not self._is_shared(content) or self._reaper.claims.try_claim(
            content.upload.store_id, content.digests.sha256
        )

    def _is_shared(self, content: Content) -> bool:
        """Its object may be that of other files. A new version shares nothing with what is being deleted."""
        return self._stores[content.upload.store_id].config.keying is Keying.DIGEST

    @contextlib.asynccontextmanager
    async def _claim(self, content: Content) -> AsyncIterator[None]:
        if self._is_shared(content):
            async with self._reaper.claims.storing(content.upload.store_id, content.digests.sha256):
                yield
        else:
            yield

    async def _find_or_put(self, content: Content, hint: ObjectHint, kept: Kept | None) -> StoredContent:
        store = self._stores[content.upload.store_id]
        write_id, object_id = content.upload.write_id, content.object_id
        if content.in_doubt:
            found = await store.find_write(content.digests, object_id=object_id, write_id=write_id)
            if found is not None:
                return found
        # Without the row nobody would know of the object, should this process end before it is committed.
        await self._db.flush()
        content.in_doubt = True
        reached(Failpoint.PUT_SENT)
        stored = await store.put(
            content.staged.body,
            content.digests,
            object_id=object_id,
            write_id=write_id,
            hint=hint,
            kept=kept,
            begun=self._early.take(content.staged, write_id),
        )
        reached(Failpoint.PUT_ANSWERED)
        return stored

    async def commit(self, stored: Sequence[tuple[C, StoredContent]]) -> list[tuple[C, Commit]]:
        """Bring contents that are in S3 into the index, in one transaction, which is on disk when this
        returns. Answers what came of each; raises what concerns the index as a whole."""
        results: list[tuple[C, Commit]] = []
        let_go: set[BlobState] = set()

        def transaction(tx: Transaction) -> None:
            for content, object_ in stored:
                try:
                    blob = blobs.adopt(tx, content.upload.store_id, object_, content.digests, self._now_ns())
                except (BlobIsDeleting, DamagedContent) as error:  # before anything was changed for it
                    results.append((content, error))
                else:
                    committed, state = self._adopted(tx, content, blob)
                    results.append((content, committed))
                    let_go.add(state)

        await self._db.write(transaction, durable=True)
        for _, result in results:
            if not isinstance(result, Exception):
                reached(Failpoint.COMMITTED)
        if let_go & {BlobState.GARBAGE, BlobState.DELETING}:
            self._reaper.wake()
        return results

    def _adopted(
        self, tx: Transaction, content: Content, blob: BlobRow
    ) -> tuple[Committed | None, BlobState]:
        """The inode's content from now on, if it is wanted; and the state of what is let go of."""
        now_ns = self._now_ns()
        wanted = uploads.finish(tx, content.upload.id) is not None
        inode = inodes.find(tx, content.upload.inode_id)
        if not wanted or inode is None:
            return None, blobs.drop_ref(tx, blob.id, now_ns, superseded=False).state
        changed = inodes.set_blob(tx, inode.id, blob.id)
        state = BlobState.LIVE
        if inode.blob_id is not None:
            state = blobs.drop_ref(tx, inode.blob_id, now_ns, superseded=True).state
        return Committed(changed, blob.content()), state


async def _in_memory(staged: StagedFile) -> bytes | None:
    """A small sealed content; ``None`` if it cannot be read, or is not there any more."""
    body = staged.body
    if isinstance(body, bytes):
        return body
    if staged.gone:
        return None  # unlinked, or emptied, since the index was looked into
    try:
        return bytes(await staged.read(0, staged.size_bytes))
    except TierError:
        return None  # to be told of by the upload that reads it by itself
    finally:
        staged.close_if_idle()


def _hint(inode: InodeRow, path: bytes | None) -> ObjectHint:
    return ObjectHint(inode.id, path or b"", inode.mode, inode.uid, inode.gid, inode.mtime_ns)
