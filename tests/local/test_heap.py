"""Memory that is there before it is asked for."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from s3blobfs.process import HEAP_BYTES

PIECE_BYTES = 4096 + 256
"""A page of SQLite's cache, with what belongs to it."""
PIECES = HEAP_BYTES // PIECE_BYTES // 2

FAULTS = f"""
import resource
from s3blobfs.process import touch_heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def asked_for():
    before = faults()
    kept.append([bytearray({PIECE_BYTES}) for _ in range({PIECES})])
    return faults() - before

kept = []
cold = asked_for()
touch_heap()
print(cold, asked_for())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="how another C library keeps memory is not known"
)
def test_memory_that_was_touched_is_used_without_faults() -> None:
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    cold, touched = map(int, result.stdout.split())
    assert cold > PIECES / 2
    assert touched < PIECES / 10
