"""The staged files of a mount: made, found again after a restart, and swept."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from weakref import WeakValueDictionary

from s3blobfs.tier.checkpoints import HashCheckpoints
from s3blobfs.tier.entry import CacheEntry
from s3blobfs.tier.layout import TEMPORARY_PREFIX, TierLayout
from s3blobfs.tier.localio import SharedFd
from s3blobfs.tier.naming import dirty_name, other_name
from s3blobfs.tier.small import Memory
from s3blobfs.tier.space import Space
from s3blobfs.tier.staged import StagedFile
from s3blobfs.trace import Local, Tracer
from s3blobfs.types import ContentDigests

__all__ = ["StagedFile", "Staging"]

log = logging.getLogger(__name__)


def _random_part() -> str:
    return secrets.token_hex(8)


class Staging:
    """The staged files of one mount. ``random_part`` (lower-case letters and digits) is for tests."""

    def __init__(
        self,
        layout: TierLayout,
        space: Space,
        tracer: Tracer,
        *,
        random_part: Callable[[], str] = _random_part,
    ) -> None:
        self.layout = layout
        self.space = space
        self.tracer = tracer
        self.checkpoints = HashCheckpoints()
        self.memory = Memory()
        """Of small contents."""
        self._random_part = random_part
        self._live: dict[str, StagedFile] = {}
        self._linked: WeakValueDictionary[tuple[int, int], StagedFile] = WeakValueDictionary()
        """Found with several names, by device and inode of the local file."""

    async def create(self, local: Local, source: Path | int | None = None, size_bytes: int = 0) -> StagedFile:
        """A new, empty file; or one with the first ``size_bytes`` of ``source``, a path or a descriptor
        that stays open meanwhile. :class:`TierFull`, :class:`TierUnavailable`."""
        name = dirty_name(self._random_part())
        try:
            file = SharedFd(self.layout.staging.create(name))
        except OSError as error:
            raise self.layout.error(error, f"making {self.layout.staging.locate(name)}") from error
        staged = self._live[name] = StagedFile(self, name, local, file, None)
        if source is not None:
            try:
                await self._copy(staged, source, size_bytes)
            except BaseException:
                await staged.discard()
                raise
        return staged

    async def create_from(
        self, local: Local, entry: CacheEntry, size_bytes: int, digests: ContentDigests
    ) -> StagedFile:
        """A new file with the first bytes of an entry that is pinned; ``digests`` are the entry's. Raises as
        :meth:`create`, and :class:`TierUnavailable` when the entry was altered."""
        staged = await self.create(local, entry.fd, size_bytes)
        try:
            entry.check()
            staged.derive(digests)
        except BaseException:
            await staged.discard()
            raise
        return staged

    def link(self, sealed: StagedFile, fd: int) -> StagedFile | None:
        """A second name for the local file of a sealed one, open as ``fd``, as a new staged file; ``None``
        when another file has its name. ``OSError``."""
        name, directory = dirty_name(self._random_part()), self.layout.staging
        self.layout.link(directory, sealed.name, directory, name)
        try:
            file = SharedFd(directory.open(name, writable=True))
            if not os.path.sameopenfile(file.fd, fd):
                file.release()
                directory.unlink(name)
                return None
        except OSError:
            directory.unlink(name)
            raise
        staged = self._live[name] = StagedFile(self, name, sealed.local, file, None)
        return staged

    def take_over(
        self,
        local: Local,
        file: SharedFd,
        size_bytes: int,
        digests: ContentDigests,
        move: Callable[[str], int],
    ) -> StagedFile:
        """A file that had another place becomes a staged one: ``file``, open for writing, which has
        ``digests``. ``move`` gives it its name in the staging directory, and answers for how many bytes it is
        accounted from now on."""
        name = dirty_name(self._random_part())
        charged = move(name)
        staged = self._live[name] = StagedFile(self, name, local, file, None)
        staged.take_over(size_bytes, charged)
        staged.derive(digests)
        return staged

    async def _copy(self, staged: StagedFile, source: Path | int, size_bytes: int) -> None:
        if isinstance(source, int):
            await staged.fill_from(source, size_bytes)
            return
        with self.layout.errors(f"opening {source}"):
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            await staged.fill_from(fd, size_bytes)
        finally:
            os.close(fd)

    def open(self, name: str, local: Local, digests: ContentDigests | None) -> StagedFile:
        """The staged file a journal row names: the one in use, or one that an earlier mount left, sealed
        exactly when ``digests`` are given. It may be found under the name it had before, or got after.

        :class:`TierUnavailable` when there is none, :class:`DamagedContent` when a sealed one is shorter than
        it was sealed with. One that is longer was appended to since: :meth:`StagedFile.cut_to_seal`."""
        other = other_name(name)
        if other is None:
            raise ValueError(f"{name!r} is not the name of a staged file")
        for live in (name, other):
            if live in self._live:
                return self._live[live]
        with self.layout.errors(f"opening staged file {self.layout.staging.locate(name)}"):
            try:
                fd = self.layout.staging.open(name, writable=digests is None)
            except FileNotFoundError:
                fd = self.layout.staging.open(other, writable=digests is None)
                name = other
        file = SharedFd(fd)
        staged = StagedFile(self, name, local, file, digests)
        try:
            staged.adopt_from_disk()
        except BaseException:
            file.release()
            raise
        self._join_others(staged, os.fstat(file.fd))
        staged.close_if_idle()
        self._live[name] = staged
        return staged

    def _join_others(self, staged: StagedFile, status: os.stat_result) -> None:
        """Two contents may have been left as one local file."""
        if status.st_nlink == 1:
            return
        other = self._linked.get((status.st_dev, status.st_ino))
        if other is not None and not other.gone:
            staged.join(other)
        self._linked[status.st_dev, status.st_ino] = staged

    def names(self) -> set[str]:
        """The staged files on the disk. :class:`TierUnavailable`."""
        with self.layout.errors(f"listing {self.layout.staging.path}"):
            return {name for name in self.layout.staging.names() if other_name(name) is not None}

    def sweep(self, keep: Collection[str]) -> list[str]:
        """Remove, at start, the staged files that no journal row names; answers their names."""
        kept = set(keep) | {other for name in keep if (other := other_name(name)) is not None}
        removed = sorted(self.names() - kept - self._live.keys())
        directory = self.layout.staging
        with self.layout.errors(f"removing unfinished files of {directory.path}"):
            doomed = [name for name in directory.names() if name.startswith(TEMPORARY_PREFIX)]
            for name in (*removed, *doomed):
                self.layout.unlink(directory, name)
        if removed:
            log.info("removed %d unfinished staged files", len(removed))
        return removed

    @property
    def file_count(self) -> int:
        """Staged files in use."""
        return len(self._live)

    # -- for StagedFile --------------------------------------------------------------------------------

    def renamed(self, staged: StagedFile, new_name: str) -> None:
        del self._live[staged.name]
        staged.name = new_name
        self._live[new_name] = staged

    def forget(self, staged: StagedFile) -> None:
        del self._live[staged.name]
