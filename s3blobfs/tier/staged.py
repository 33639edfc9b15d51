"""One staged file: a content that is being written, or is written and not yet in S3.

It is *dirty* while it changes and *sealed* when it does not any more. Its digests are computed while it is
written (:mod:`s3blobfs.tier.digest`). It ends by being promoted into the cache
(:meth:`s3blobfs.tier.cache.Cache.promote`) or by being discarded.

Its names are in :mod:`s3blobfs.tier.naming`, what it takes of the tier's room in :mod:`s3blobfs.tier.charge`.
A write that is refused leaves the file as it was; what else may befall it, and what is done about that, is
in :mod:`s3blobfs.tier.integrity`. Contents of one file of which each is the beginning of the next may be one
local file: :mod:`s3blobfs.tier.sharing`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from s3blobfs.config import OBJECT_MAX_BYTES
from s3blobfs.errors import DamagedContent, TierError
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.tier import blocks, room
from s3blobfs.tier.copying import copy_range
from s3blobfs.tier.digest import INLINE_DIGEST_BYTES, ContentHasher, DigestFollower, content_digests
from s3blobfs.tier.layout import INLINE_FREE_BYTES, NO_LINK, Directory
from s3blobfs.tier.localio import SharedFd, in_disk_thread, read_at
from s3blobfs.tier.naming import sealed_name
from s3blobfs.tier.origin import Origin
from s3blobfs.tier.sharing import SharedFile
from s3blobfs.tier.small import SmallContent
from s3blobfs.trace import Arrow, Local, Party
from s3blobfs.types import Buffer, ContentDigests, FileStart

if TYPE_CHECKING:
    from s3blobfs.tier.staging import Staging


def _length_on_disk(size_bytes: int) -> int:
    """The disk's filesystem may not hold as much as a file may be extended to. What no object could hold is
    never written, so it is not on the disk at all."""
    return min(size_bytes, OBJECT_MAX_BYTES)


class StagedFile(SharedFile):
    """One staged file; made by :class:`Staging`. Writes, truncates and the seal are called one at a time
    (the inode's lock sees to that); reads may run at any time.

    Errors of the disk: :class:`~s3blobfs.errors.TierFull`, :class:`~s3blobfs.errors.TierUnavailable`."""

    def __init__(
        self, staging: Staging, name: str, local: Local, file: SharedFd | None, digests: ContentDigests | None
    ) -> None:
        super().__init__(staging.layout, staging.space, staging.layout.staging, name, file)
        self._staging = staging
        self._follower = DigestFollower()
        self._small = SmallContent(staging.memory)
        self._sealing = False
        self._synced_name = ""
        self.promised = False
        """Bytes of it were synced, so somebody counts on them after a power failure; or an earlier mount may
        have done so."""
        self.lent = False
        """The kernel uses it by itself, for those who have the inode open: it stays until they are done."""
        self.local = local
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
                self._small = SmallContent(self._staging.memory)
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

    # -- the end ---------------------------------------------------------------------------------------

    async def seal(self, rename: bool, *, keep_open: bool = False) -> ContentDigests:
        """No more changes (they raise ``RuntimeError``): finish the digests and, for a cached store, give
        the file its second name. A seal that fails or is cancelled leaves the file as it was; sealing
        again answers the digests. ``keep_open``: somebody waits for the end of its upload, so that it need
        not be opened again."""
        if self.digests is not None:
            return self.digests
        self._must_be_writable()
        self._sealing = True
        try:
            with self.opened() as file:
                try:
                    self._give_back_unused(file.fd)
                    digests, hasher = await self._finish_digests(file.fd)
                    # After the last byte was read: until then all of them were in memory, or on disk.
                    self._integrity.require_written_back(file.fd, self._where)
                    self._trace_write()
                    if rename:
                        self._rename_sealed()
                    self._integrity.sealed(os.fstat(file.fd))
                except OSError as error:
                    raise self._layout.error(error, f"sealing {self._where}") from error
            self.digests = digests
            if hasher is not None:
                self._staging.checkpoints.keep(digests, hasher)
        finally:
            self._sealing = False
        if not keep_open:
            self.close_if_idle()  # those that wait for their upload must not use up the process's descriptors
        return digests

    async def _finish_digests(self, fd: int) -> tuple[ContentDigests, ContentHasher | None]:
        """And what has computed them, if it is worth keeping. ``OSError``."""
        content = self._small.content(self.size_bytes)
        if content is not None:
            return content_digests(content), None
        hasher = await self._follower.finish(fd, self.size_bytes)
        return hasher.digests(), hasher if self.size_bytes > INLINE_DIGEST_BYTES else None

    @property
    def body(self) -> FileStart | bytes:
        """What is sealed, for sending it: its bytes if they are in memory, else the file, in which a newer
        content may go on meanwhile."""
        content = self._small.content(self.size_bytes)
        return FileStart(self.path, self.size_bytes) if content is None else content

    def _give_back_unused(self, fd: int) -> None:
        """Room that was reserved behind the end; what is sealed does not grow. ``OSError``."""
        if self._charge.extends_to > self.size_bytes:
            os.ftruncate(fd, self.size_bytes)
            self._charge.cut(fd, self.size_bytes)

    def _trace_write(self) -> None:
        if not self._staging.tracer.drawing:
            return
        what = f"write {self.size_bytes} bytes" if self.local is Local.CACHE else "write"
        self._staging.tracer.step(Party.CLIENT, Arrow.TO, self.local, what, self.name)

    def _rename_sealed(self) -> None:
        """``OSError``."""
        new_name = sealed_name(self.name)
        if new_name is None:
            return  # renamed before a crash that came before the journal knew
        self._layout.rename(self._directory, self.name, self._directory, new_name)
        self._staging.renamed(self, new_name)
        self._staging.tracer.step(self.local, Arrow.TO_DASHED, self.local, "rename", new_name)

    async def snapshot(self) -> StagedFile:
        """A new writable file with the bytes that this one has now, which may go on changing."""
        self._integrity.require()
        self.origin = None  # from now on the newest stored content is another
        with self.opened() as file:
            copy = await self._staging.create(self.local, file.fd, self.size_bytes)
            try:
                with self._layout.errors(f"copying {self._where}"):
                    self._integrity.require_written_back(file.fd, self._where)
            except BaseException:
                await copy.discard()
                raise
        return copy

    def changed_unseen(self) -> None:
        """Others may have written to it: what was hashed of it is void, and what is in memory."""
        self._about_to_change(0)
        self._small.drop()

    def extend(self) -> StagedFile | None:
        """A new writable file that begins with all of this one, which is sealed: without a copy, for both are
        the same local file as long as the new one is changed at its end only. ``None`` where that cannot be;
        then there is :meth:`unseal_copy`. :class:`TierError`, with nothing changed."""
        assert self.digests is not None
        self._integrity.require()
        if self.gone or self._outgrown:
            return None
        with self.opened() as file, self._layout.errors(f"extending {self._where}"):
            if not self._integrity.is_untouched(os.fstat(file.fd)):
                return None
            try:
                with self._integrity.ours(partial(os.fstat, file.fd)):
                    longer = self._staging.link(self, file.fd)
            except OSError as error:
                if error.errno in NO_LINK:
                    return None
                raise
        if longer is None:
            return None
        self._grow_into(longer)
        longer.derive(self.digests, self.origin)
        self.close_if_idle()
        reached(Failpoint.SHARED)
        return longer

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

    async def unseal_copy(self) -> StagedFile:
        """A new writable file with the same bytes; this one, which is sealed, stays as it is."""
        assert self.digests is not None
        with self.opened() as file:
            copy = await self._staging.create(self.local, file.fd, self.size_bytes)
            copy.derive(self.digests, self.origin)
            try:
                self._integrity.require()
                with self._layout.errors(f"looking at {self._where}"):
                    # By this descriptor: its upload may have ended meanwhile, and the file be gone.
                    await self._check_unaltered(file.fd)
            except BaseException:
                await copy.discard()
                raise
        return copy

    async def discard(self) -> None:
        """Remove the file. Its room is given back when no handle has it open any more. May be called
        again, and after a promotion, to no effect."""
        if self.gone:
            return
        try:
            self._unlink()
        except OSError as error:
            raise self._layout.error(error, f"removing {self._where}") from error
        self.removed = True
        self._leave()
        self.close_if_idle()
        if self._file is None:
            self._charge.set(0)
        if self.local is Local.TMP and self.sealed:  # what was never sealed was never drawn
            self._staging.tracer.step(self.local, Arrow.TO_DASHED, self.local, "delete", self.name)

    def move_to(self, directory: Directory, name: str) -> int:
        """Rename the sealed file into the cache, which takes over the accounted bytes: their number is the
        answer. Handles go on reading. Raises ``OSError``, with nothing changed."""
        assert self.sealed and not self.gone
        self._layout.rename(self._directory, self.name, directory, name)
        self._leave()
        self._directory, self.name = directory, name
        charged = self._charge.hand_over()
        self.close_if_idle()
        return charged

    def _leave(self) -> None:
        self.gone = True
        self._small.drop()
        self._follower.about_to_change(0)
        if self.on_void is not None:
            self.on_void()
        self._leave_others()
        self._staging.forget(self)

    # -- the beginning ---------------------------------------------------------------------------------

    async def fill_from(self, source_fd: int, size_bytes: int) -> None:
        """Take over the first bytes of another file; only for one just made."""
        with self.opened() as file:
            try:
                self._charge.sparse = await copy_range(source_fd, file.fd, size_bytes, self._charge.take)
            except OSError as error:
                raise self._layout.error(error, f"copying into {self._where}") from error
            self.size_bytes = size_bytes

    def take_over(self, size_bytes: int, charged: int) -> None:
        """The file that was just put under this one's name has so many bytes, ``charged`` of them accounted,
        by nobody else any more."""
        self.size_bytes = size_bytes
        self._charge.sparse = charged < size_bytes
        self._charge.set(charged)

    def derive(self, digests: ContentDigests, before: Origin | None = None) -> None:
        """The file, just made, begins with the content that has these digests, or is the first part of it.
        ``before``: what that one was made of."""
        self.came_from(digests, before)
        if self.size_bytes == digests.size_bytes:
            self._follower = DigestFollower(self._staging.checkpoints.resume(digests))

    def came_from(self, digests: ContentDigests, before: Origin | None = None) -> None:
        """All that was written to the file until now is how the content with these digests begins."""
        self.origin = Origin(digests, self.size_bytes, before)

    def adopt_from_disk(self) -> None:
        """Learn length and accounts of a file that an earlier mount left."""
        self.promised = True
        with self.opened() as file, self._layout.errors(f"stat of {self._where}"):
            status = os.fstat(file.fd)
            self.size_bytes = status.st_size if self.digests is None else self.digests.size_bytes
            if status.st_size < self.size_bytes:
                raise DamagedContent(
                    f"{self._where} has {status.st_size} bytes; it was sealed with {self.size_bytes}"
                )
            self._outgrown = status.st_size > self.size_bytes
            self._integrity.sealed(status)
            self._charge.sparse = status.st_blocks * 512 < status.st_size
            self._charge.recount(file.fd, self.size_bytes)
