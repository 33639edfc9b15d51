"""Listing directories, a page at a time, with cookies that stay good while entries come and go.

A listing brings nothing into core. What it says of an inode the kernel keeps, so whoever lists a directory of
a million files needs none of them here; an inode that is asked for afterwards is read as after its eviction.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from s3blobfs.errors import FilesystemError
from s3blobfs.fs.attributes import Attributes
from s3blobfs.fs.core import Core
from s3blobfs.fs.handles import DirectoryHandle
from s3blobfs.index import dentries
from s3blobfs.index.inodes import ROOT_INODE_ID

DIRECTORY_PAGE_ENTRIES = 512
"""Entries read from the index at once, unless fewer are asked for."""

DOT_COOKIES = 2
"""Cookies 1 and 2 are ``.`` and ``..``; the index's own follow."""


class DirectoryEntry(NamedTuple):
    """One line of a directory: a row of :func:`dentries.page`, with the fields of :class:`Attributes`."""

    cookie: int
    """Continues behind it."""
    name: bytes
    inode_id: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def attributes(self) -> Attributes:
        return Attributes(*self[2:])


# A third of the time that the class itself takes with so many arguments.
_entry_of = partial(tuple.__new__, DirectoryEntry)


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
                DirectoryEntry(cookie, name, *inode.attributes())
                for cookie, name, inode in dots
                if cookie > after
            ]
        page = await core.db.read(
            lambda tx: dentries.page(tx, directory.id, max(0, after - DOT_COOKIES), limit, shift=DOT_COOKIES)
        )
        in_core = core.inodes.among([row[2] for row in page])
        for row in page:
            inode = in_core.get(row[2])
            if inode is not None:  # it may know more than the index
                entries.append(DirectoryEntry(row[0], row[1], *inode.attributes()))
            else:
                entries.append(_entry_of(row))
        return entries

    def refer(self, entries: Sequence[DirectoryEntry]) -> None:
        """The kernel took these entries of a listing, and with each but the dots a reference to its inode,
        which those in core count. (It holds the directory's lock all the while: no name can be gone.)"""
        in_core = self._core.inodes.among([entry.inode_id for entry in entries])
        if in_core:
            for entry in entries:
                if entry.cookie > DOT_COOKIES and entry.inode_id in in_core:
                    in_core[entry.inode_id].lookup_count += 1
