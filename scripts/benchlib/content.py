"""What is written, and the comparison of what is read with it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from s3blobfs.config import KIB, MIB

PIECE_BYTES = 1 * MIB
"""Read and written at once, unless a row says otherwise."""
SMALL_BYTES = 4 * KIB


class WrongBytes(Exception):
    """What was read is not what was written."""


def large_content(seed: str, size_bytes: int) -> bytes:
    """Random bytes: they cannot be compressed, and no two seeds share a digest."""
    source = random.Random(seed)
    # At a time it makes no more than 2^31 bits.
    sizes = [min(PIECE_BYTES, size_bytes - at) for at in range(0, size_bytes, PIECE_BYTES)]
    return b"".join(map(source.randbytes, sizes))


def small_contents(seed: str, count: int) -> list[bytes]:
    """Contents of small files, all different."""
    source = random.Random(seed)
    return [source.randbytes(SMALL_BYTES) for _ in range(count)]


def write_file(path: Path, content: bytes, piece_bytes: int = PIECE_BYTES) -> None:
    """As a program does that knows what it writes: pieces, without a buffer between."""
    with memoryview(content) as view, path.open("xb", buffering=0) as file:
        for start in range(0, len(view), piece_bytes):
            piece = view[start : start + piece_bytes]
            assert file.write(piece) == len(piece)


def read_file(path: Path, buffer: bytearray) -> None:
    """Fill the buffer, which is as long as the file."""
    with memoryview(buffer) as view, path.open("rb", buffering=0) as file:
        done = 0
        while done < len(view):
            count = file.readinto(view[done : done + PIECE_BYTES])
            if not count:
                raise WrongBytes(f"{path} ends after {done} of {len(view)} bytes")
            done += count


def read_small_file(path: Path) -> bytes:
    """Open, read, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, SMALL_BYTES + 1)
    finally:
        os.close(fd)


def read_pieces(path: Path, offsets: Sequence[int]) -> list[bytes]:
    """Small pieces out of one open file, with the kernel told that they follow no order."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return [os.pread(fd, SMALL_BYTES, offset) for offset in offsets]
    finally:
        os.close(fd)


def random_offsets(seed: str, size_bytes: int, count: int) -> list[int]:
    """Where small pieces begin, each in a block of its own as long as there are enough blocks."""
    blocks = range(size_bytes // SMALL_BYTES)
    source = random.Random(seed)
    chosen: Iterator[int] = (
        iter(source.sample(blocks, count)) if count <= len(blocks) else iter(source.choices(blocks, k=count))
    )
    return [block * SMALL_BYTES for block in chosen]


def middle(size_bytes: int) -> int:
    """Where a piece in the middle begins."""
    return size_bytes // 2 // SMALL_BYTES * SMALL_BYTES


def compare(found: Iterable[bytes | bytearray], expected: Iterable[bytes], what: object) -> None:
    """Raises :class:`WrongBytes`."""
    for number, (left, right) in enumerate(zip(found, expected, strict=True)):
        if left != right:
            raise WrongBytes(f"{what}: reading number {number} is not what was written")


def drop_pages(paths: Iterable[Path], *, written: bool = False) -> None:
    """Let the kernel forget the pages of these files, and of no others: other programs run on the machine.
    ``written``: they may have been written a moment ago, and dirty pages stay otherwise."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            if written:
                os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
