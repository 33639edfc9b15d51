"""The limit on the disk's side."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from benchlib.aside import put_aside
from benchlib.targets import PlainDirectory

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_NAMES_AND_INODES = "2"
"""proc_sys_vm(5)."""


class Disk(PlainDirectory):
    """A directory of the disk that all systems have their caches on. Nothing is synced: its writes end in the
    page cache."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(directory)
        self.name = name

    def forget_everything(self, paths: Iterable[Path]) -> None:
        """Pages of these files; names and inodes of all, which takes root, as they cannot be dropped one by
        one."""
        super().forget_everything(paths)
        if os.access(_DROP_CACHES, os.W_OK):
            _DROP_CACHES.write_text(_NAMES_AND_INODES)

    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        """Read from the disk itself, as the caches of the others are."""
        super().forget_everything(paths)

    def remove(self) -> None:
        put_aside(self.directory)
