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
    found = values[0]
    for value in values[1:-1]:
        found = _append_zeros(block_bytes, found) ^ value
    if len(values) > 1:
        last_bytes = size_bytes - (len(values) - 1) * block_bytes
        found = _append_zeros(last_bytes, found) ^ values[-1]
    return found


def _append_zeros(count: int, crc: int) -> int:
    """The CRC when so many zero bytes follow."""
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            crc = _apply(_zeros(bit), crc)
    return crc


@lru_cache
def _zeros(exponent: int) -> _Matrix:
    """What ``2 ** exponent`` zero bytes do to a CRC."""
    if exponent:
        return _square(_zeros(exponent - 1))
    matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one bit
    for _ in range(3):
        matrix = _square(matrix)  # two, four, eight
    return matrix


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
