"""Names of staged files: ``bin_<random>.tmp`` and, once sealed for a cached store, ``sealed_<random>`` with
the same random part. So whichever of the two names a journal row holds, the file is found after a crash that
fell between the rename and the row, or that undid the rename: no fsync of the directory is needed at every
close.
"""

from __future__ import annotations

import re

_DIRTY_NAME = re.compile(r"bin_([0-9a-z]+)\.tmp")
_SEALED_NAME = re.compile(r"sealed_([0-9a-z]+)")


def dirty_name(random_part: str) -> str:
    """Of a file that changes; ``random_part`` is of lower-case letters and digits."""
    return f"bin_{random_part}.tmp"


def sealed_name(name: str) -> str | None:
    """The name that a file of this name gets; ``None`` for one that has it, or is none of ours."""
    match = _DIRTY_NAME.fullmatch(name)
    return f"sealed_{match[1]}" if match else None


def other_name(name: str) -> str | None:
    """The name the same file has before, or after, it is sealed; ``None`` for what is no name of ours."""
    if match := _SEALED_NAME.fullmatch(name):
        return dirty_name(match[1])
    return sealed_name(name)
