"""The CRC-32 of a whole from those of its pieces, without reading a byte again.

CRC-32 is linear over GF(2): to append n bytes is to apply "n zero bytes" to the first CRC, a 32x32 matrix of
bits, and to add the CRC of what is appended (zlib's ``crc32_combine`` does the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
"""Of CRC-32 (IEEE 802.3), reflected, as zlib has it."""
_Matrix = tuple[int, ...]
"""Column by column: what each bit of a CRC becomes."""


def combined(checksums: bytes, block_bytes: int, size_bytes: int) -> int:
    """The CRC-32 of ``size_bytes`` bytes, at least one. ``checksums`` holds those of its blocks of
    ``block_bytes`` (4 bytes each, big-endian), of which the last may be shorter."""
    values = [int.from_bytes(checksums[at : at + 4], "big") for at in range(0, len(checksums), 4)]
    whole = _zeros(block_bytes)
    found = values[0]
    for value in values[1:-1]:
        found = _apply(whole, found) ^ value
    if len(values) > 1:
        last_bytes = size_bytes - (len(values) - 1) * block_bytes
        found = _apply(_zeros(last_bytes), found) ^ values[-1]
    return found


@lru_cache(maxsize=64)
def _zeros(count: int) -> _Matrix:
    """What ``count`` zero bytes do to a CRC."""
    step = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one bit
    for _ in range(3):
        step = _square(step)  # two, four, eight
    found = tuple(1 << bit for bit in range(32))
    while count:
        if count & 1:
            found = tuple(_apply(step, column) for column in found)
        step = _square(step)
        count >>= 1
    return found


def _square(matrix: _Matrix) -> _Matrix:
    return tuple(_apply(matrix, column) for column in matrix)


def _apply(matrix: Sequence[int], crc: int) -> int:
    found = 0
    for column in matrix:
        if crc & 1:
            found ^= column
        crc >>= 1
        if not crc:
            break
    return found
