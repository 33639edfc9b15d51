"""Whether a staged file still has the bytes that were written to it.

*When the disk fails.* A file whose dirty pages could not be brought to the disk, as fsync(2) and the kernel's
own writing find out, is *failed* for good: the kernel may have dropped the pages, so neither a later success
of fsync nor what is read means anything. It can only be emptied or discarded.

*When somebody else writes to it.* Whoever alters a file moves its ctime. A sealed file whose ctime moved is
read again and compared with its digests, for some filesystems (NFS) move that by themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from s3blobfs.errors import TierError, TierUnavailable
from s3blobfs.tier.digest import file_digests
from s3blobfs.tier.localio import check_written_back
from s3blobfs.types import ContentDigests


class Integrity:
    """Of one file."""

    __slots__ = ("_change_ns", "failure")

    def __init__(self) -> None:
        self._change_ns = 0
        self.failure: TierError | None = None
        """Why its bytes cannot be relied on any more."""

    def fail(self, error: OSError, what: str) -> None:
        """From now on nothing is believed of the file; ``what`` names it and says what happened."""
        self.failure = TierUnavailable(f"{what} ({error.strerror or error}): its bytes are not reliable")
        self.failure.__cause__ = error

    def require(self) -> None:
        """Raises the failure, if there was one."""
        if self.failure is not None:
            raise type(self.failure)(str(self.failure)) from self.failure

    def emptied(self, fd: int) -> None:
        """The file has no bytes any more, and so none that were lost."""
        if self.failure is not None:
            with contextlib.suppress(OSError):  # the failure that is known, or another of the same bytes
                check_written_back(fd)
            self.failure = None

    def require_written_back(self, fd: int, where: str) -> None:
        """``OSError`` if the kernel could not bring to the disk what was written so far."""
        try:
            check_written_back(fd)
        except OSError as error:
            self.fail(error, f"{where} could not be brought to the disk")
            raise

    def sealed(self, status: os.stat_result) -> None:
        """From now on nobody changes the file."""
        self._change_ns = status.st_ctime_ns

    def is_untouched(self, status: os.stat_result) -> bool:
        """Whether nobody has touched a sealed file since."""
        return status.st_ctime_ns == self._change_ns

    @contextlib.contextmanager
    def ours(self, status: Callable[[], os.stat_result]) -> Iterator[None]:
        """What is done inside moves a sealed file's ctime, but alters nothing. ``OSError`` of ``status``."""
        untouched = self.is_untouched(status())
        try:
            yield
        finally:
            if untouched:
                self.sealed(status())

    async def require_unaltered(self, fd: int, digests: ContentDigests) -> None:
        """``OSError`` when a sealed file is not what it was sealed with."""
        status = os.fstat(fd)
        if self.is_untouched(status):
            return
        if status.st_size != digests.size_bytes or await file_digests(fd, digests.size_bytes) != digests:
            raise OSError("it was altered by another program")
        self._change_ns = status.st_ctime_ns
