"""What a mount that is killed leaves on the local disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def copy_as_left(directory: Path, target: Path) -> None:
    """Copy what the process has on the disk at this instant; files that are one file stay one file. SQLite's
    shared memory is not on the disk."""
    copied: dict[int, Path] = {}

    def copy(source: str, to: str) -> None:
        inode = os.stat(source).st_ino
        if inode in copied:
            os.link(copied[inode], to)
        else:
            shutil.copy2(source, to)
            copied[inode] = Path(to)

    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*-shm"), copy_function=copy)
