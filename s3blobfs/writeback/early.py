"""Early uploads: large files are sent to S3 while they are still being written.

A file that is new, and written from its start to its end, is sent part by part behind the place up to which
it is hashed. Its close then sends the rest and makes it an object. Whatever is not as expected ends that, and
the close does what it always does: a write or a cut before what is hashed, the end of the file, an error of
S3. Nobody who writes hears of it. Parts of an upload that came to nothing are thrown away in the background;
those of a process that was killed gc finds.

*Bounded*: so many files at a time, and so many parts of all of them on their way, which leaves requests for
others. Parts are read from the staged file, and only bytes that were hashed are sent; in the end what was
sent is compared with the checksums of the whole.

*Not at the writer's cost* where nobody waits for the upload (durability ``disk``): a file that is written as
fast as the disk takes it is through before much of it would have been sent, and slower for the sending. So
one is sent early only when it is still written :data:`UNAWAITED_AFTER_S` after it had parts enough.

An early upload has its write id from the beginning. The journal row that the file gets when it is sealed has
the same, so nothing but that content becomes an object under it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import trio

from s3blobfs.blobstore.early import EARLY_AGE_MAX_S, BegunUpload, EarlyPart, EarlyParts
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import S3BlobFSError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.index import dentries, inodes
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import ObjectHint

logger = logging.getLogger(__name__)

PARTS_LEAST = 2
"""A file is sent early once it has so many parts."""
UNAWAITED_AFTER_S = 1.0
""":attr:`EarlyLimits.after_s` where nobody waits for the upload."""
ABORT_TIMEOUT_S = 10.0
"""For throwing parts away when the mount ends."""


@dataclass(frozen=True, slots=True)
class EarlyLimits:
    files: int = 16
    """Sent early at a time; none: nothing is."""
    parts: int = 8
    """Of all of them, on their way at a time. Each takes one of ``S3Options.max_threads``."""
    after_s: float = 0.0
    """A file that has parts enough is sent early when it is written for so much longer."""


@dataclass(eq=False, slots=True)
class _Early:
    """The early upload of one file."""

    staged: StagedFile
    store: EarlyParts
    place: tuple[int, str]
    """Store id, and the object's key without the store's prefix."""
    inode_id: int
    write_id: str
    next_end: int
    """When so many bytes are hashed, the next part can be sent."""
    upload: BegunUpload | None = None
    begun_at: float = field(default_factory=trio.current_time)
    over: bool = False
    """No further part is sent."""
    taken: bool = False
    """What was sent is somebody else's to finish."""
    wake: trio.Event = field(default_factory=trio.Event)

    @property
    def is_too_old(self) -> bool:
        return trio.current_time() - self.begun_at > EARLY_AGE_MAX_S

    def end(self) -> None:
        self.over = True
        self.wake.set()

    async def has_part(self) -> bool:
        """Wait until there is a part to send; False when none will be."""
        while not self.over and self.staged.hashed_bytes < self.next_end:
            self.wake = trio.Event()
            await self.wake.wait()
        return not self.over


class EarlyUploads:
    """Of one mounted volume. All methods are for the trio thread."""

    def __init__(self, db: Database, stores: Mapping[int, BlobStore], limits: EarlyLimits) -> None:
        self._db = db
        self._limits = limits
        self._stores = stores
        self._uploads: dict[StagedFile, _Early] = {}
        """Those that go on."""
        self._seen_at: WeakKeyDictionary[StagedFile, float] = WeakKeyDictionary()
        """When they had parts enough."""
        self._busy = 0
        """Files of which something is under way, be it that parts are thrown away."""
        self._slots = trio.Semaphore(max(1, limits.parts))
        self._nursery: trio.Nursery | None = None

    # -- for those who write -------------------------------------------------------------------------

    def wrote(self, staged: StagedFile, inode: InodeRow, new_write_id: Callable[[], str]) -> None:
        """The file has got more bytes."""
        early = self._uploads.get(staged)
        if early is None:
            if staged.hashed_bytes:  # never of a small one
                self._consider(staged, inode, new_write_id)
        elif early.is_too_old or inode.nlink == 0:  # without a name nobody will find it again
            early.end()
        elif staged.hashed_bytes >= early.next_end:
            early.wake.set()

    def _consider(self, staged: StagedFile, inode: InodeRow, new_write_id: Callable[[], str]) -> None:
        if inode.object_id is None or inode.store_id is None:
            return  # the key will be that of the content
        store = self._stores[inode.store_id].early
        if (
            store is None
            or staged.hashed_bytes < PARTS_LEAST * store.part_bytes
            or staged.on_void is not None  # it was sent early once
            or staged.origin is not None  # S3 has most of it already
            or staged.lent
            or inode.nlink == 0
            or self._busy >= self._limits.files
            or self._nursery is None
        ):
            return
        now = trio.current_time()
        if now - self._seen_at.setdefault(staged, now) < self._limits.after_s:
            return
        place = inode.store_id, inode.object_id
        early = _Early(staged, store, place, inode.id, new_write_id(), store.part_bytes)
        staged.on_void = early.end
        self._uploads[staged] = early
        self._busy += 1
        self._nursery.start_soon(self._send_early, early)

    def write_id_of(self, staged: StagedFile) -> str | None:
        """Under which what was sent of the file may become an object; ``None``: nothing was."""
        early = self._uploads.get(staged)
        return None if early is None or early.over else early.write_id

    def take(self, staged: StagedFile, write_id: str) -> BegunUpload | None:
        """What was sent of a sealed file, for the caller to finish, who stores it under ``write_id``;
        ``None`` where that is nothing."""
        early = self._uploads.pop(staged, None)
        if early is None:
            return None
        usable = not early.over and not early.is_too_old and early.write_id == write_id
        early.end()
        if not usable or early.upload is None or not early.upload.parts:
            return None
        early.taken = True
        return early.upload

    def names(self) -> frozenset[tuple[int, str]]:
        """Of objects to be of which parts are sent: store id, and the key without the store's prefix."""
        return frozenset(early.place for early in self._uploads.values())

    # -- sending -------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """From now on files are sent early, by tasks of the nursery."""
        self._nursery = nursery

    def stop(self) -> None:
        """No further file is."""
        self._nursery = None

    async def _send_early(self, early: _Early) -> None:
        try:
            hint = await self._db.read(lambda tx: _hint(tx, early.inode_id))
            if hint is not None and not early.over:
                early.upload = await early.store.begin(early.place[1], write_id=early.write_id, hint=hint)
            if early.upload is not None:
                await self._send_parts(early, early.upload)
        except S3BlobFSError as error:
            logger.info("the upload of inode %d waits for its end: %s", early.inode_id, error)
        finally:
            early.over = True
            if self._uploads.get(early.staged) is early:
                del self._uploads[early.staged]
            try:
                if early.upload is not None and not early.taken:
                    await self._abandon(early, early.upload)
            finally:
                self._busy -= 1

    async def _send_parts(self, early: _Early, upload: BegunUpload) -> None:
        """Return when no part is on its way, and none will be."""
        early.next_end = upload.next_part().end
        async with trio.open_nursery() as nursery:
            while await early.has_part():
                await self._slots.acquire()
                if early.over:
                    self._slots.release()
                    break
                checksums = early.staged.hashed_checksums
                part = upload.add(checksums)
                early.next_end = upload.next_part().end
                nursery.start_soon(self._send_part, early, upload, part, checksums)

    async def _send_part(self, early: _Early, upload: BegunUpload, part: EarlyPart, checksums: bytes) -> None:
        try:
            await early.store.send(upload, part, early.staged.path, checksums)
            reached(Failpoint.EARLY_SENT)
        except (S3BlobFSError, OSError) as error:
            if not early.over:
                logger.info("the upload of inode %d waits for its end: %s", early.inode_id, error)
            early.end()
        finally:
            self._slots.release()

    async def _abandon(self, early: _Early, upload: BegunUpload) -> None:
        # Shielded: when the mount ends, what is in S3 is to go as well.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_TIMEOUT_S):
            try:
                await early.store.abandon(upload)
            except S3BlobFSError as error:
                logger.info("parts of inode %d are left in S3, to gc: %s", early.inode_id, error)


def _hint(tx: Transaction, inode_id: int) -> ObjectHint | None:
    inode = inodes.find(tx, inode_id)
    if inode is None:
        return None
    path = dentries.path_of(tx, inode_id) or b""
    return ObjectHint(inode.id, path, inode.mode, inode.uid, inode.gid, inode.mtime_ns)
