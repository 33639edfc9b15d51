"""The files behind the cache's entries: opened and checked, stamped, given and deprived of names.

What this process does to them moves their ctime, which would otherwise tell that somebody else has altered
them: see :class:`~s3blobfs.tier.entry.ChangeTime`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial

from s3blobfs.tier.entry import ChangeTime, Record, is_unaltered, stamp_mtime_ns
from s3blobfs.tier.layout import Directory, TierLayout
from s3blobfs.tier.localio import SharedFd, ask_for
from s3blobfs.tier.session import Session

log = logging.getLogger(__name__)

_TOUCH_EVERY_NS = 60 * 10**9


class EntryFiles:
    """Of one cache. Methods raise ``OSError``."""

    def __init__(self, layout: TierLayout, session: Session) -> None:
        self._layout = layout
        self._session = session
        self.stamp_grain_ns = 1
        """How exactly the disk keeps times."""

    def directory(self, record: Record) -> Directory:
        return self._layout.store(record.key[0])

    def path(self, record: Record) -> str:
        """For messages."""
        return self.directory(record).locate(record.key[1])

    def open_checked(self, record: Record, size_bytes: int, *, writable: bool = False) -> SharedFd:
        """The open file of an entry that is what it was; ``OSError`` otherwise."""
        file = record.file
        fresh = file is None
        if file is None:
            file = SharedFd(self.directory(record).open(record.key[1], writable=writable))
        try:
            status = os.fstat(file.fd)
            if status.st_size != size_bytes:
                raise OSError(f"it has {status.st_size} bytes, not {size_bytes}")
            unaltered = is_unaltered(status, size_bytes, self.stamp_grain_ns)
            if not unaltered or not record.changed.agrees(status):
                raise OSError("it was altered")
        except OSError:
            if fresh:
                file.release()
            raise
        return file

    def ask_for(self, records: Sequence[Record]) -> None:
        """Have the operating system read files before somebody does. What cannot be is for that one to find
        out. Fit for another thread; raises nothing."""
        for record in records:
            try:
                with SharedFd(self.directory(record).open(record.key[1])) as file:
                    ask_for(file.fd, record.size_bytes)
            except OSError as error:
                log.debug("%s is not read ahead: %s", self.path(record), error)

    def touch(self, record: Record, file: SharedFd, now_ns: int) -> None:
        """Keep the time of the last use, for later mounts. A disk that takes no times can be read all the
        same."""
        if abs(now_ns - record.touched_ns) < _TOUCH_EVERY_NS:  # the clock may have been put back
            return
        record.touched_ns = now_ns
        fstat = partial(os.fstat, file.fd)
        try:
            with record.changed.ours(fstat):
                os.utime(file.fd, ns=(now_ns, fstat().st_mtime_ns))
        except OSError as error:
            log.debug("%s keeps its time of use: %s", self.path(record), error)

    def install(
        self, store_id: int, name: str, file: SharedFd, now_ns: int, move: Callable[[Directory, str], int]
    ) -> Record:
        """Stamp a finished file and put it in its place. ``move`` renames it and answers its charge."""
        directory = self._layout.store(store_id)
        status = os.fstat(file.fd)
        stamp_ns = stamp_mtime_ns(self._session.stamp_ns(now_ns), status.st_size)
        changed = ChangeTime(status.st_ctime_ns)
        with changed.ours(partial(os.fstat, file.fd)):
            os.utime(file.fd, ns=(now_ns, stamp_ns))
            charged = move(directory, name)
        return Record(
            (store_id, name),
            size_bytes=status.st_size,
            charged=charged,
            inode=status.st_ino,
            touched_ns=now_ns,
            changed=changed,
        )

    def link(self, source: Record, key: tuple[int, str]) -> Record:
        """A second name for an entry's file."""
        directory = self._layout.store(key[0])
        directory.unlink(key[1])  # no entry of ours: left by a link that failed half way
        with source.changed.ours(partial(self._stat, source)):
            self._layout.link(self.directory(source), source.key[1], directory, key[1])
        return Record(
            key,
            size_bytes=source.size_bytes,
            charged=0,
            inode=source.inode,
            touched_ns=source.touched_ns,
            changed=source.changed,
        )

    def unlink(self, record: Record, others: Sequence[Record]) -> None:
        """Remove an entry's name; ``others`` are further ones of the same file."""
        directory = self.directory(record)
        fstat: Callable[[], os.stat_result] | None = None
        if record.file is not None:
            fstat = partial(os.fstat, record.file.fd)
        elif others:
            fstat = partial(self._stat, others[0])
        if fstat is None:
            self._layout.unlink(directory, record.key[1], record.size_bytes)
            return
        try:
            with record.changed.ours(fstat):
                directory.unlink(record.key[1])  # no block is freed by it, so it does not take long
        except OSError:  # of looking, perhaps: the others are looked at when they are used
            directory.unlink(record.key[1])

    def _stat(self, record: Record) -> os.stat_result:
        return os.stat(record.key[1], dir_fd=self.directory(record).fd, follow_symlinks=False)
