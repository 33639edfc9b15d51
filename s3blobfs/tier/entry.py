"""The files of the cache: an entry that is being read, and one that is being filled."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from s3blobfs.tier.layout import Directory, TierLayout
from s3blobfs.tier.localio import SharedFd, read_at, write_at
from s3blobfs.tier.space import Space, Use
from s3blobfs.types import Buffer

_SECOND_NS = 10**9
_NEVER = -(2**63)
"""No file's ctime."""


class ChangeTime:
    """The ctime that an inode has by what this process did to it; shared by all its names.

    Whoever alters a file moves its ctime, and no program can set it back. What this process does itself
    (giving it its stamp, a further name, removing one) moves it as well: each such act is enclosed by
    :meth:`ours`."""

    __slots__ = ("_ns",)

    def __init__(self, ctime_ns: int) -> None:
        self._ns = ctime_ns

    def agrees(self, status: os.stat_result) -> bool:
        return status.st_ctime_ns == self._ns

    def forsake(self) -> None:
        """From now on the file is somebody else's to change."""
        self._ns = _NEVER

    @property
    def forsaken(self) -> bool:
        return self._ns == _NEVER

    @contextlib.contextmanager
    def ours(self, fstat: Callable[[], os.stat_result]) -> Iterator[None]:
        """What is done inside is no alteration; one that came before remains one. ``OSError`` of ``fstat``
        before, and of the block."""
        agreed = self.agrees(fstat())
        try:
            yield
        finally:
            if agreed:
                try:
                    self._ns = fstat().st_ctime_ns
                except OSError:
                    self._ns = _NEVER  # what cannot be looked at is not trusted either


class Record:
    """What is known of one file of the cache. An entry in memory: about 0.5 KiB."""

    __slots__ = ("changed", "charged", "file", "inode", "key", "pins", "size_bytes", "touched_ns")

    def __init__(
        self,
        key: tuple[int, str],
        *,
        size_bytes: int,
        charged: int,
        inode: int,
        touched_ns: int,
        changed: ChangeTime,
    ) -> None:
        self.key = key
        """Store id and file name."""
        self.size_bytes = size_bytes
        self.charged = charged
        """Accounted bytes; 0 while another name of the same inode carries them."""
        self.inode = inode
        self.changed = changed
        self.touched_ns = touched_ns
        """The atime last set."""
        self.pins = 0
        self.file: SharedFd | None = None
        """Open while pinned."""


def stamp_mtime_ns(now_ns: int, size_bytes: int) -> int:
    """The mtime given to an entry: now, with fractions of a second computed from its length.

    A program that changes the file changes its mtime, and will hardly hit the same fraction: an altered
    entry is recognized without reading it, also by a later mount, also after this one was killed. One that
    puts the mtime back is found out by the ctime, see :class:`ChangeTime` and :mod:`s3blobfs.tier.scan`."""
    return now_ns - now_ns % _SECOND_NS + zlib.crc32(b"s3blobfs %d" % size_bytes) % _SECOND_NS


def is_unaltered(status: os.stat_result, size_bytes: int, stamp_grain_ns: int) -> bool:
    """Whether the file still has its length and its stamp, as exactly as the disk keeps times."""
    expected = stamp_mtime_ns(status.st_mtime_ns, size_bytes)
    return status.st_size == size_bytes and expected - expected % stamp_grain_ns == status.st_mtime_ns


class CacheEntry:
    """A pinned entry: its bytes can be read until :meth:`unpin`, whatever becomes of its name."""

    __slots__ = ("_directory", "_file", "_layout", "_on_wait", "_record", "_unpin", "size_bytes")

    def __init__(
        self,
        record: Record,
        layout: TierLayout,
        unpin: Callable[[Record], None],
        on_wait: Callable[[], object],
    ) -> None:
        """``on_wait`` is told of reads that have to wait for the disk."""
        self._record = record
        self._on_wait = on_wait
        self._layout = layout
        self._directory = layout.store(record.key[0])
        self._unpin = unpin
        self._file = record.file
        self.size_bytes = record.size_bytes

    @property
    def record(self) -> Record:
        """For the cache."""
        return self._record

    @property
    def path(self) -> Path:
        """Where the file is, unless it was removed since."""
        return self._directory.path / self._record.key[1]

    @property
    def fd(self) -> int:
        """Open for reading."""
        return self._opened().fd

    def share_file(self) -> SharedFd:
        """The open file, for one more user."""
        return self._opened().acquire()

    def is_withdrawn(self) -> bool:
        """The file has become one that changes: nothing of what was read from it since can be relied on."""
        return self._record.changed.forsaken

    async def read(self, offset: int, size: int) -> Buffer:
        """Up to ``size`` bytes from ``offset``, short only at the end. :class:`TierUnavailable`, also when
        the file has been altered."""
        file = self._opened().acquire()
        try:
            data = await read_at(file.fd, offset, min(size, self.size_bytes - offset), self._on_wait)
            self._check(file.fd)
            return data
        except OSError as error:
            raise self._layout.error(error, f"reading {self._where}") from error
        finally:
            file.release()

    def check(self) -> None:
        """:class:`TierUnavailable` when what was read of the file until now may be wrong."""
        with self._layout.errors(f"looking at {self._where}"):
            self._check(self.fd)

    @property
    def _where(self) -> str:
        return self._directory.locate(self._record.key[1])

    def _check(self, fd: int) -> None:
        status = os.fstat(fd)
        if status.st_size != self.size_bytes or not self._record.changed.agrees(status):
            raise OSError("it was altered by another program")

    def unpin(self) -> None:
        """The reader is done, and none of its reads is under way. Once."""
        self._opened()
        self._file = None
        self._unpin(self._record)

    def _opened(self) -> SharedFd:
        if self._file is None:
            raise RuntimeError(f"{self.path} is not pinned any more")
        return self._file


class Fill:
    """An unfinished content on its way into the cache: a sparse file, accounted as it is written."""

    def __init__(
        self,
        layout: TierLayout,
        space: Space,
        directory: Directory,
        name: str,
        size_bytes: int,
        install: Callable[[Fill], CacheEntry],
    ) -> None:
        self._layout = layout
        self._space = space
        self._install = install
        self._charged = 0
        self._entry: CacheEntry | None = None
        self.directory = directory
        self.name = name
        self.size_bytes = size_bytes
        self.path = directory.locate(name)
        with self._layout.errors(f"making {self.path}"):
            self._file: SharedFd | None = SharedFd(directory.create(name))
            os.ftruncate(self._file.fd, size_bytes)

    @property
    def file(self) -> SharedFd:
        """Open for reading and writing."""
        assert self._file is not None, "the fill is closed"
        return self._file

    async def reserve(self, size_bytes: int) -> None:
        """Room for bytes that are going to be written. :class:`TierFull`."""
        await self._space.reserve(size_bytes, Use.FILLING)
        self._charged += size_bytes

    def unreserve(self, size_bytes: int) -> None:
        """Room that was reserved and not written to."""
        self._space.release(size_bytes, Use.FILLING)
        self._charged -= size_bytes

    async def write(self, offset: int, data: Buffer) -> None:
        """Into room reserved before. :class:`TierFull`, :class:`TierUnavailable`."""
        with self._layout.errors(f"writing {self.path}"):
            await write_at(self.file.fd, data, offset)

    async def read(self, offset: int, size: int) -> Buffer:
        """Of bytes that were written. :class:`TierUnavailable`."""
        file = self.file.acquire()
        try:
            return await read_at(file.fd, offset, size)
        except OSError as error:
            raise self._layout.error(error, f"reading {self.path}") from error
        finally:
            file.release()

    def commit(self) -> None:
        """All bytes are there and right: the file becomes the entry, or is dropped where there is one
        already. It stays readable here either way. :class:`TierUnavailable`, with nothing changed."""
        assert self._entry is None, "committed already"
        self._entry = self._install(self)

    def hand_over(self) -> int:
        """The accounted bytes, which somebody else takes over."""
        charged, self._charged = self._charged, 0
        return charged

    def close(self) -> None:
        """Let go of the file; what was not committed is removed. :class:`TierUnavailable`."""
        file, self._file = self._file, None
        assert file is not None, "closed already"
        self._space.release(self.hand_over(), Use.FILLING)
        if self._entry is not None:
            file.release()
            self._entry.unpin()
            return
        self._layout.release(file, self.size_bytes)
        with self._layout.errors(f"removing {self.path}"):
            self._layout.unlink(self.directory, self.name, self.size_bytes)
