"""A filesystem of one directory, served in the test's own process."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, InodeT, RequestContext

from s3blobfs.fuse.extension.session import Extension
from s3blobfs.fuse.extension.unbound import UnboundOperations

FILE = 2
"""The inode of every name."""


class TinyOperations(pyfuse3.Operations):
    """Every name but ``missing`` is there."""

    supports_dot_lookup = True

    def __init__(self, extension: Extension) -> None:
        super().__init__()
        self._extension = extension

    def init(self) -> None:
        self._extension.connected()

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b"missing":
            raise FUSEError(errno.ENOENT)
        return await self.getattr(InodeT(FILE), ctx)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        kind = stat.S_IFDIR if inode == pyfuse3.ROOT_INODE else stat.S_IFREG
        entry.st_mode = pyfuse3.ModeT(kind | 0o755)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry


@asynccontextmanager
async def served(
    operations: pyfuse3.Operations,
    extension: Extension,
    mountpoint: Path,
    unbound: UnboundOperations | None = None,
) -> AsyncIterator[None]:
    """Mounted inside, as :func:`s3blobfs.fuse.mount.serve` does it; system calls on it have to be made in
    other threads."""
    mountpoint.mkdir(exist_ok=True)
    extension.prepare(unbound)
    pyfuse3.init(operations, os.fspath(mountpoint), {"fsname=tiny"})
    try:
        extension.negotiate(operations)
        async with trio.open_nursery() as requests:
            with extension.loop(requests):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pyfuse3.main, 2, 16)
                    await trio.to_thread.run_sync(os.stat, mountpoint)
                    try:
                        yield
                    finally:
                        pyfuse3.terminate()
            requests.cancel_scope.cancel()
    finally:
        pyfuse3.close()
        extension.close()
    assert not mountpoint.is_mount()
