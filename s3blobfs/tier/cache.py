"""The cache: whole immutable contents under their cache names, kept across mounts.

An entry gets its name only when its length and digests are known to be right; it is never changed after
that. Entries are evicted in the order of their last use; *pinned* ones (somebody reads) are not. A pinned
entry may be removed all the same: its name goes at once, its bytes when the last pin does.

What the disk holds is found by a scan at start. The order of use is kept in the files' atime, which is set
here (a mount's ``relatime`` or ``noatime`` makes no difference), at most once a minute per entry.

Used from the trio thread alone. What can block, or calls what can, is async.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial

import trio

from s3blobfs.errors import TierError, TierOutOfFiles
from s3blobfs.tier.digest import file_digests
from s3blobfs.tier.entries import EntryTable
from s3blobfs.tier.entry import CacheEntry, Fill, Record
from s3blobfs.tier.entryfiles import EntryFiles
from s3blobfs.tier.layout import NO_LINK, TEMPORARY_PREFIX, Directory, TierLayout, entry_name
from s3blobfs.tier.localio import SharedFd, in_disk_thread, write_fully
from s3blobfs.tier.scan import scan, time_grain_ns
from s3blobfs.tier.session import Session
from s3blobfs.tier.space import Space, Use
from s3blobfs.tier.staging import StagedFile
from s3blobfs.trace import Arrow, Count, Local, Party, Tracer
from s3blobfs.types import ContentDigests

__all__ = ["Cache", "CacheEntry", "Fill"]

log = logging.getLogger(__name__)

_EVICT_BATCH = 64
"""Entries evicted (some 20 µs each) before other tasks get their turn."""


class Cache:
    """The entries of one mount. ``session`` and ``now_ns`` (of the epoch) are for tests."""

    def __init__(
        self,
        layout: TierLayout,
        space: Space,
        tracer: Tracer,
        *,
        session: Session | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._layout = layout
        self._space = space
        self._tracer = tracer
        self._unsynced = False
        self._session = session or Session(layout)
        self._now_ns = now_ns
        self._entries = EntryTable()
        self._files = EntryFiles(layout, self._session)
        self._added = itertools.count()
        self.disk_waits = 0
        """How often a read had to wait for the disk: what it wanted was not in memory."""
        self._heed_removal: Callable[[tuple[int, str]], object] = lambda key: None
        space.evict_with(self)

    async def start(self) -> None:
        """Find what earlier mounts left; evict what is over the limit. :class:`TierUnavailable`."""
        with self._layout.errors(f"scanning {self._layout.directory}"):
            records = await in_disk_thread(self._scan)
        self._entries.begin(records)
        self._space.adopt(sum(record.charged for record in records), Use.CACHED)
        await self._space.trim()

    def _scan(self) -> list[Record]:
        self._files.stamp_grain_ns = time_grain_ns(self._layout)
        trust = self._session.begin()
        records = scan(self._layout, self._files.stamp_grain_ns, trust)
        if trust.distrusted_from_ns is not None:
            try:
                self._session.distrusted_are_gone()
            except OSError as error:
                log.warning("cached files will be dropped after the next boot: %s", error)
        return records

    async def sync(self) -> None:
        """Bring the entries to the disk, so that they are good after a power failure too. Called when the
        mount ends. :class:`TierUnavailable`."""
        if self._unsynced:
            with self._layout.errors(f"syncing {self._layout.directory}"):
                await in_disk_thread(self._session.sync)
            self._unsynced = False

    async def end(self) -> None:
        """The last call: what changes from here on is not this mount's doing. :class:`TierUnavailable`."""
        with self._layout.errors(f"recording the end of the mount in {self._layout.directory}"):
            await in_disk_thread(self._session.end)

    # -- status ----------------------------------------------------------------------------------------

    @property
    def entry_count(self) -> int:
        return len(self._entries)

    @property
    def pinned_count(self) -> int:
        return len(self._entries) - self._entries.idle_count

    # -- reading ---------------------------------------------------------------------------------------

    def contains(self, store_id: int, cache_name: str) -> bool:
        """Whether there is an entry, not looking at the disk."""
        return (store_id, entry_name(cache_name)) in self._entries

    def get(self, store_id: int, cache_name: str, size_bytes: int) -> CacheEntry | None:
        """The entry, pinned and now the most recently used; ``None`` when there is none.

        An entry that is missing on the disk, has another length or was altered (by its mtime or ctime) is
        dropped with a warning, and there is none then. :class:`TierOutOfFiles`: it stays, and cannot be
        opened now."""
        record = self._entries.find((store_id, entry_name(cache_name)))
        if record is None:
            return None
        try:
            return self._pin_checked(record, size_bytes)
        except OSError as error:
            what = f"opening {self._files.path(record)}"
            mapped = self._layout.error(error, what)
            if isinstance(mapped, TierOutOfFiles):
                raise mapped from error
            self._discard(record, error)
        return None

    async def read_ahead(self, keys: Iterable[tuple[int, str]]) -> None:
        """Have the operating system bring entries (by store id and cache name) into memory."""
        found = [self._entries.find((store_id, entry_name(name))) for store_id, name in keys]
        records = [record for record in found if record is not None]
        self._tracer.count(Count.AHEAD_FROM_DISK, len(records))
        await in_disk_thread(partial(self._files.ask_for, records))

    def discard(self, entry: CacheEntry, error: TierError) -> None:
        """Forget an entry that turned out to be unreadable or altered, unless that is done."""
        if self._entries.has(entry.record):
            self._discard(entry.record, error)

    def _discard(self, record: Record, error: Exception) -> None:
        log.warning("cached file %s cannot be used and is dropped: %s", self._files.path(record), error)
        try:
            self._drop(record)
        except OSError as failure:
            log.warning("cached file %s cannot be removed: %s", self._files.path(record), failure)

    async def verify(self, entry: CacheEntry, digests: ContentDigests) -> bool:
        """Read the whole entry: whether it has these digests. The caller removes it if not.
        :class:`TierUnavailable`."""
        if entry.size_bytes != digests.size_bytes:
            return False
        with self._layout.errors(f"reading {entry.path}"):
            found = await file_digests(entry.fd, entry.size_bytes)
        return (found.md5, found.sha256) == (digests.md5, digests.sha256)

    # -- adding and removing ---------------------------------------------------------------------------

    async def promote(self, staged: StagedFile, store_id: int, cache_name: str) -> CacheEntry | None:
        """Make a sealed staged file, whose content is in S3 now, the entry of that name; pinned.

        The staged file is gone afterwards, whatever happens: where the entry exists already, or a newer
        content goes on in the same local file, it is discarded; where the disk refuses it is as well, with a
        warning, and the answer is ``None``."""
        assert staged.digests is not None, "only sealed files have known digests"
        entry = self.get(store_id, cache_name, staged.size_bytes)
        if entry is None and staged.promotable:
            try:
                with staged.opened() as file:
                    await staged.check()
                    # That may have taken a while: the file may be gone, or the content here by another way.
                    entry = self.get(store_id, cache_name, staged.size_bytes)
                    if entry is None and staged.promotable:
                        return self._install(store_id, cache_name, file, Use.STAGED, staged.move_to)
            except TierError as error:
                log.warning("%s is in S3 but cannot be kept in the cache: %s", staged.path, error)
        await staged.discard()
        return entry

    def begin_fill(self, store_id: int, cache_name: str, size_bytes: int) -> Fill:
        """A file for a content that comes from S3; :meth:`Fill.commit` makes it the entry.
        :class:`TierFull`, :class:`TierUnavailable`."""
        with self._layout.errors(f"making the cache directory of store {store_id}"):
            directory = self._layout.store(store_id)

        def install(fill: Fill) -> CacheEntry:
            entry = self.get(store_id, cache_name, size_bytes)
            if entry is not None:
                with self._layout.errors(f"removing {fill.path}"):
                    self._layout.unlink(directory, fill.name)
                self._space.release(fill.hand_over(), Use.FILLING)
                return entry

            def move(target: Directory, name: str) -> int:
                self._layout.rename(directory, fill.name, target, name)
                return fill.hand_over()

            return self._install(store_id, cache_name, fill.file, Use.FILLING, move)

        name = f"{TEMPORARY_PREFIX}fill_{secrets.token_hex(8)}"
        return Fill(self._layout, self._space, directory, name, size_bytes, install)

    def add(self, store_id: int, cache_name: str, data: bytes) -> None:
        """Make a small whole content, which is known to be right and not here yet, an entry: the first to be
        evicted, until it is read. Its room was reserved for filling, and is given back if this fails.
        :class:`TierUnavailable`, :class:`TierFull`."""
        assert not self.contains(store_id, cache_name)
        temporary = f"{TEMPORARY_PREFIX}add_{next(self._added)}"
        charged = len(data)

        def move(target: Directory, name: str) -> int:
            nonlocal charged
            self._layout.rename(target, temporary, target, name)
            moved, charged = charged, 0
            return moved

        try:
            with self._layout.errors(f"adding {cache_name} to the cache of store {store_id}"):
                directory = self._layout.store(store_id)
                file = SharedFd(directory.create(temporary))
                try:
                    write_fully(file.fd, data, 0)
                    entry = self._install(store_id, cache_name, file, Use.FILLING, move)
                finally:
                    file.release()
                    if charged:
                        directory.unlink(temporary)
        finally:
            self._space.release(charged, Use.FILLING)
        entry.unpin()
        self._entries.age(entry.record)

    async def link(self, store_id: int, cache_name: str, new_store_id: int, new_cache_name: str) -> bool:
        """Give an entry a second name (the object was copied in S3), accounted once. False when there is
        no such entry, or the disk cannot; an entry of the new name stays. :class:`TierUnavailable`."""
        source = self._entries.find((store_id, entry_name(cache_name)))
        key = (new_store_id, entry_name(new_cache_name))
        if source is None or key in self._entries:
            return source is not None
        try:
            record = self._files.link(source, key)
        except OSError as error:
            if error.errno not in NO_LINK:  # else the copy is simply not cached
                log.warning("cannot link %s to %s/%s: %s", self._files.path(source), *key, error)
            return False
        self._entries.add_name(source, record)
        self._unsynced = True
        self._tracer.step(Local.CACHE, Arrow.TO_DASHED, Local.CACHE, "link", new_cache_name)
        return True

    def remove(self, store_id: int, cache_name: str) -> bool:
        """Forget an entry, also a pinned one; False when there was none. :class:`TierUnavailable`."""
        self._heed_removal((store_id, cache_name))
        record = self._entries.find((store_id, entry_name(cache_name)))
        if record is None:
            return False
        with self._layout.errors(f"removing {self._files.path(record)}"):
            self._drop(record)
        self._tracer.step(Party.CLIENT, Arrow.TO, Local.CACHE, "delete", cache_name)
        return True

    def when_removed(self, heed: Callable[[tuple[int, str]], object]) -> None:
        """``heed`` is told store and cache name of what is removed, whether it is here or not."""
        self._heed_removal = heed

    # -- for a demotion --------------------------------------------------------------------------------

    def open_for_change(self, record: Record) -> SharedFd | None:
        """The file of an entry that nobody else uses, open for writing; ``None`` where somebody does.
        :class:`TierUnavailable`."""
        if record.pins or self._entries.others(record):
            return None
        with self._layout.errors(f"opening {self._files.path(record)}"):
            return SharedFd(self._files.directory(record).open(record.key[1], writable=True))

    def move_out(self, record: Record, target: Directory, name: str) -> int:
        """Give an entry's file another name, and forget the entry; answers its charge, which is released.
        :class:`TierUnavailable`, with nothing changed."""
        with self._layout.errors(f"renaming {self._files.path(record)}"):
            self._layout.rename(self._files.directory(record), record.key[1], target, name)
        self._entries.forget(record)
        charged, record.charged = record.charged, 0
        self._space.release(charged, Use.CACHED)
        return charged

    # -- eviction (Evictor) ----------------------------------------------------------------------------

    @property
    def evictable_bytes(self) -> int:
        return self._entries.idle_bytes

    async def evict(self, needed_bytes: int) -> int:
        """See :class:`~s3blobfs.tier.space.Evictor`. :class:`TierUnavailable`."""
        freed = 0
        while freed < needed_bytes and self._entries.idle_count:
            with self._layout.errors(f"evicting from {self._layout.directory}"):
                for _ in range(min(_EVICT_BATCH, self._entries.idle_count)):
                    freed += self._drop(self._entries.oldest_idle)
                    if freed >= needed_bytes:
                        break
            await trio.lowlevel.checkpoint()
        return freed

    # -- lending ---------------------------------------------------------------------------------------

    def lend(self, store_id: int, cache_name: str, size_bytes: int) -> CacheEntry | None:
        """The entry, pinned, for the kernel to read by itself, and open for writing by the only descriptor
        that this process has of it. ``None`` when there is none or it is altered, when somebody has it
        pinned, under whatever name, and when the disk does not let it be written to."""
        record = self._entries.find((store_id, entry_name(cache_name)))
        if record is None or any(each.pins for each in (record, *self._entries.others(record))):
            return None
        try:
            return self._pin_checked(record, size_bytes, writable=True)
        except OSError as error:
            # What is wrong with it is found, and said, when it is read.
            log.debug("%s is not lent: %s", self._files.path(record), error)
            return None

    def withdraw(self, entry: CacheEntry, target: Directory, name: str) -> int:
        """Give up a lent entry's file, whose bytes are going to change, as :meth:`move_out` does, with all
        its names. Who else has it pinned finds it altered. :class:`TierUnavailable`, also when the entry was
        dropped."""
        record = entry.record
        with self._layout.errors(f"moving {self._files.path(record)}"):
            if not self._entries.has(record):
                raise OSError("it was dropped while it was open")
            for other in self._entries.others(record):
                self._drop(other)
        charged = self.move_out(record, target, name)
        record.changed.forsake()
        return charged

    def put_back(
        self, staged: StagedFile, store_id: int, cache_name: str, digests: ContentDigests
    ) -> CacheEntry:
        """What was withdrawn did not change: it is the entry again, pinned, and the staged file is gone.
        Not where there is an entry of that name. :class:`TierError`, with nothing changed."""
        assert not self.contains(store_id, cache_name)
        staged.digests = digests
        with staged.opened() as file:
            return self._install(store_id, cache_name, file, Use.STAGED, staged.move_to)

    # -- records ---------------------------------------------------------------------------------------

    def _install(
        self,
        store_id: int,
        cache_name: str,
        file: SharedFd,
        use: Use,
        move: Callable[[Directory, str], int],
    ) -> CacheEntry:
        """Put a finished file in its place and pin it. ``move`` renames it and answers its charge."""
        name = entry_name(cache_name)
        with self._layout.errors(f"renaming to {name} in the cache of store {store_id}"):
            record = self._files.install(store_id, name, file, self._now_ns(), move)
        self._space.move(record.charged, use, Use.CACHED)
        self._tracer.step(Local.CACHE, Arrow.TO_DASHED, Local.CACHE, "rename", cache_name)
        record.file = file.acquire()
        self._entries.add(record)
        self._unsynced = True
        return self._pin(record)

    def _pin_checked(self, record: Record, size_bytes: int, *, writable: bool = False) -> CacheEntry:
        """``OSError`` for an entry that is not what it was."""
        file = self._files.open_checked(record, size_bytes, writable=writable)
        self._files.touch(record, file, self._now_ns())
        record.file = file
        if record.pins == 0:
            self._entries.unpark(record)
        return self._pin(record)

    def _pin(self, record: Record) -> CacheEntry:
        record.pins += 1
        return CacheEntry(record, self._layout, self._unpin, self._note_wait)

    def _note_wait(self) -> None:
        self.disk_waits += 1

    def _unpin(self, record: Record) -> None:
        record.pins -= 1
        file = record.file
        assert file is not None and record.pins >= 0
        if record.pins:
            return
        record.file = None
        if self._entries.has(record):
            file.release()
            self._entries.park(record)
        else:
            self._space.release(record.charged, Use.CACHED)
            self._layout.release(file, record.size_bytes)

    def _drop(self, record: Record) -> int:
        """Forget an entry and remove its file; answers the accounted bytes given back. ``OSError``, with
        the entry forgotten all the same."""
        others = self._entries.others(record)
        self._entries.forget(record)
        freed = 0
        if record.pins == 0:  # else its bytes stay until the last reader is done
            self._space.release(record.charged, Use.CACHED)
            freed = record.charged
        self._files.unlink(record, others)
        return freed
