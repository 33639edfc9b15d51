"""renameat2(2), which the standard library does not have."""

from __future__ import annotations

import ctypes
import os

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def renameat2(
    source: bytes | str | os.PathLike[str], target: bytes | str | os.PathLike[str], flags: int
) -> None:
    """Raises ``OSError``."""
    paths = os.fsencode(source), os.fsencode(target)
    if _libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(paths[0]))
