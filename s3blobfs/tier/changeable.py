"""A content of the local tier that is written, cut, punched, synced and read.

Its digests are computed while it is written (:mod:`s3blobfs.tier.digest`), and a small one is kept in memory
as well (:mod:`s3blobfs.tier.small`). A write that is refused leaves the file as it was; what else may befall
it, and what is done about that, is in :mod:`s3blobfs.tier.integrity`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from s3blobfs.config import OBJECT_MAX_BYTES
from s3blobfs.errors import TierError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.tier import blocks, room
from s3blobfs.tier.digest import DigestFollower
from s3blobfs.tier.layout import INLINE_FREE_BYTES, Directory, TierLayout
from s3blobfs.tier.localio import SharedFd, in_disk_thread, read_at
from s3blobfs.tier.origin import Origin
from s3blobfs.tier.sharing import SharedFile
from s3blobfs.tier.small import Memory, SmallContent
from s3blobfs.tier.space import Space
from s3blobfs.types import Buffer, ContentDigests


def _length_on_disk(size_bytes: int) -> int:
    """The disk's filesystem may not hold as much as a file may be extended to. What no object could hold is
    never written, so it is not on the disk at all."""
    return min(size_bytes, OBJECT_MAX_BYTES)


class ChangeableFile(SharedFile):
    """A content that may change as long as it is not sealed. Whatever changes it is called one at a time
    (the inode's lock sees to that); reads may run at any time.

    Errors of the disk: :class:`~s3blobfs.errors.TierFull`, :class:`~s3blobfs.errors.TierUnavailable`."""

    def __init__(
        self,
        layout: TierLayout,
        space: Space,
        memory: Memory,
        directory: Directory,
        name: str,
        file: SharedFd | None,
        digests: ContentDigests | None,
    ) -> None:
        super().__init__(layout, space, directory, name, file)
        self._memory = memory
        self._follower = DigestFollower()
        self._small = SmallContent(memory)
        self._sealing = False
        self._synced_name = ""
        self.promised = False
        """Bytes of it were synced, so somebody counts on them after a power failure; or an earlier mount may
        have done so."""
        self.origin: Origin | None = None
        """What it was made from, if that is known."""
        self.digests = digests
        """Set when the file is sealed."""
        self.on_void: Callable[[], None] | None = None
        """Called when bytes that were hashed are about to change, and when the file goes."""

    @property
    def sealed(self) -> bool:
        return self.digests is not None

    @property
    def writable(self) -> bool:
        return not self.sealed

    @property
    def hashed_bytes(self) -> int:
        """So many bytes, in whole blocks, are hashed and have not changed since."""
        return self._follower.hashed_bytes

    @property
    def hashed_checksums(self) -> bytes:
        """Of those: as :attr:`~s3blobfs.types.ContentDigests.checksums` has them."""
        return self._follower.checksums

    @property
    def failure(self) -> TierError | None:
        """Why its bytes cannot be relied on any more; it can only be emptied or discarded then."""
        return self._integrity.failure

    @property
    def _length(self) -> int:
        return self.size_bytes

    def _freed(self) -> None:
        self._charge.set(0)

    # -- changing --------------------------------------------------------------------------------------

    async def write(self, offset: int, data: Buffer) -> int:
        """Write all of ``data`` at ``offset``, or raise; answers its length. Room is reserved first.

        Up to 1 MiB is written on the event loop's thread: a hop costs more than the copy into the page
        cache. After an error the file has its old length, but bytes before it may have been replaced."""
        self._must_be_writable()
        length = len(data)
        if length == 0:
            return 0
        end = offset + length
        await self._part_before(offset)
        await self._charge.take_for(offset, end, self.size_bytes)
        if self.gone:
            self._charge.set(0)
        self._must_be_writable()
        self._about_to_change(offset, end)
        file = self._opened().acquire()
        try:
            await room.write(self._space, file.fd, data, offset)
            self.size_bytes = max(self.size_bytes, end)
            self._follower.wrote(offset, end, file)
            self._small.wrote(offset, data)
            self._charge.recount_if_due(file.fd, self.size_bytes)
            if self.shared:
                reached(Failpoint.EXTENDED)
        except OSError as error:
            mapped = self._layout.error(error, f"writing {self._where}")
            self._undo_growth(file.fd)
            raise mapped from error
        except BaseException:
            self._undo_growth(file.fd)  # cancelled before it began
            raise
        finally:
            file.release()
        return length

    async def truncate(self, size_bytes: int) -> None:
        """Cut the file, or extend it by a hole."""
        self._must_be_open()
        if size_bytes > 0:
            self._integrity.require()
        await self._part_before(size_bytes, cut=True)
        shrinks_by = self.size_bytes - size_bytes
        self._about_to_change(min(size_bytes, self.size_bytes))
        self._small.drop()
        with self.opened() as file, self._layout.errors(f"truncating {self._where}"):
            length = _length_on_disk(size_bytes)
            if shrinks_by > INLINE_FREE_BYTES:
                await in_disk_thread(partial(os.ftruncate, file.fd, length))
            else:
                os.ftruncate(file.fd, length)
            self.size_bytes = size_bytes
            if size_bytes == 0:
                self._integrity.emptied(file.fd)
                self._small = SmallContent(self._memory)
            self._charge.sparse |= shrinks_by < 0
            self._charge.cut(file.fd, size_bytes)

    async def allocate(self, offset: int, length: int, *, keep_size: bool) -> None:
        """fallocate(2): keep room for a range, so that writing there does not fail for want of it, and make
        the file as long unless told otherwise.

        :class:`TierFull`; ``EOPNOTSUPP`` where the tier's disk cannot."""
        self._must_be_writable()
        end = offset + length
        await self._charge.take_for(offset, end, self.size_bytes)
        self._about_to_change(self.size_bytes)
        self._small.drop()
        with self.opened() as file:
            try:
                with self._layout.errors(f"reserving room for {self._where}"):
                    await room.reserve(self._space, file.fd, offset, length)
                    if not keep_size and end > self.size_bytes:
                        os.ftruncate(file.fd, end)
                        self.size_bytes = end
                self._charge.reserved(offset, end)
            finally:
                self._charge.recount(file.fd, self.size_bytes)

    async def zero(self, offset: int, end: int, *, keep_room: bool) -> None:
        """fallocate(2): bytes of the file become zeros; a hole, unless the room is to be kept.

        ``EOPNOTSUPP`` where the tier's disk cannot keep it."""
        self._must_be_writable()
        await self._part_before(offset)
        self._about_to_change(offset, end)
        self._small.drop()
        with self.opened() as file:
            try:
                with self._layout.errors(f"zeroing a part of {self._where}"):
                    await in_disk_thread(partial(blocks.punch, file.fd, offset, end - offset))
                    if keep_room:
                        await room.reserve(self._space, file.fd, offset, end - offset)
                    else:
                        self._charge.freed(offset, end)
                        self._charge.sparse = True
            finally:
                self._charge.recount(file.fd, self.size_bytes)

    async def seek(self, offset: int, whence: int) -> int | None:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; ``None`` where no data follow."""
        with self.opened() as file, self._layout.errors(f"looking for holes in {self._where}"):
            return await in_disk_thread(partial(blocks.seek, file.fd, offset, whence, self.size_bytes))

    async def sync(self) -> None:
        """fdatasync(2), and the directory once per name: after a power failure the bytes are there. After a
        failure never again."""
        directory, name = self._directory, self.name
        self._integrity.require()
        with self.opened() as file, self._layout.errors(f"syncing {self._where}"):
            try:
                await in_disk_thread(partial(os.fdatasync, file.fd))
            except OSError as error:
                self._integrity.fail(error, f"{self._where} could not be brought to the disk")
                raise
            if self._synced_name != name:
                await in_disk_thread(partial(os.fsync, directory.fd))
                self._synced_name = name
            self.promised = True

    def changed_unseen(self) -> None:
        """Others may have written to it: what was hashed of it is void, and what is in memory."""
        self._about_to_change(0)
        self._small.drop()

    async def _part_before(self, start: int, *, cut: bool = False) -> None:
        """Bytes from ``start`` on are about to change, or (``cut``) to go. If another content has some of
        them in the same local file, this one gets a file of its own. :class:`TierError`, with nothing
        changed."""
        if start >= self._kept_bytes:
            return
        self._void_from(start)
        with self._layout.errors(f"copying {self._where}"):
            await self._part(start if cut else self.size_bytes, synced=self.promised)
        reached(Failpoint.PARTED)

    def _about_to_change(self, start: int, end: int = sys.maxsize) -> None:
        self._void_from(start)
        if self.origin is not None:
            self.origin.changes(start, end)

    def _void_from(self, start: int) -> None:
        if self._follower.about_to_change(start) and self.on_void is not None:
            self.on_void()

    def _must_be_writable(self) -> None:
        self._must_be_open()
        self._integrity.require()

    def _must_be_open(self) -> None:
        if self.gone or self.sealed or self._sealing:
            raise RuntimeError(f"{self.name} is {'gone' if self.gone else 'sealed'} and cannot be changed")

    def _undo_growth(self, fd: int) -> None:
        """A write failed half way: no byte of it may show beyond the length the file had."""
        self._small.drop()
        try:
            os.ftruncate(fd, _length_on_disk(self.size_bytes))
            self._charge.freed(self.size_bytes)
            self._charge.recount(fd, self.size_bytes)
        except OSError as error:
            self._integrity.fail(error, f"{self._where} could not be cut after a failed write")

    # -- reading ---------------------------------------------------------------------------------------

    async def read(self, offset: int, size: int) -> Buffer:
        """Up to ``size`` bytes from ``offset``, short only at the end of the file. :class:`TierUnavailable`
        also when the file is not what was written to it."""
        self._integrity.require()
        size = min(size, self.size_bytes - offset)
        if size <= 0:
            return b""
        file = self._opened().acquire()
        try:
            data = await read_at(file.fd, offset, size)
            if len(data) < size and offset + len(data) < _length_on_disk(self.size_bytes):
                raise OSError("it was shortened by another program")  # not cut by us meanwhile
            await self._check_unaltered(file.fd)
            missing = min(size, self.size_bytes - offset) - len(data)
            return data + bytes(missing) if missing > 0 else data
        except OSError as error:
            raise self._layout.error(error, f"reading {self._where}") from error
        finally:
            file.release()

    async def check(self) -> None:
        """That a sealed file is what it was when it was sealed. :class:`TierUnavailable` when it is not."""
        self._integrity.require()
        with self.opened() as file, self._layout.errors(f"looking at {self._where}"):
            await self._check_unaltered(file.fd)

    async def _check_unaltered(self, fd: int) -> None:
        # Of what is outgrown, times tell nothing. Nobody but its upload reads it, which compares checksums.
        if self.digests is not None and not self.gone and not self._outgrown:
            await self._integrity.require_unaltered(fd, self.digests)

    def allocated_bytes(self) -> int:
        """What the file occupies on the disk (stat's ``st_blocks``)."""
        with self.opened() as file, self._layout.errors(f"stat of {self._where}"):
            return os.fstat(file.fd).st_blocks * 512

    def modified_ns(self) -> int:
        """When its bytes last changed, by the disk's clock (stat's ``st_mtim``)."""
        with self.opened() as file, self._layout.errors(f"stat of {self._where}"):
            return os.fstat(file.fd).st_mtime_ns
