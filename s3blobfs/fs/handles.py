"""Open files and open directories, by the number the kernel knows them by."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass, field

from s3blobfs.errors import FilesystemError
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.tier.fetch import ContentReader


@dataclass(slots=True)
class FileHandle:
    """One open(2) of a regular file; shared by all descriptors duplicated from it."""

    number: int
    inode: InCoreInode
    flags: int
    """Of open(2)."""
    reader: ContentReader | None = None
    """Of the blob ``reader_blob_id``, once something was read from it."""
    reader_blob_id: int | None = None
    reads_under_way: int = 0
    left_readers: list[ContentReader] = field(default_factory=list)
    """Of blobs that the file had before, to be closed when no read is under way any more."""
    unreported_bytes: int = 0
    """Read from the cache and not yet drawn in the trace."""
    lent: bool | None = None
    """The kernel uses the file that the inode is lent; ``None`` until that is decided."""

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)


@dataclass(slots=True)
class DirectoryHandle:
    """One opendir(3)."""

    number: int
    inode: InCoreInode


class HandleTable:
    """Numbers are never reused while the filesystem is mounted."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}

    def open_file(self, inode: InCoreInode, flags: int) -> FileHandle:
        handle = FileHandle(next(self._numbers), inode, flags)
        self._files[handle.number] = handle
        return handle

    def open_directory(self, inode: InCoreInode) -> DirectoryHandle:
        handle = DirectoryHandle(next(self._numbers), inode)
        self._directories[handle.number] = handle
        return handle

    def file(self, number: int) -> FileHandle:
        """:class:`FilesystemError` ``EBADF`` for a number that is not open."""
        try:
            return self._files[number]
        except KeyError:
            raise FilesystemError(errno.EBADF) from None

    def directory(self, number: int) -> DirectoryHandle:
        """:class:`FilesystemError` ``EBADF`` for a number that is not open."""
        try:
            return self._directories[number]
        except KeyError:
            raise FilesystemError(errno.EBADF) from None

    def close_file(self, number: int) -> FileHandle:
        handle = self.file(number)
        del self._files[number]
        return handle

    def close_directory(self, number: int) -> DirectoryHandle:
        handle = self.directory(number)
        del self._directories[number]
        return handle

    def files(self) -> list[FileHandle]:
        return list(self._files.values())

    def directories(self) -> list[DirectoryHandle]:
        return list(self._directories.values())
