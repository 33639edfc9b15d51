"""What a mount does before it serves anyone: takes up what the one before it left.

Left can be: journal rows with their staged files (the upload goes on), journal rows whose staged file is gone
(bytes are lost, which is said loudly), staged files without a row (nobody was promised anything), inodes
without a name that were open (removed now), and marked blobs (the reaper's).

A content that nobody wants any more, because the file has got a newer one or is gone, may have been on its
way as well. The uploader is handed it all the same: it asks S3 whether its PUT took place, and lets go of
what it left there.

Recovery may itself be interrupted anywhere and is then done again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import DamagedContent, TierUnavailable
from s3blobfs.index import blobs, dentries, inodes, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.tier.digest import file_digests
from s3blobfs.tier.localio import local_errors
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from s3blobfs.types import ContentDigests
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.uploader import Uploader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LostContent:
    """A journalled content whose staged file is gone, or is not what was sealed."""

    inode_id: int
    path: bytes | None
    size_bytes: int
    reason: str
    restored: bool
    """The file has its earlier content again. Otherwise it never had another; its journal row stays, as a
    sign that its bytes are missing."""


@dataclass(slots=True)
class RecoveryReport:
    contents: dict[int, tuple[UploadRow, StagedFile]] = field(default_factory=dict)
    """By inode: what was acknowledged and is not in S3 yet, and what readers of the file must see."""
    lost: list[LostContent] = field(default_factory=list)
    orphans: int = 0
    """Inodes without a name that were removed."""
    swept: list[str] = field(default_factory=list)
    """Staged files without a journal row that were removed."""


async def recover(
    db: Database,
    tier: Tier,
    stores: Mapping[int, BlobStore],
    uploader: Uploader,
    reaper: Reaper,
    *,
    now_ns: Callable[[], int] = time.time_ns,
) -> RecoveryReport:
    """Run once, at mount, before any request is served. Raises what the index does, and
    :class:`~s3blobfs.errors.TierUnavailable` when the staged files cannot even be listed."""
    report = RecoveryReport()
    recovery = _Recovery(db, tier, stores, report, now_ns)
    for orphan, rows in await db.write(lambda tx: _remove_orphans(tx, now_ns())):
        recovery.let_go(rows, orphan.object_id, forgotten=True)
        report.orphans += 1
    by_inode: dict[int, list[UploadRow]] = {}
    for row in await db.read(uploads.every):
        by_inode.setdefault(row.inode_id, []).append(row)
    for rows in by_inode.values():
        await recovery.take_up(rows)
    await db.commit()  # before files go that only these rows made superfluous
    report.swept = tier.staging.sweep({each.staged.name for each in recovery.begun} | recovery.signs)
    for each in sorted(recovery.begun, key=lambda each: each.row.id):
        _cut(each.staged)
        uploader.submit(each.row, each.staged, each.object_id, recovered=True)
        if each.forgotten:
            uploader.forget_inode(each.row.inode_id)
    reaper.wake()
    return report


def _remove_orphans(tx: Transaction, now_ns: int) -> list[tuple[InodeRow, list[UploadRow]]]:
    """Inodes without a name: they were open, and nobody has them open any more."""
    removed = []
    for orphan in inodes.orphans(tx):
        removed.append((orphan, uploads.supersede(tx, orphan.id)))
        inodes.remove(tx, orphan.id)
        if orphan.blob_id is not None:
            blobs.drop_ref(tx, orphan.blob_id, now_ns, superseded=False)
    return removed


@dataclass(frozen=True, slots=True)
class _Begun:
    """A content whose upload may have been begun."""

    row: UploadRow
    staged: StagedFile
    object_id: str | None
    forgotten: bool
    """The file is gone or empty, and the row with it."""


@dataclass(frozen=True, slots=True)
class _Recovery:
    db: Database
    tier: Tier
    stores: Mapping[int, BlobStore]
    report: RecoveryReport
    now_ns: Callable[[], int]
    begun: list[_Begun] = field(default_factory=list)
    """For the uploader."""
    signs: set[str] = field(default_factory=set)
    """Staged names of rows that stay because their bytes are lost."""

    async def take_up(self, rows: list[UploadRow]) -> None:
        """The journal rows of one inode, oldest first. Of several contents the newest counts that is
        there."""
        lost: list[tuple[UploadRow, str]] = []
        found: tuple[UploadRow, StagedFile, ContentDigests] | None = None
        for row in reversed(rows):
            try:
                found = (row, *await self._reopen(row))
                break
            except DamagedContent as error:
                lost.append((row, str(error)))
            except TierUnavailable as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise  # the disk may be well again at the next mount, and nothing is lost then
                lost.append((row, "its staged file is gone"))
        if found is None:
            restored = await self.db.write(lambda tx: _restore(tx, rows))
            if not restored:
                self.signs.update(row.staged_name for row in rows)
        else:
            restored = True
            await self._go_on(rows, *found)
        for row, reason in lost:
            await self._report_lost(row, reason, restored)

    def let_go(self, rows: list[UploadRow], object_id: str | None, *, forgotten: bool) -> frozenset[int]:
        """Contents that nobody wants: the uploader is to see what became of those that may have been begun,
        whose ids are the answer. ``forgotten``: their rows are gone, or about to go."""
        begun = set()
        for row in rows:
            if row.state is UploadState.DIRTY:
                continue
            try:
                staged = self._open(row)
            except (DamagedContent, TierUnavailable) as error:
                logger.info("what upload %d may have left in S3 is left to gc: %s", row.id, error)
                continue
            self.begun.append(_Begun(row, staged, object_id, forgotten))
            begun.add(row.id)
        return frozenset(begun)

    async def _go_on(
        self, rows: list[UploadRow], chosen: UploadRow, staged: StagedFile, digests: ContentDigests
    ) -> None:
        """One content is the inode's; those before it give way, and those after it are lost."""
        inode = await self.db.read(lambda tx: inodes.get(tx, chosen.inode_id))
        earlier = [row for row in rows if row.id < chosen.id]
        begun = self.let_go(earlier, inode.object_id, forgotten=digests.size_bytes == 0)
        changed_ns = staged.modified_ns()
        kept = await self.db.write(
            lambda tx: self._keep(tx, rows, begun, chosen, staged.name, digests, changed_ns)
        )
        if kept is None:
            await self.db.commit()
            await staged.discard()
        else:
            self.begun.append(_Begun(kept, staged, inode.object_id, forgotten=False))
            self.report.contents[chosen.inode_id] = kept, staged

    def _open(self, row: UploadRow) -> StagedFile:
        local = Local.of(self.stores[row.store_id].config.cached)
        return self.tier.staging.open(row.staged_name, local, row.digests)

    async def _reopen(self, row: UploadRow) -> tuple[StagedFile, ContentDigests]:
        """The staged file of a row, sealed: one that was open is final now, whatever it got after its last
        fsync. The rename is safe: a staged file is found under either of its names."""
        staged = self._open(row)
        if row.digests is not None:
            await _verify(staged, row.digests)
        return staged, await staged.seal(rename=self.stores[row.store_id].config.cached)

    def _keep(
        self,
        tx: Transaction,
        rows: list[UploadRow],
        begun: frozenset[int],
        chosen: UploadRow,
        staged_name: str,
        digests: ContentDigests,
        changed_ns: int,
    ) -> UploadRow | None:
        """Make one content the inode's; the other rows go, but for those ``begun``. ``None``: it is empty, or
        what is stored, and needs no upload, and no row stays. ``changed_ns``: when its bytes last changed."""
        inode = inodes.get(tx, chosen.inode_id)
        if digests.size_bytes == 0:
            for row in rows:
                uploads.finish(tx, row.id)
            inodes.update(tx, chosen.inode_id, size_bytes=0, blob_id=None)
            if inode.blob_id is not None:
                blobs.drop_ref(tx, inode.blob_id, self.now_ns(), superseded=True)
            return None
        if chosen.state is UploadState.DIRTY and not begun and _is_stored(tx, inode, digests):
            # It could have been changed without a word, and was not (fs/lending.py).
            for row in rows:
                uploads.finish(tx, row.id)
            inodes.update(tx, chosen.inode_id, size_bytes=digests.size_bytes)
            return None
        for row in rows:
            if row.id not in begun and (row.id != chosen.id or chosen.state is UploadState.DIRTY):
                uploads.finish(tx, row.id)
        inodes.update(tx, chosen.inode_id, size_bytes=digests.size_bytes)
        if chosen.state is UploadState.SEALED:
            return chosen
        if changed_ns > chosen.created_ns:  # and what did that had no time to say so
            ctime_ns = max(inode.ctime_ns, changed_ns)
            inodes.update(tx, chosen.inode_id, mtime_ns=changed_ns, ctime_ns=ctime_ns)
        return uploads.insert(
            tx,
            inode_id=chosen.inode_id,
            store_id=chosen.store_id,
            staged_name=staged_name,
            size_bytes=digests.size_bytes,
            digests=digests,
            write_id=chosen.write_id,
            state=UploadState.SEALED,
            now_ns=chosen.created_ns,
        )

    async def _report_lost(self, row: UploadRow, reason: str, restored: bool) -> None:
        path = await self.db.read(lambda tx: dentries.path_of(tx, row.inode_id))
        self.report.lost.append(LostContent(row.inode_id, path, row.size_bytes, reason, restored))
        logger.error(
            "%d bytes written to %s are lost: %s; the file has %s",
            row.size_bytes,
            path.decode(errors="backslashreplace") if path is not None else f"inode {row.inode_id}",
            reason,
            "its earlier content" if restored else "no content that can be read",
        )


async def _verify(staged: StagedFile, digests: ContentDigests) -> None:
    """Raises :class:`~s3blobfs.errors.DamagedContent`. A power failure can leave a file of the right length
    whose blocks were never written; uploaded, it would pass for the content for ever."""
    staged.pin()
    try:
        with local_errors(f"reading {staged.path}"):
            found = await file_digests(staged.fd, staged.size_bytes)
    finally:
        staged.unpin()
    if found != digests:
        raise DamagedContent(f"staged file {staged.path} does not have the digests it was sealed with")


def _cut(staged: StagedFile) -> None:
    """A sealed content that was appended to, which nobody was promised, is again what it was. If the disk
    does not let it, it is stored all the same, and not kept in the cache."""
    try:
        staged.cut_to_seal()
    except TierUnavailable as error:
        logger.warning("%s", error)


def _is_stored(tx: Transaction, inode: InodeRow, digests: ContentDigests) -> bool:
    if inode.blob_id is None:
        return False
    stored = blobs.get(tx, inode.blob_id).digests
    return (stored.size_bytes, stored.sha256) == (digests.size_bytes, digests.sha256)


def _restore(tx: Transaction, rows: list[UploadRow]) -> bool:
    """None of an inode's journalled contents is left: give it back the stored one, if it has one."""
    inode = inodes.get(tx, rows[0].inode_id)
    if inode.blob_id is None:
        return False
    inodes.update(tx, inode.id, size_bytes=blobs.get(tx, inode.blob_id).digests.size_bytes)
    for row in rows:
        uploads.finish(tx, row.id)
    return True
