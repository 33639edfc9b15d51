"""``python -m benchlib.empty_mount MOUNTPOINT EXTENSION``: a filesystem in memory that does next to nothing
for a request, on the same loop as s3blobfs: what is left of its time then is FUSE's and Python's.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FUSEError, InodeT, RequestContext

from s3blobfs.config import FuseExtension
from s3blobfs.fuse.extension.session import Extension


class EmptyOperations(pyfuse3.Operations):
    """One directory of empty files."""

    def __init__(self, extension: Extension) -> None:
        super().__init__()
        self._extension = extension
        self._numbers = itertools.count(pyfuse3.ROOT_INODE + 1)
        self._names: dict[FileNameT, EntryAttributes] = {}
        self._root = self._attributes(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)
        self._inodes = {self._root.st_ino: self._root}
        self._listings: dict[FileHandleT, list[tuple[FileNameT, EntryAttributes]]] = {}

    def init(self) -> None:
        self._extension.connected()

    @staticmethod
    def _attributes(inode: int, mode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.st_nlink = 1
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._names[name]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._inodes[inode]

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._attributes(next(self._numbers), mode)
        self._names[name] = self._inodes[entry.st_ino] = entry
        return FileInfo(fh=FileHandleT(entry.st_ino)), entry

    async def open(self, inode: InodeT, flags: pyfuse3.FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode))

    async def flush(self, fh: FileHandleT) -> None:
        pass

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        del self._names[name]

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        number = FileHandleT(next(self._numbers))
        self._listings[number] = list(self._names.items())
        return number

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for number, (name, entry) in enumerate(self._listings[fh][start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, entry, number):
                return


async def _serve(extension: Extension) -> None:
    async with trio.open_nursery() as nursery:
        with extension.loop(nursery):
            await pyfuse3.main(min_tasks=4, max_tasks=16)


def main(mountpoint: Path, wanted: FuseExtension) -> None:
    extension = Extension(wanted)
    extension.prepare()
    operations = EmptyOperations(extension)
    pyfuse3.init(operations, os.fspath(mountpoint), {"fsname=empty", "default_permissions"})
    try:
        extension.negotiate(operations)
        trio.run(_serve, extension)
    finally:
        extension.close()
        pyfuse3.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), FuseExtension(sys.argv[2]))
