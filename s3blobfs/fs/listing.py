"""Listing directories, a page at a time, with cookies that stay good while entries come and go."""

from __future__ import annotations

import errno
from typing import NamedTuple

from s3blobfs.errors import FilesystemError
from s3blobfs.fs.attributes import Attributes
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import DirectoryHandle
from s3blobfs.fs.incore import attributes_of
from s3blobfs.index import dentries
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow

DIRECTORY_PAGE_ENTRIES = 512
"""Entries read from the index at once, unless fewer are asked for."""

DOT_COOKIES = 2
"""Cookies 1 and 2 are ``.`` and ``..``; the index's own follow."""


class DirectoryEntry(NamedTuple):
    """One line of a directory; ``cookie`` continues behind it."""

    cookie: int
    name: bytes
    attributes: Attributes
    row: InodeRow | None
    """``None`` for ``.`` and ``..``, to which a listing gives no reference."""


class Listing:
    def __init__(self, core: Core) -> None:
        self._core = core

    async def open(self, inode_id: int) -> DirectoryHandle:
        """opendir(3)."""
        inode = await self._core.inode(inode_id)
        if not inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        inode.open_count += 1
        return self._core.handles.open_directory(inode)

    async def page(self, handle: DirectoryHandle, after: int, limit: int) -> list[DirectoryEntry]:
        """About ``limit`` entries behind cookie ``after`` (0: from the start); none at the end. What is there
        all the time is listed exactly once."""
        core, directory = self._core, handle.inode
        if after == 0:
            core.mark_access(directory)
        entries = []
        if after < DOT_COOKIES and not directory.removed:
            parent_id = await core.db.read(lambda tx: dentries.parent_of(tx, directory.id))
            above = await core.inode(ROOT_INODE_ID if parent_id is None else parent_id)
            dots = ((1, b".", directory), (2, b"..", above))
            entries = [
                DirectoryEntry(cookie, name, inode.attributes(), None)
                for cookie, name, inode in dots
                if cookie > after
            ]
        page = await core.db.read(
            lambda tx: dentries.page(tx, directory.id, max(0, after - DOT_COOKIES), limit)
        )
        for cookie, name, row in page:
            entries.append(DirectoryEntry(cookie + DOT_COOKIES, name, self._attributes_of(row), row))
        return entries

    def _attributes_of(self, row: InodeRow) -> Attributes:
        inode = self._core.inodes.find(row.id)
        return attributes_of(row) if inode is None else inode.attributes()

    def refer(self, entry: DirectoryEntry) -> None:
        """The kernel took an entry of a listing, and with it a reference to its inode. (It holds the
        directory's lock all the while, so that the name cannot be gone.)"""
        if entry.row is not None:
            self._core.inodes.admit(entry.row).lookup_count += 1
