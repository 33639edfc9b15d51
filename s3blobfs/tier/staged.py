"""One staged file: a content that is being written, or is written and not yet in S3.

It is *dirty* while it changes (:mod:`s3blobfs.tier.changeable`) and *sealed* when it does not any more. It
ends by being promoted into the cache (:meth:`s3blobfs.tier.cache.Cache.promote`) or by being discarded.

Its names are in :mod:`s3blobfs.tier.naming`, what it takes of the tier's room in :mod:`s3blobfs.tier.charge`.
Contents of one file of which each is the beginning of the next may be one local file:
:mod:`s3blobfs.tier.sharing`.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from s3blobfs.errors import DamagedContent
from s3blobfs.failpoints import Failpoint, reached
from s3blobfs.tier.changeable import ChangeableFile
from s3blobfs.tier.copying import copy_range
from s3blobfs.tier.digest import INLINE_DIGEST_BYTES, ContentHasher, DigestFollower, content_digests
from s3blobfs.tier.layout import NO_LINK, Directory
from s3blobfs.tier.localio import SharedFd
from s3blobfs.tier.naming import sealed_name
from s3blobfs.tier.origin import Origin
from s3blobfs.trace import Arrow, Local, Party
from s3blobfs.types import ContentDigests, FileStart

if TYPE_CHECKING:
    from s3blobfs.tier.staging import Staging


class StagedFile(ChangeableFile):
    """One staged file; made by :class:`Staging`. Changes and the seal are called one at a time (the inode's
    lock sees to that); reads may run at any time.

    Errors of the disk: :class:`~s3blobfs.errors.TierFull`, :class:`~s3blobfs.errors.TierUnavailable`."""

    def __init__(
        self, staging: Staging, name: str, local: Local, file: SharedFd | None, digests: ContentDigests | None
    ) -> None:
        layout = staging.layout
        super().__init__(layout, staging.space, staging.memory, layout.staging, name, file, digests)
        self._staging = staging
        self.local = local
        self.lent = False
        """The kernel uses it by itself, for those who have the inode open: it stays until they are done."""

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
