"""``python -m benchlib.tried_mount SETTING COMMAND…``: s3blobfs with its kernel's side set otherwise.

What is tried here and does not pay needs no option in the program.
"""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, InodeT, RequestContext

from benchlib.kernel import SETTINGS
from s3blobfs.cli.main import run
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fuse import mount
from s3blobfs.fuse.extension.session import Extension
from s3blobfs.fuse.operations import Operations


def main(name: str, arguments: list[str]) -> int:
    setting = SETTINGS[name]

    class TriedOperations(Operations):
        """The operations of a mount with the setting."""

        enable_writeback_cache = setting.writeback_cache

        def __init__(
            self,
            filesystem: Filesystem,
            *,
            entry_timeout_s: float,
            attr_timeout_s: float,
            extension: Extension,
        ) -> None:
            timeout_s = setting.timeout_s
            super().__init__(
                filesystem,
                entry_timeout_s=entry_timeout_s if timeout_s is None else timeout_s,
                attr_timeout_s=attr_timeout_s if timeout_s is None else timeout_s,
                extension=extension,
            )

        async def create(
            self,
            parent_inode: InodeT,
            name: FileNameT,
            mode: pyfuse3.ModeT,
            flags: pyfuse3.FlagT,
            ctx: RequestContext,
        ) -> tuple[FileInfo, EntryAttributes]:
            info, entry = await super().create(parent_inode, name, mode, _flags(flags), ctx)
            return _info(info), entry

        async def open(self, inode: InodeT, flags: pyfuse3.FlagT, ctx: RequestContext) -> FileInfo:
            return _info(await super().open(inode, _flags(flags), ctx))

    def _flags(flags: pyfuse3.FlagT) -> pyfuse3.FlagT:
        if not setting.writeback_cache:
            return flags
        # The kernel reads what surrounds a write, and itself decides where an append goes.
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = pyfuse3.FlagT(flags & ~os.O_ACCMODE | os.O_RDWR)
        return pyfuse3.FlagT(flags & ~os.O_APPEND)

    def _info(info: FileInfo) -> FileInfo:
        if setting.keep_cache is None:
            return info
        return FileInfo(fh=FileHandleT(info.fh), keep_cache=setting.keep_cache)

    with patch.object(mount, "Operations", TriedOperations):
        return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
