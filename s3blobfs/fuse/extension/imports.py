"""The functions that a loaded library imports, and putting others in their place for this library alone.

A shared object calls what it imports through a table of addresses of its own (the global offset table),
which the dynamic linker fills in. The relocations that tell the linker where each one goes tell it here as
well: ELF gABI, "Dynamic Section" and "Relocation"; both kinds of entries are of the RELA form on x86-64 and
AArch64.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_RTLD_DI_LINKMAP: Final = 2
"""dlinfo(3)."""

# <elf.h>: tags of the dynamic section.
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 0, 2, 5, 6, 7, 8, 23
_SYMBOL_SHIFT: Final = 32
"""``ELF64_R_SYM``."""


class _Dyn(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_ssize_t), ("value", ctypes.c_size_t)]


class _Rela(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_size_t), ("info", ctypes.c_size_t), ("addend", ctypes.c_ssize_t)]


class _Sym(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint32), ("rest", ctypes.c_uint32), ("value", ctypes.c_size_t),
                ("size", ctypes.c_size_t)]  # fmt: skip


class _LinkMap(ctypes.Structure):
    _fields_ = [("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t)]


class NoSuchImport(Exception):
    """The library does not import a function of this name, or it cannot be told where."""


def import_table(library: ctypes.CDLL) -> dict[str, int]:
    """Where a loaded library keeps the address of each function it imports, by name. :class:`NoSuchImport`
    where that cannot be told."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NoSuchImport("only known on 64-bit Linux")
    found = ctypes.POINTER(_LinkMap)()
    if _LIBC.dlinfo(ctypes.c_void_p(library._handle), _RTLD_DI_LINKMAP, ctypes.byref(found)):
        raise NoSuchImport("dlinfo(3) fails")
    base: int = found[0].base
    section = _dynamic_section(found[0].dynamic)
    # glibc has made these addresses; musl leaves them relative to where the library was loaded.
    addresses = {tag: value + base if value < base else value for tag, value in section.items()}
    if _DT_SYMTAB not in section or _DT_STRTAB not in section:
        raise NoSuchImport("the library has no symbols")
    slots = {}
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in section:
            continue
        entries = (_Rela * (section[size] // ctypes.sizeof(_Rela))).from_address(addresses[table])
        for entry in entries:
            if number := entry.info >> _SYMBOL_SHIFT:
                at = addresses[_DT_SYMTAB] + number * ctypes.sizeof(_Sym)
                name = ctypes.string_at(addresses[_DT_STRTAB] + _Sym.from_address(at).name)
                slots[name.decode()] = base + entry.offset
    return slots


def _dynamic_section(address: int) -> dict[int, int]:
    section = {}
    while (entry := _Dyn.from_address(address)).tag != _DT_NULL:
        section[entry.tag] = entry.value
        address += ctypes.sizeof(_Dyn)
    return section


def replace_imports(slots: Mapping[int, int]) -> None:
    """Put addresses of functions into slots of an import table: all, or on ``OSError`` none."""
    for slot in slots:
        page = slot & -mmap.PAGESIZE
        # The linker has write-protected it (RELRO).
        if _LIBC.mprotect(
            ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE
        ):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    for slot, address in slots.items():
        ctypes.c_void_p.from_address(slot).value = address
