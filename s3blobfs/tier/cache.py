"""The cache: whole immutable contents under their cache names, kept across mounts.

An entry gets its name only when its length and digests are known to be right; it is never changed after
that. Entries are evicted in the order of their last use; *pinned* ones (somebody reads) are not. A pinned
entry may be removed all the same: its name goes at once, its bytes when the last pin does.

What the disk holds is found by a scan at start. The order of use is kept in the files' atime, which is set
here (a mount's ``relatime`` or ``noatime`` makes no difference), at most once a minute per entry.

Used from the trio thread alone. What can block, or calls what can, is async.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import trio

from s3blobfs.errors import TierError, TierOutOfFiles
from s3blobfs.tier.digest import file_digests
from s3blobfs.tier.entry import CacheEntry, ChangeTime, Fill, Record, is_unaltered, stamp_mtime_ns
from s3blobfs.tier.layout import TEMPORARY_PREFIX, Directory, TierLayout, entry_name
from s3blobfs.tier.localio import SharedFd, in_disk_thread, write_fully
from s3blobfs.tier.scan import scan, time_grain_ns
from s3blobfs.tier.session import Session
from s3blobfs.tier.space import Space, Use
from s3blobfs.tier.staging import StagedFile
from s3blobfs.trace import Arrow, Local, Party, Tracer
from s3blobfs.types import ContentDigests

__all__ = ["Cache", "CacheEntry", "Fill"]

log = logging.getLogger(__name__)

_TOUCH_EVERY_NS = 60 * 10**9
_EVICT_BATCH = 64
"""Entries evicted (some 20 µs each) before other tasks get their turn."""
_NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV})
"""The disk has no (more) hard links to give: a copy is then simply not cached."""


def _inode_of(record: Record) -> int:
    return record.inode


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
        self._records: dict[tuple[int, str], Record] = {}
        self._idle: OrderedDict[tuple[int, str], Record] = OrderedDict()  # unpinned, oldest use first
        self._idle_bytes = 0
        self._names_of: dict[int, list[Record]] = {}  # by inode, of those with more than one name
        self._stamp_grain_ns = 1
        self._added = itertools.count()
        self._heed_removal: Callable[[tuple[int, str]], object] = lambda key: None
        space.evict_with(self)

    async def start(self) -> None:
        """Find what earlier mounts left; evict what is over the limit. :class:`TierUnavailable`."""
        with self._layout.errors(f"scanning {self._layout.directory}"):
            records = await in_disk_thread(self._scan)
        for record in records:
            self._records[record.key] = record
            self._space.adopt(record.charged, Use.CACHED)
            self._park(record)
        for inode, names in itertools.groupby(sorted(records, key=_inode_of), key=_inode_of):
            if len(same := list(names)) > 1:
                self._names_of[inode] = same
        await self._space.trim()

    def _scan(self) -> list[Record]:
        self._stamp_grain_ns = time_grain_ns(self._layout)
        trust = self._session.begin()
        records = scan(self._layout, self._stamp_grain_ns, trust)
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
        return len(self._records)

    @property
    def pinned_count(self) -> int:
        return len(self._records) - len(self._idle)

    # -- reading ---------------------------------------------------------------------------------------

    def contains(self, store_id: int, cache_name: str) -> bool:
        """Whether there is an entry, not looking at the disk."""
        return (store_id, entry_name(cache_name)) in self._records

    def get(self, store_id: int, cache_name: str, size_bytes: int) -> CacheEntry | None:
        """The entry, pinned and now the most recently used; ``None`` when there is none.

        An entry that is missing on the disk, has another length or was altered (by its mtime or ctime) is
        dropped with a warning, and there is none then. :class:`TierOutOfFiles`: it stays, and cannot be
        opened now."""
        record = self._records.get((store_id, entry_name(cache_name)))
        if record is None:
            return None
        try:
            return self._pin_checked(record, size_bytes)
        except OSError as error:
            what = f"opening {self._path(record)}"
            mapped = self._layout.error(error, what)
            if isinstance(mapped, TierOutOfFiles):
                raise mapped from error
            self._discard(record, error)
        return None

    def discard(self, entry: CacheEntry, error: TierError) -> None:
        """Forget an entry that turned out to be unreadable or altered, unless that is done."""
        record = entry.record
        if self._records.get(record.key) is record:
            self._discard(record, error)

    def _discard(self, record: Record, error: Exception) -> None:
        log.warning("cached file %s cannot be used and is dropped: %s", self._path(record), error)
        try:
            self._drop(record)
        except OSError as failure:
            log.warning("cached file %s cannot be removed: %s", self._path(record), failure)

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

        The staged file is gone afterwards, whatever happens: where the entry exists already it is
        discarded; where the disk refuses it is as well, with a warning, and the answer is ``None``."""
        assert staged.digests is not None, "only sealed files have known digests"
        entry = self.get(store_id, cache_name, staged.size_bytes)
        if entry is None and not staged.gone:
            path = staged.path
            try:
                with staged.opened() as file:
                    await staged.check()
                    # That may have taken a while: the file may be gone, or the content here by another way.
                    entry = self.get(store_id, cache_name, staged.size_bytes)
                    if entry is None and not staged.gone:
                        return self._install(store_id, cache_name, file, Use.STAGED, staged.move_to)
            except TierError as error:
                log.warning("%s is in S3 but cannot be kept in the cache: %s", path, error)
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
        self._idle.move_to_end(entry.record.key, last=False)

    async def link(self, store_id: int, cache_name: str, new_store_id: int, new_cache_name: str) -> bool:
        """Give an entry a second name (the object was copied in S3), accounted once. False when there is
        no such entry, or the disk cannot; an entry of the new name stays. :class:`TierUnavailable`."""
        source = self._records.get((store_id, entry_name(cache_name)))
        key = (new_store_id, entry_name(new_cache_name))
        if source is None or key in self._records:
            return source is not None
        try:
            directory = self._layout.store(new_store_id)
            directory.unlink(key[1])  # no entry of ours: left by a link that failed half way
            with source.changed.ours(partial(self._stat, source)):
                self._layout.link(self._layout.store(store_id), source.key[1], directory, key[1])
        except OSError as error:
            if error.errno not in _NO_LINK:
                log.warning("cannot link %s to %s/%s: %s", self._path(source), *key, error)
            return False
        record = Record(
            key,
            size_bytes=source.size_bytes,
            charged=0,
            inode=source.inode,
            touched_ns=source.touched_ns,
            changed=source.changed,
        )
        self._names_of.setdefault(source.inode, [source]).append(record)
        self._records[key] = record
        self._unsynced = True
        self._park(record)
        self._tracer.step(Local.CACHE, Arrow.TO_DASHED, Local.CACHE, "link", new_cache_name)
        return True

    def remove(self, store_id: int, cache_name: str) -> bool:
        """Forget an entry, also a pinned one; False when there was none. :class:`TierUnavailable`."""
        self._heed_removal((store_id, cache_name))
        record = self._records.get((store_id, entry_name(cache_name)))
        if record is None:
            return False
        with self._layout.errors(f"removing {self._path(record)}"):
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
        if record.pins or record.inode in self._names_of:
            return None
        with self._layout.errors(f"opening {self._path(record)}"):
            return SharedFd(self._layout.store(record.key[0]).open(record.key[1], writable=True))

    def move_out(self, record: Record, target: Directory, name: str) -> int:
        """Give an entry's file another name, and forget the entry; answers its charge, which is released.
        :class:`TierUnavailable`, with nothing changed."""
        directory, old_name = self._layout.store(record.key[0]), record.key[1]
        with self._layout.errors(f"renaming {self._path(record)}"):
            self._layout.rename(directory, old_name, target, name)
        return self._forget(record)

    # -- eviction (Evictor) ----------------------------------------------------------------------------

    @property
    def evictable_bytes(self) -> int:
        return self._idle_bytes

    async def evict(self, needed_bytes: int) -> int:
        """See :class:`~s3blobfs.tier.space.Evictor`. :class:`TierUnavailable`."""
        freed = 0
        while freed < needed_bytes and self._idle:
            with self._layout.errors(f"evicting from {self._layout.directory}"):
                for _ in range(min(_EVICT_BATCH, len(self._idle))):
                    freed += self._drop(next(iter(self._idle.values())))
                    if freed >= needed_bytes:
                        break
            await trio.lowlevel.checkpoint()
        return freed

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
            directory = self._layout.store(store_id)
            status = os.fstat(file.fd)
            now_ns = self._now_ns()
            stamp_ns = stamp_mtime_ns(self._session.stamp_ns(now_ns), status.st_size)
            changed = ChangeTime(status.st_ctime_ns)
            with changed.ours(partial(os.fstat, file.fd)):
                os.utime(file.fd, ns=(now_ns, stamp_ns))
                charged = move(directory, name)
        self._space.move(charged, use, Use.CACHED)
        self._tracer.step(Local.CACHE, Arrow.TO_DASHED, Local.CACHE, "rename", cache_name)
        record = Record(
            (store_id, name),
            size_bytes=status.st_size,
            charged=charged,
            inode=status.st_ino,
            touched_ns=now_ns,
            changed=changed,
        )
        record.file = file.acquire()
        self._records[record.key] = record
        self._unsynced = True
        return self._pin(record)

    def _pin_checked(self, record: Record, size_bytes: int) -> CacheEntry:
        """``OSError`` for an entry that is not what it was."""
        file = record.file
        fresh = file is None
        if file is None:
            file = SharedFd(self._layout.store(record.key[0]).open(record.key[1]))
        try:
            status = os.fstat(file.fd)
            if status.st_size != size_bytes:
                raise OSError(f"it has {status.st_size} bytes, not {size_bytes}")
            unaltered = is_unaltered(status, size_bytes, self._stamp_grain_ns)
            if not unaltered or not record.changed.agrees(status):
                raise OSError("it was altered")
            self._touch(record, file.fd, status.st_mtime_ns)
        except OSError:
            if fresh:
                file.release()
            raise
        record.file = file
        if record.pins == 0:
            del self._idle[record.key]
            self._idle_bytes -= record.charged
        return self._pin(record)

    def _touch(self, record: Record, fd: int, mtime_ns: int) -> None:
        """Keep the time of the last use, for later mounts. A disk that takes no times can be read all the
        same."""
        now_ns = self._now_ns()
        if abs(now_ns - record.touched_ns) < _TOUCH_EVERY_NS:  # the clock may have been put back
            return
        record.touched_ns = now_ns
        try:
            with record.changed.ours(partial(os.fstat, fd)):
                os.utime(fd, ns=(now_ns, mtime_ns))
        except OSError as error:
            log.debug("%s keeps its time of use: %s", self._path(record), error)

    def _stat(self, record: Record) -> os.stat_result:
        store_id, name = record.key
        return os.stat(name, dir_fd=self._layout.store(store_id).fd, follow_symlinks=False)

    def _pin(self, record: Record) -> CacheEntry:
        record.pins += 1
        return CacheEntry(record, self._layout, self._unpin)

    def _unpin(self, record: Record) -> None:
        record.pins -= 1
        file = record.file
        assert file is not None and record.pins >= 0
        if record.pins:
            return
        record.file = None
        if self._records.get(record.key) is record:
            file.release()
            self._park(record)
        else:
            self._space.release(record.charged, Use.CACHED)
            self._layout.release(file, record.size_bytes)

    def _park(self, record: Record) -> None:
        """Unpinned: the last to be evicted."""
        self._idle[record.key] = record
        self._idle_bytes += record.charged

    def _drop(self, record: Record) -> int:
        """Forget an entry and remove its file; answers the accounted bytes given back. ``OSError``, with
        the entry forgotten all the same."""
        others = [each for each in self._names_of.get(record.inode, ()) if each is not record]
        freed = self._forget(record)
        directory = self._layout.store(record.key[0])
        fstat: Callable[[], os.stat_result] | None = None
        if record.file is not None:
            fstat = partial(os.fstat, record.file.fd)
        elif others:
            fstat = partial(self._stat, others[0])
        if fstat is None:
            self._layout.unlink(directory, record.key[1], record.size_bytes)
            return freed
        try:
            with record.changed.ours(fstat):
                directory.unlink(record.key[1])  # no block is freed by it, so it does not take long
        except OSError:  # of looking, perhaps: the others are looked at when they are used
            directory.unlink(record.key[1])
        return freed

    def _forget(self, record: Record) -> int:
        del self._records[record.key]
        if record.pins == 0:
            del self._idle[record.key]
            self._idle_bytes -= record.charged
        self._pass_on_charge(record)
        if record.pins:
            return 0  # its bytes stay until the last reader is done
        self._space.release(record.charged, Use.CACHED)
        return record.charged

    def _pass_on_charge(self, record: Record) -> None:
        """Another name of the same inode, if there is one, carries its bytes on."""
        names = self._names_of.get(record.inode)
        if names is None:
            return
        names.remove(record)
        heir = names[0]
        if record.charged:
            heir.charged, record.charged = record.charged, 0
            if heir.pins == 0:
                self._idle_bytes += heir.charged
        if len(names) == 1:
            del self._names_of[record.inode]

    def _path(self, record: Record) -> str:
        store_id, name = record.key
        return self._layout.store(store_id).locate(name)
