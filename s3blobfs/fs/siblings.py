"""Reading a directory's files one after the other: the next ones are fetched before they are asked for.

A *walk* is somebody reading files in the order of the directory's listing, which is that of their creation.
Several threads or programs may do so together, so *in order* is within ``NEAR`` places. It begins with the
third file; one that reads a file here and there has nothing fetched for it. How far ahead is fetched doubles
with what turned out right, up to ``ReadOptions.siblings``, and halves with what was passed by; a jump ends
it. Only what is in stores with a cache comes ahead, into the cache (:mod:`s3blobfs.tier.ahead`): elsewhere it
would have to be held in memory for nobody.

What is in the cache already may not be in memory. Where reads of it had to wait for the disk, that is asked
in the same way for the files that come next: a disk, too, takes many requests at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import ReadOptions
from s3blobfs.index import blobs, dentries
from s3blobfs.index.database import Database
from s3blobfs.tier.tier import Tier
from s3blobfs.types import BlobContent

NEAR = 32
"""Places between two files that are read in order: as many as there may be readers."""
IN_ORDER = 2
"""Files read in order, after a first one, until something is fetched ahead."""
FIRST_WINDOW = 4
WALKS_MAX = 8
"""Directories at a time."""
FIRST_READS_MAX = 64
"""Directories of which one file was read."""
_PAGE = 64
"""Entries taken from the index at once."""


class _Walk:
    """One directory. Places count from where the walk began."""

    def __init__(self, parent: int, after_cookie: int) -> None:
        self.parent = parent
        self.last_cookie = after_cookie
        self.at_end = False
        self.loading = False
        self.base = 0
        """The place of ``entries[0]``."""
        self.entries: deque[tuple[int, BlobContent | None]] = deque()
        self.places: dict[int, int] = {}
        """By inode."""
        self.front = 0
        """The farthest file that was read."""
        self.in_order = 0
        self.next = 0
        """The first place that was not looked at for fetching."""
        self.window = FIRST_WINDOW
        self.used = 0
        """In this window."""
        self.pending: dict[int, BlobContent] = {}
        """Fetched ahead, or about to be, and not read yet."""
        self.waits_for_disk = False
        """What is cached is not in memory."""
        self.from_disk: set[int] = set()
        """Places of cached files that the disk was asked for, and that were not read yet."""

    @property
    def end(self) -> int:
        return self.base + len(self.entries)

    def at(self, place: int) -> BlobContent | None:
        return self.entries[place - self.base][1]


class Siblings:
    """The walks of one mount. Used from the trio thread alone."""

    def __init__(self, db: Database, tier: Tier, stores: Mapping[int, BlobStore]) -> None:
        self._db = db
        self._tier = tier
        self._stores = stores
        self._options: ReadOptions = tier.read_options
        self._walks: OrderedDict[int, _Walk] = OrderedDict()
        self._walk_of: dict[int, _Walk] = {}  # by inode
        self._first_reads: OrderedDict[int, int] = OrderedDict()  # cookies by directory
        self._disk_waits = tier.cache.disk_waits

    def known(self, inode_id: int, blob_id: int) -> BlobContent | None:
        """The blob, if a walk has read its row from the index."""
        walk = self._walk_of.get(inode_id)
        blob = None if walk is None else walk.at(walk.places[inode_id])
        return blob if blob is not None and blob.blob_id == blob_id else None

    async def opened(self, inode_id: int, blob: BlobContent) -> None:
        """A file is about to be read."""
        if self._options.siblings == 0 or not self._stores[blob.store_id].config.cached:
            return
        disk_waits = self._tier.cache.disk_waits
        waited, self._disk_waits = disk_waits > self._disk_waits, disk_waits
        walk = self._walk_of.get(inode_id)
        if walk is None:
            if not waited and self._tier.fetcher.has(blob):
                return
            walk = await self._begin(inode_id)
            if walk is None:
                return
        # Perhaps somebody else's read waited: then the disk is asked for what is in memory, which is cheap.
        walk.waits_for_disk |= waited
        self._step(walk, walk.places[inode_id])
        if walk.in_order >= IN_ORDER:
            await self._go_on(walk)

    # -- walks -----------------------------------------------------------------------------------------

    async def _begin(self, inode_id: int) -> _Walk | None:
        """The walk that this file, which is in none, makes with the one before."""
        place = await self._db.read(lambda tx: dentries.place_of(tx, inode_id))
        if place is None:
            return None
        parent, cookie = place
        if parent in self._walks:
            self._end(self._walks[parent])  # it went elsewhere
        first = self._first_reads.pop(parent, None)
        if first is not None:
            walk = _Walk(parent, min(first, cookie) - 1)
            await self._load(walk, NEAR)
            if inode_id in walk.places and parent not in self._walks:
                self._keep(walk)
                return walk
        self._first_reads[parent] = cookie
        if len(self._first_reads) > FIRST_READS_MAX:
            self._first_reads.popitem(last=False)
        return None

    def _keep(self, walk: _Walk) -> None:
        if len(self._walks) >= WALKS_MAX:
            self._end(next(iter(self._walks.values())))
        self._walks[walk.parent] = walk
        for inode_id in walk.places:
            self._walk_of[inode_id] = walk

    def _end(self, walk: _Walk) -> None:
        del self._walks[walk.parent]
        for inode_id in walk.places:
            if self._walk_of.get(inode_id) is walk:
                del self._walk_of[inode_id]
        self._give_up(walk)

    def _give_up(self, walk: _Walk) -> None:
        self._tier.fetcher.ahead.give_up(walk.pending.values())
        walk.pending.clear()
        walk.from_disk.clear()

    def _step(self, walk: _Walk, place: int) -> None:
        self._walks.move_to_end(walk.parent)
        blob = walk.pending.pop(place, None)
        if (blob is not None and self._tier.fetcher.ahead.use(blob)) or place in walk.from_disk:
            walk.from_disk.discard(place)
            walk.used += 1
            if walk.used >= walk.window:
                walk.used, walk.window = 0, min(2 * walk.window, self._options.siblings)
        if 0 < place - walk.front <= NEAR:
            walk.in_order += 1
            walk.front = place
            self._pass_by(walk)
        elif abs(place - walk.front) > NEAR:
            self._give_up(walk)
            walk.front, walk.in_order, walk.used, walk.window = place, 0, 0, FIRST_WINDOW
            walk.next = place + 1
            self._pass_by(walk)

    def _pass_by(self, walk: _Walk) -> None:
        """Forget what is too far behind."""
        while walk.base < walk.front - NEAR:
            inode_id, _ = walk.entries.popleft()
            if walk.places.get(inode_id) == walk.base:
                del walk.places[inode_id]
                if self._walk_of.get(inode_id) is walk:
                    del self._walk_of[inode_id]
            blob = walk.pending.pop(walk.base, None)
            if blob is not None and self._tier.fetcher.ahead.give_up([blob]):
                walk.used, walk.window = 0, max(1, walk.window // 2)
            walk.from_disk.discard(walk.base)
            walk.base += 1

    # -- fetching --------------------------------------------------------------------------------------

    async def _go_on(self, walk: _Walk) -> None:
        """Have more fetched, several at a time, so that they share what it takes to begin."""
        walk.next = max(walk.next, walk.front + 1)
        if walk.loading or walk.next - walk.front - 1 > walk.window * 3 // 4:
            return
        if walk.front + walk.window >= walk.end and not walk.at_end:
            walk.loading = True
            try:
                await self._load(walk, _PAGE)
            finally:
                walk.loading = False
            if self._walks.get(walk.parent) is not walk:
                return
            walk.next = max(walk.next, walk.base)
        by_store: dict[int, list[int]] = {}
        cached: dict[int, BlobContent] = {}
        stop = min(walk.end, walk.front + 1 + walk.window)
        for place in range(walk.next, stop):
            blob = walk.at(place)
            if blob is None or not self._may_come(blob):
                continue
            if not self._tier.fetcher.has(blob):
                by_store.setdefault(blob.store_id, []).append(place)
            elif walk.waits_for_disk and place not in walk.from_disk:
                cached[place] = blob
        walk.next = max(walk.next, stop)
        if cached:
            self._tier.fetcher.read_ahead(cached.values())
            walk.from_disk.update(cached)
        for store_id, places in by_store.items():
            wanted = [blob for place in places if (blob := walk.at(place)) is not None]
            taken = self._tier.fetcher.ahead.fetch(wanted, self._stores[store_id])
            walk.pending.update(zip(places[:taken], wanted[:taken], strict=True))
            if taken < len(places):
                walk.next = min(walk.next, places[taken])  # no room: another time

    def _may_come(self, blob: BlobContent) -> bool:
        return blob.size_bytes <= self._options.sibling_bytes and self._stores[blob.store_id].config.cached

    async def _load(self, walk: _Walk, count: int) -> None:
        after = walk.last_cookie
        page = await self._db.read(lambda tx: blobs.of_files(tx, walk.parent, after, count))
        walk.at_end = len(page) < count
        is_kept = self._walks.get(walk.parent) is walk
        for cookie, inode_id, row in page:
            walk.places[inode_id] = walk.end
            walk.entries.append((inode_id, None if row is None else row.content()))
            walk.last_cookie = cookie
            if is_kept:
                self._walk_of[inode_id] = walk
