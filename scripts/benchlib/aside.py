"""Trees of files that are done with, out of the way until the run ends."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from s3blobfs.config import MIB

_KEPT_MAX_BYTES = MIB
_numbers = itertools.count(1)


def put_aside(tree: Path) -> None:
    """Rename a tree, in place of removing it. It goes with the temporary directory that all is in; until then
    its larger files are empty.

    ext4 without a journal does not use an inode again for minutes after it was freed, and passes over all
    those that wait each time a file is made nearby (``find_inode_bit()`` of the kernel's fs/ext4/ialloc.c).
    With thousands of files removed a moment ago that takes longer than what is to be measured.

    Raises ``OSError``."""
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file() and path.stat().st_size > _KEPT_MAX_BYTES:
                os.truncate(path, 0)
    tree.rename(tree.with_name(f"{tree.name}.aside-{next(_numbers)}"))
