"""In-core inodes: what is known of an inode without asking the index, and who still needs it.

Four counts are kept apart: ``nlink`` (names, in the row), ``lookup_count`` (references the kernel holds),
``open_count`` (handles) and a blob's ``refs`` (in the index). An in-core inode lives while a handle refers to
it or its content is in flux; while only the kernel refers to it, until too many others were used since.

Ordering without locks: every index row carries the number of the transaction that wrote it, and an older
row never replaces a newer one here. What the index does not know yet (times of writes, the size of a staged
file) is an overlay that the next transaction on the inode takes along.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from weakref import WeakValueDictionary

import trio

from s3blobfs import locks
from s3blobfs.fs.attributes import BLOCK_BYTES, Attributes
from s3blobfs.fs.content import Content, State
from s3blobfs.fs.loan import Loan
from s3blobfs.index.inodes import InodeRow
from s3blobfs.tier.staging import StagedFile

INODES_KEPT = 32_768
"""Idle inodes kept in core: some 25 MiB."""

_EVICTED_AT_ONCE = 1024


class InodeLock:
    """A lock that costs no trip through the scheduler while it is free, and next to nothing until it is used:
    a listing brings in thousands of inodes that are only looked at."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock: trio.Lock | None = None

    async def __aenter__(self) -> None:
        self._lock = self._lock or trio.Lock()
        await locks.acquire(self._lock)

    async def __aexit__(self, *exc: object) -> None:
        assert self._lock is not None
        self._lock.release()


class InCoreInode:
    """One inode as this process knows it."""

    __slots__ = (
        "__weakref__",
        "atime_ns",
        "content",
        "content_change",
        "ctime_ns",
        "kernel_content_change",
        "loan",
        "lock",
        "lookup_count",
        "mtime_ns",
        "open_count",
        "removed",
        "row",
        "unlent_handles",
        "writer_count",
        "xattrs",
    )

    def __init__(self, row: InodeRow) -> None:
        self.row = row
        self.lookup_count = 0
        self.open_count = 0
        self.writer_count = 0
        """Handles open for writing."""
        self.loan: Loan | None = None
        """The file that the kernel reads by itself for all handles; see :mod:`s3blobfs.fs.lending`."""
        self.unlent_handles = 0
        """Handles that are lent nothing: either there are none of these, or there is no loan."""
        self.lock = InodeLock()
        """Held while the content changes state or its attributes are written. Order: at most one inode's
        lock is held at a time, and no S3 request is made under it except to bring in what a writer needs."""
        self.removed = False
        """The index has no such inode any more; the kernel still holds a reference."""
        self.atime_ns: int | None = None
        self.mtime_ns: int | None = None
        self.ctime_ns: int | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        """All extended attributes, once one was asked for."""
        self.content_change = 0
        """Counts changes of the bytes in this process."""
        self.kernel_content_change = -1
        """``content_change`` when the kernel last opened the file: its pages are good while they agree."""
        self.content: Content | None = None
        if stat.S_ISREG(row.mode):
            self.content = Content(State.EMPTY if row.blob_id is None else State.CLEAN)

    @property
    def id(self) -> int:
        return self.row.id

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.row.mode)

    def apply(self, row: InodeRow) -> None:
        """Take over a row that a transaction returned, unless a later one was applied already."""
        if row.change >= self.row.change:
            self.row = row

    def amend(self, row: InodeRow) -> None:
        """Change the row of an inode that the index has forgotten."""
        assert self.removed
        self.row = row

    @property
    def size_bytes(self) -> int:
        content = self.content
        if content is not None:
            if content.state is State.DIRTY and content.staged is not None:
                return content.staged.size_bytes
            if content.prefix is not None:
                return content.prefix.size_bytes
        return self.row.size_bytes

    @property
    def live(self) -> StagedFile | None:
        """The file that has the inode's bytes whatever its content's state, while handles are lent it."""
        return None if self.loan is None else self.loan.live

    @property
    def mapped(self) -> StagedFile | None:
        """The live file, if it may be stored into through mappings; it has a journal row."""
        return self.loan.live if self.loan is not None and self.loan.mappable else None

    def touch(self, now_ns: int) -> None:
        """The bytes changed: mtime and ctime, to be written with the next transaction on this inode."""
        self.mtime_ns = self.ctime_ns = now_ns
        self.content_change += 1

    def settle_times(self, mtime_ns: int | None, ctime_ns: int | None, atime_ns: int | None) -> None:
        """A transaction has written these; what changed meanwhile stays pending."""
        if self.mtime_ns == mtime_ns:
            self.mtime_ns = None
        if self.ctime_ns == ctime_ns:
            self.ctime_ns = None
        if self.atime_ns == atime_ns:
            self.atime_ns = None

    def attributes(self) -> Attributes:
        row = self.row
        known = attributes_of(row)
        content = self.content
        if content is not None and content.state is State.DIRTY and content.staged is not None:
            known = known._replace(
                size_bytes=content.staged.size_bytes,
                blocks=-(-content.staged.allocated_bytes() // BLOCK_BYTES),
            )
        elif content is not None and content.prefix is not None:
            size = content.prefix.size_bytes
            known = known._replace(size_bytes=size, blocks=-(-size // BLOCK_BYTES))
        if self.atime_ns is self.mtime_ns is self.ctime_ns is None:
            return known
        return known._replace(
            atime_ns=row.atime_ns if self.atime_ns is None else self.atime_ns,
            mtime_ns=row.mtime_ns if self.mtime_ns is None else self.mtime_ns,
            ctime_ns=row.ctime_ns if self.ctime_ns is None else max(self.ctime_ns, row.ctime_ns),
        )

    @property
    def disposable(self) -> bool:
        """Nobody needs this object: the index knows everything about the inode."""
        return (
            self.lookup_count == 0
            and self.open_count == 0
            and self.loan is None
            and not (self.content is not None and self.content.in_flux)
        )

    @property
    def is_idle(self) -> bool:
        """The index knows everything about the inode, but for times, and nobody has it open."""
        return (
            self.open_count == 0
            and self.loan is None
            and not self.removed
            and not (self.content is not None and self.content.in_flux)
        )

    @property
    def has_pending_times(self) -> bool:
        """Times that the index should have before this object is dropped."""
        return not self.removed and not (self.atime_ns is None and self.mtime_ns is None)


def attributes_of(row: InodeRow) -> Attributes:
    """What the index knows of an inode."""
    return Attributes(
        row.id,
        row.mode,
        row.nlink,
        row.uid,
        row.gid,
        row.rdev,
        row.size_bytes,
        -(-row.size_bytes // BLOCK_BYTES) if stat.S_ISREG(row.mode) else 0,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
    )


class InodeTable:
    """The in-core inodes by id, the least recently used first.

    The kernel may refer to millions of inodes, all that a find(1) has walked over. Since ids are for life and
    the index knows every idle inode, only about ``INODES_KEPT`` of them stay: what is evicted is read again
    when it is asked for. An inode that a call in progress still holds is found again as the same object, so
    that there are never two of one id.
    """

    def __init__(self) -> None:
        self._crowded_at = INODES_KEPT
        self._inodes: OrderedDict[int, InCoreInode] = OrderedDict()
        self._dropped: WeakValueDictionary[int, InCoreInode] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[InCoreInode]:
        return iter(list(self._inodes.values()))

    def find(self, inode_id: int) -> InCoreInode | None:
        inode = self._inodes.get(inode_id)
        if inode is not None:
            self._inodes.move_to_end(inode_id)
            return inode
        inode = self._dropped.pop(inode_id, None)
        if inode is not None:
            self._inodes[inode_id] = inode
        return inode

    def among(self, inode_ids: Sequence[int]) -> dict[int, InCoreInode]:
        """Those that are in core, by id; that they were asked for does not keep them there."""
        known = self._inodes
        found = {inode_id: known[inode_id] for inode_id in inode_ids if inode_id in known}
        if self._dropped:
            held = self._dropped
            found.update((inode_id, held[inode_id]) for inode_id in inode_ids if inode_id in held)
        return found

    def admit(self, row: InodeRow) -> InCoreInode:
        """The in-core inode of a row just read or written, made if it is not there yet."""
        inode = self.find(row.id)
        if inode is None:
            inode = self._inodes[row.id] = InCoreInode(row)
        else:
            inode.apply(row)
        return inode

    def refresh(self, row: InodeRow) -> None:
        """Apply a row where its inode is in core; do not bring it in."""
        inode = self.find(row.id)
        if inode is not None:
            inode.apply(row)

    def release(self, inode: InCoreInode) -> None:
        """Drop the object if nobody needs it any more."""
        if inode.disposable:
            self._drop(inode)

    @property
    def crowded(self) -> bool:
        """Whether it is time to evict."""
        return len(self._inodes) > self._crowded_at

    def idle(self) -> list[InCoreInode]:
        """Inodes to evict, of those that were not used for longest. The table is crowded again when half as
        many have come as are evicted at once."""
        self._crowded_at = max(INODES_KEPT, len(self._inodes)) + _EVICTED_AT_ONCE // 2
        found: list[InCoreInode] = []
        excess = len(self._inodes) - INODES_KEPT
        for inode_id in list(islice(self._inodes, min(excess + _EVICTED_AT_ONCE, 8 * _EVICTED_AT_ONCE))):
            inode = self._inodes[inode_id]
            if inode.is_idle:
                found.append(inode)
            else:
                self._inodes.move_to_end(inode_id)
        return found

    def evict(self, inode: InCoreInode) -> None:
        """Drop the object if it is still idle, although the kernel may refer to the inode."""
        if inode.is_idle and not inode.has_pending_times:
            self._drop(inode)
        room = _EVICTED_AT_ONCE // 2
        self._crowded_at = max(INODES_KEPT, min(self._crowded_at, len(self._inodes) + room))

    def _drop(self, inode: InCoreInode) -> None:
        if self._inodes.pop(inode.id, None) is not None:
            self._dropped[inode.id] = inode
