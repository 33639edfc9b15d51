"""Contents of one file that are one local file: each is the beginning of the next.

A file that is appended to while its content waits for its upload, or is being uploaded, is not copied for
that. The new content gets a second name of the same local file (a hard link), and only what is behind the
sealed length is written: whoever knows of the sealed content reads so much and no more. Each content keeps a
name of its own, as if it had a file of its own, so that the journal, recovery and the removal of files do not
have to know.

    sealed_a ──┐
               ├──► │ sealed content of a │ appended │
    bin_b.tmp ─┘

*The rule*: below the length of any other content that is left, nothing is written, cut or punched. A content
that is to be changed there gets a local file of its own first (:meth:`SharedFile._part`), and keeps its name.
So the journal's row of a sealed content, which a mount that is killed leaves, always has its bytes: the next
mount cuts the local file to the length that the row says.

*Of the accounts*, the longest content is charged for the whole local file, the others for nothing.
"""

from __future__ import annotations

import os
from functools import partial

from s3blobfs.tier.charge import Charge
from s3blobfs.tier.copying import copy_range
from s3blobfs.tier.held import HeldFile
from s3blobfs.tier.integrity import Integrity
from s3blobfs.tier.layout import TEMPORARY_PREFIX, Directory, TierLayout
from s3blobfs.tier.localio import SharedFd, in_disk_thread
from s3blobfs.tier.space import Space


class SharedFile(HeldFile):
    """A content whose local file may be that of others as well."""

    def __init__(
        self, layout: TierLayout, space: Space, directory: Directory, name: str, file: SharedFd | None
    ) -> None:
        super().__init__(layout, directory, name, file)
        self._space = space
        self._charge = Charge(space)
        self._integrity = Integrity()
        self._together: list[SharedFile] | None = None
        """All contents of the local file, if there are others; one list, which each of them has."""
        self._outgrown = False
        """Sealed, and the local file may have more behind it: just the beginning of it is this content. So
        for good, but for what :meth:`cut_to_seal` finds: the newer content is the file's by now."""
        self.size_bytes = 0

    @property
    def promotable(self) -> bool:
        """Whether there is a local file, and nothing but this content is in it."""
        return not self.gone and not self.shared

    @property
    def shared(self) -> bool:
        """Whether the local file is not this content's alone."""
        return self._outgrown or self._longest_other is not None

    @property
    def _kept_bytes(self) -> int:
        """So many bytes at the beginning are others', too."""
        other = self._longest_other
        return 0 if other is None else other.size_bytes

    @property
    def _longest_other(self) -> SharedFile | None:
        """Of several that are as long the latest."""
        if self._together is None:
            return None
        others = [each for each in reversed(self._together) if each is not self]
        return max(others, key=lambda each: each.size_bytes, default=None)

    def _grow_into(self, longer: SharedFile) -> None:
        """The other, just made of the same local file, may get longer; this one changes no more."""
        self._share_with(longer)
        self._outgrown = True
        longer._charge, self._charge = self._charge, longer._charge
        longer.size_bytes = self.size_bytes

    def _share_with(self, other: SharedFile) -> None:
        if self._together is None:
            self._together = [self]
        self._together.append(other)
        other._together = self._together

    def _leave_others(self) -> None:
        """The local file stays theirs, and the longest is charged for it."""
        heir = self._longest_other
        if self._together is not None:
            self._together.remove(self)
            self._together = None
        if heir is not None and not self._outgrown:
            heir._charge, self._charge = self._charge, heir._charge

    def _unlink(self) -> None:
        """The content has no name any more. ``OSError``."""
        heir = self._longest_other
        if heir is None:
            self._layout.unlink(self._directory, self.name, self.size_bytes)
            return
        # Frees nothing, so it is done at once: the change of its ctime must not come later.
        with heir._integrity.ours(partial(heir._directory.status, heir.name)):
            self._layout.unlink(self._directory, self.name)

    async def _part(self, kept_bytes: int, *, synced: bool) -> None:
        """Leave the others their local file, and go on with a copy, of which just the first ``kept_bytes``
        matter; ``synced``: on the disk before it takes the place. ``OSError`` and
        :class:`~s3blobfs.errors.TierFull`, with nothing changed; ``RuntimeError`` when the content goes
        meanwhile."""
        with self.opened() as file:
            async with _Apart(self._layout, self._space, self._directory, self.name) as apart:
                await apart.copy(file.fd, kept_bytes, self.size_bytes, synced=synced)
                self._integrity.require_written_back(file.fd, self._where)
                if self.gone:
                    raise RuntimeError(f"{self.name} is gone and cannot be changed")
                own, charge = apart.install()
        self._leave_others()
        self._charge.set(0)  # of the local file, if nobody else has it any more
        self._charge = charge
        if self._file is not None:
            self._file.release()
        self._file = own

    # -- what an earlier mount has left ----------------------------------------------------------------

    def join(self, other: SharedFile) -> None:
        """Both are the same local file."""
        other._share_with(self)
        shorter = self if self.size_bytes < other.size_bytes else other
        shorter._outgrown = True
        shorter._charge.set(0)

    def cut_to_seal(self) -> None:
        """What was written behind a sealed content goes, if no other has it. Before anybody uses it.
        :class:`~s3blobfs.errors.TierUnavailable`."""
        if not self._outgrown or self._longest_other is not None:
            return
        with self._layout.errors(f"cutting {self._where}"):
            fd = self._directory.open(self.name, writable=True)
            try:
                if os.fstat(fd).st_nlink > 1:
                    return
                os.ftruncate(fd, self.size_bytes)
                self._integrity.sealed(os.fstat(fd))
                self._charge.recount(fd, self.size_bytes)
            finally:
                os.close(fd)
        self._outgrown = False


class _Apart:
    """A copy of a shared local file for the content that is called ``name``, to take that name. What is not
    installed at the end of the block is removed."""

    def __init__(self, layout: TierLayout, space: Space, directory: Directory, name: str) -> None:
        self._layout = layout
        self._directory = directory
        self._name = name
        self._temporary = f"{TEMPORARY_PREFIX}{name}"
        self._charge = Charge(space)
        self._file: SharedFd | None = None

    async def __aenter__(self) -> _Apart:
        """``OSError``."""
        self._file = SharedFd(self._directory.create(self._temporary))
        return self

    async def copy(self, source: int, kept_bytes: int, size_bytes: int, *, synced: bool) -> None:
        """Have the first ``kept_bytes`` of ``source``, and a hole up to ``size_bytes``; on the disk, if it is
        to be ``synced``. ``OSError``, :class:`~s3blobfs.errors.TierFull`."""
        assert self._file is not None
        fd = self._file.fd
        self._charge.sparse = await copy_range(source, fd, kept_bytes, self._charge.take)
        if size_bytes > kept_bytes:
            os.ftruncate(fd, size_bytes)
            self._charge.sparse = True
        if synced:
            await in_disk_thread(partial(os.fdatasync, fd))

    def install(self) -> tuple[SharedFd, Charge]:
        """The name is this file's now. ``OSError``."""
        assert self._file is not None
        self._layout.rename(self._directory, self._temporary, self._directory, self._name)
        file, self._file = self._file, None
        return file, self._charge

    async def __aexit__(self, *exc: object) -> None:
        if self._file is not None:
            self._charge.set(0)
            self._file.release()
            self._directory.unlink(self._temporary)
