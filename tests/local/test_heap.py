"""Memory that is there before it is asked for, and memory that threads have in common."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from s3blobfs.process import HEAP_BYTES, HEAPS

PIECE_BYTES = 4096 + 256
"""A page of SQLite's cache, with what belongs to it."""
PIECES = HEAP_BYTES // PIECE_BYTES // 2

of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="how another C library keeps memory is not known"
)

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


@of_glibc
def test_memory_that_was_touched_is_used_without_faults() -> None:
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    cold, touched = map(int, result.stdout.split())
    assert cold > PIECES / 2
    assert touched < PIECES / 10


THREADS = """
import ctypes, sys, threading
from s3blobfs.process import share_heaps

if sys.argv[1:]:
    share_heaps()
together = threading.Barrier(8)

def work():
    together.wait()
    ctypes.CDLL(None).malloc(1 << 16)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
output = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(output))
libc.fflush(ctypes.c_void_p(output))
"""


def heaps(*arguments: str) -> int:
    """How many eight threads have, by malloc_info(3)."""
    command = [sys.executable, "-c", THREADS, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.count("<heap nr=")


@of_glibc
def test_threads_share_heaps() -> None:
    assert heaps() > HEAPS
    assert heaps("share") == HEAPS
