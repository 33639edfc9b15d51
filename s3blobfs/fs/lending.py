"""Lending the kernel files of the cache, which it then reads by itself (FUSE passthrough).

The kernel's rule is that all who have one inode open at a time are lent the same file, or none is. So what an
inode is to its first handle it stays for those that come while one is left:

* *lent*, when the first one only reads, and the content is stored, large enough, and whole in the cache, in a
  file that nobody else uses: contents that several inodes share are lent to one of them at a time;
* else *not lent*: the kernel keeps pages, and asks here for what it has not.

Readers of a lent file must see what is written. So before anything changes, the file they hold leaves the
cache and becomes the place where the change is made: it is *live* (:class:`~s3blobfs.fs.loan.Loan`). It is
the staged file whenever the content is dirty; what is sealed and stored is a copy of it, since it may go on
changing. Handles that write are lent it too, but for mappings only: their reads and writes come here.

Stores through a mapping come unseen, and mappings outlive their handles: see :mod:`s3blobfs.tier.lent`. A
loan ends when nobody but this process has the file open or mapped. Until then the inode stays lent.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from s3blobfs.errors import TierError, VolumeIndexError
from s3blobfs.fs import journal
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.loan import BackingFiles, Loan
from s3blobfs.fs.reading import Reading
from s3blobfs.index.transaction import Transaction
from s3blobfs.process import open_files_limit
from s3blobfs.tier import lent
from s3blobfs.tier.localio import in_disk_thread
from s3blobfs.tier.staging import StagedFile
from s3blobfs.trace import Count, Local
from s3blobfs.types import BlobContent

log = logging.getLogger(__name__)

LOANS_MAX: Final = 1024
"""At a time; each holds an open file, of which at most a quarter of what the process may have is used."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the kernel is to treat a handle that is lent a file."""

    number: int
    """See :class:`~s3blobfs.fs.loan.BackingFiles`."""
    only_mappings: bool
    """Reads and writes are to come here all the same."""


class Lending:
    """Which inodes are lent a file. Methods that are ``async`` are called with the inode's lock held, unless
    they say otherwise; those that are not change the state in one step."""

    def __init__(self, core: Core, reading: Reading) -> None:
        self._core = core
        self._reading = reading
        self._files: BackingFiles | None = None
        self._min_bytes = 0
        self._loans_max = 0
        self._inodes: set[InCoreInode] = set()
        self._lingering = trio.Event()

    def start(self, files: BackingFiles, min_bytes: int) -> None:
        """Lend from now on what is not smaller than that. ``OSError`` where the kernel or the cache's disk
        cannot do what it takes."""
        fd = lent.check_disk(self._core.tier.layout)
        try:
            files.forget(files.register(fd))
        finally:
            os.close(fd)
        self._files = files
        self._min_bytes = max(1, min_bytes)
        self._loans_max = min(LOANS_MAX, open_files_limit() // 4)

    @property
    def count(self) -> int:
        """Files that are lent."""
        return len(self._inodes)

    # -- handles -------------------------------------------------------------------------------------

    async def admit(self, handle: FileHandle, *, may_be_lent: bool = True) -> Access | None:
        """Decide about a handle, which counts from now on; ``None``: it is lent nothing. Takes the inode's
        lock. :class:`TierError` when a file cannot be made live."""
        inode = handle.inode
        if may_be_lent and self._lendable(handle):
            async with inode.lock:
                if self._lendable(handle):
                    self._lend(inode, await self._reading.blob(inode))
        loan = inode.loan
        if loan is None:
            inode.unlent_handles += 1
            handle.lent = False
            return None
        loan.handles += 1
        handle.lent = True
        if handle.writable:
            async with inode.lock:
                live = await self.make_live(inode)
                assert live is not None, "a loan with handles does not end"
                if handle.readable and not loan.mappable:
                    await self._make_mappable(inode, loan, live)
        else:
            self._core.mark_access(inode)  # its reads are not seen
        return Access(loan.number, only_mappings=handle.writable)

    def leave(self, handle: FileHandle) -> None:
        """A handle is gone, whether it was admitted or not."""
        inode = handle.inode
        if handle.lent:
            assert inode.loan is not None
            inode.loan.handles -= 1
        elif handle.lent is False:
            inode.unlent_handles -= 1
        handle.lent = None

    def _lendable(self, handle: FileHandle) -> bool:
        """As far as can be told without looking for the blob."""
        inode = handle.inode
        content = inode.content
        return (
            self._files is not None
            and inode.loan is None
            and inode.unlent_handles == 0
            and inode.row.size_bytes >= self._min_bytes
            and handle.flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY
            and content is not None
            and content.state is State.CLEAN
            and content.prefix is None
            and self._core.store_of(inode).cached
            and not self._core.tracer.drawing  # which would have nothing to draw
            and len(self._inodes) < self._loans_max
        )

    def _lend(self, inode: InCoreInode, blob: BlobContent) -> None:
        content, files = inode.content, self._files
        assert content is not None and files is not None
        if inode.loan is not None or inode.unlent_handles or content.state is not State.CLEAN:
            return  # somebody was faster
        entry = self._core.tier.cache.lend(blob.store_id, blob.location.cache_name, blob.size_bytes)
        if entry is None:
            return
        try:
            number = files.register(entry.fd)
        except OSError as error:
            log.info("the kernel does not read %s by itself: %s", entry.path, error.strerror)
            entry.unpin()
            return
        self._core.tracer.count(Count.CACHE_HIT)
        inode.loan = Loan(number, blob, entry)
        self._inodes.add(inode)

    # -- live files ----------------------------------------------------------------------------------

    async def make_live(self, inode: InCoreInode) -> StagedFile | None:
        """The content is about to change: the file that an inode is lent, as one that changes with it.
        ``None`` when the inode is lent nothing, or was not needed any more and is lent nothing from now on.
        :class:`TierError`."""
        loan = inode.loan
        if loan is None:
            return None
        if loan.handles == 0 and await self.end(inode):
            return None
        if loan.live is None:
            entry, core = loan.entry, self._core
            assert entry is not None
            staging, file = core.tier.staging, entry.share_file()
            try:
                move = partial(core.tier.cache.withdraw, entry, staging.layout.staging)
                live = staging.take_over(Local.CACHE, file, loan.blob.size_bytes, loan.blob.digests, move)
            except BaseException:
                file.release()
                raise
            live.pin()
            live.lent = True
            loan.live, loan.entry = live, None
            entry.unpin()
        return loan.live

    async def _make_mappable(self, inode: InCoreInode, loan: Loan, live: StagedFile) -> None:
        """From the answer to open on, stores may come unseen, and msync(2) may promise that they stay.
        :class:`TierError`."""
        assert inode.content is not None
        if inode.content.state is not State.DIRTY:
            self._mark(live)
        if inode.row.nlink > 0:  # else there is nothing to find again
            await live.sync()  # from now on the next mount takes it for the content

            def transaction(tx: Transaction) -> None:
                journal.remove(tx, inode.id)  # of an fsync of the same file
                journal.insert(tx, self._core, inode, live, inode.row.size_bytes, journal.new_write_id())

            await self._core.db.write(transaction, durable=True)
        loan.mappable = True

    def notice(self, inode: InCoreInode) -> None:
        """Find stores that came unseen: the content is dirty then. Caller holds the lock.
        :class:`TierUnavailable`."""
        loan, content = inode.loan, inode.content
        if loan is None or loan.live is None or not loan.mappable or loan.live.failure is not None:
            return
        assert content is not None
        if content.state is State.DIRTY or inode.removed:
            return
        with self._core.tier.layout.errors(f"looking at {loan.live.path}"):
            if lent.is_marked(loan.live.fd):
                return
        self.stage(inode, loan.live)
        inode.touch(self._core.now_ns())

    def stage(self, inode: InCoreInode, live: StagedFile) -> None:
        """The live file is what the inode's content is, and not stored."""
        assert inode.content is not None and inode.loan is not None
        inode.content.stage(live)
        inode.loan.pristine = False

    async def snapshot(self, inode: InCoreInode) -> StagedFile:
        """A file with the bytes that the live one has now, and that changes no more. :class:`TierError`."""
        loan = inode.loan
        assert loan is not None and loan.live is not None
        if loan.mappable:
            self._mark(loan.live)
            with self._core.tier.layout.errors(f"syncing {loan.live.path}"):
                await in_disk_thread(partial(os.fdatasync, loan.live.fd))
        return await loan.live.snapshot()

    def _mark(self, live: StagedFile) -> None:
        with self._core.tier.layout.errors(f"marking {live.path}"):
            lent.mark(live.fd)

    # -- the end -------------------------------------------------------------------------------------

    async def end(self, inode: InCoreInode, *, by_force: bool = False) -> bool:
        """End a loan that has no handles, if nobody else has its file, or if that does not matter any more
        (``by_force``). True if the inode is lent nothing now. What was changed last is staged then."""
        loan = inode.loan
        if loan is None:
            return True
        if loan.handles:
            return False
        if not by_force and not self._is_free(loan):
            self._lingering.set()
            return False
        self.notice(inode)
        assert self._files is not None
        self._files.forget(loan.number)
        inode.loan = None
        self._inodes.discard(inode)
        if loan.entry is not None:
            loan.entry.unpin()
        if loan.live is not None:
            await self._let_go(inode, loan, loan.live)
        self._core.inodes.release(inode)
        return True

    def _is_free(self, loan: Loan) -> bool:
        with self._core.tier.layout.errors("looking who has a cached file open"):
            return lent.nobody_else_has(loan.fd)

    async def _let_go(self, inode: InCoreInode, loan: Loan, live: StagedFile) -> None:
        """Of a live file that nobody has any more."""
        core, content = self._core, inode.content
        assert content is not None
        live.lent = False
        try:
            if content.staged is live:
                if loan.mappable:
                    live.changed_unseen()
                return  # a staged file like others
            blob = content.blob or loan.blob  # the same bytes; its object may have been made anew
            place = blob.store_id, blob.location.cache_name
            returns = loan.pristine and not inode.removed and not core.tier.cache.contains(*place)
            if not returns and not live.gone:
                # A journal row that is gone may come back until then.
                await core.uploader.secure(content.staged, promised=live.promised)
            if loan.mappable and not inode.removed:
                await core.db.write(lambda tx: journal.remove(tx, inode.id), durable=True)
            if returns:
                core.tier.cache.put_back(live, *place, blob.digests).unpin()
                return
            await live.discard()
        except (TierError, VolumeIndexError) as error:
            log.warning("a file of the local tier stays until the next mount: %s", error)
        finally:
            live.unpin()

    async def linger(self) -> list[InCoreInode]:
        """Wait until there are loans without handles; answers them. Holds no lock."""
        found: list[InCoreInode] = []
        while not found:
            await self._lingering.wait()
            found = [inode for inode in self._inodes if inode.loan is not None and inode.loan.handles == 0]
            if not found:
                self._lingering = trio.Event()
        return found

    def lent_inodes(self) -> list[InCoreInode]:
        return list(self._inodes)
