"""Taking part in three calls between pyfuse3 and libfuse, with nothing compiled.

pyfuse3 binds neither the operations of :mod:`.unbound` nor the bits of :class:`.libfuse.OpenBit`. Two
functions that it imports from libfuse are replaced, for pyfuse3 alone:

* ``fuse_session_new``: the entries that pyfuse3 leaves empty in the table of operations are filled in;
* ``fuse_reply_open``: bits are added to the answer, or it is given here, where libfuse has no words for it.

All or nothing: every function and every place is found before anything is changed, and :meth:`Hooks.remove`
leaves the process as it was.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from typing import Any

from s3blobfs.fuse.extension.imports import NoSuchImport, import_table, replace_imports
from s3blobfs.fuse.extension.libfuse import REPLY_OPEN, SESSION_NEW, LibFuse, OpenBit, Operation

log = logging.getLogger(__name__)


class CannotHook(Exception):
    """The text says why."""


class Hooks:
    """Of one session. :class:`CannotHook`, with nothing changed, where they cannot be had."""

    def __init__(self, operations: Mapping[Operation, Callable[..., None]]) -> None:
        """``operations`` is what the table gets: called by libfuse, with the arguments of each."""
        self.complete = False
        """Whether the table had the places that were expected; known when the session is made."""
        self.answers: dict[int, OpenBit] = {}
        """What is added to the answers of open and opendir, by handle, until they are given."""
        self.whole_answers: dict[int, bytes] = {}
        """What is answered to open in place of what libfuse knows to say, likewise."""
        self._kept = {entry: entry.prototype(function) for entry, function in operations.items()}
        try:
            self._library = LibFuse()
            slots = import_table(self._library.pyfuse3)
            session_new = next(
                name for name in ("fuse_session_new_versioned", "fuse_session_new") if name in slots
            )
            self._originals = {
                slots[session_new]: self._original(session_new, SESSION_NEW),
                slots["fuse_reply_open"]: self._original("fuse_reply_open", REPLY_OPEN),
            }
        except (OSError, AttributeError, NoSuchImport, KeyError, StopIteration) as error:
            raise CannotHook(f"pyfuse3's imports are not found: {error!r}") from error
        self._call_session_new, self._call_reply_open = self._originals.values()
        replacements = (SESSION_NEW(self._session_new), REPLY_OPEN(self._reply_open))
        self._replacements = dict(zip(self._originals, replacements, strict=True))
        try:
            replace_imports({slot: _address(function) for slot, function in self._replacements.items()})
        except OSError as error:
            raise CannotHook(f"pyfuse3's imports cannot be changed: {error.strerror}") from error

    @property
    def libfuse(self) -> LibFuse:
        return self._library

    def remove(self) -> None:
        """pyfuse3 calls libfuse again. Only when no session is left that could call what is kept here."""
        replace_imports({slot: _address(function) for slot, function in self._originals.items()})

    def _original(self, name: str, prototype: Any) -> Any:
        # By its name: the slot itself may hold the address of the linker's lazy binding.
        return prototype((name, self._library.pyfuse3))

    def _session_new(self, args: int, table: int, size: int, third: int, fourth: int) -> Any:
        places = (ctypes.c_void_p * (size // ctypes.sizeof(ctypes.c_void_p))).from_address(table)
        if all(entry.place < len(places) and places[entry.place] is None for entry in self._kept):
            for entry, callback in self._kept.items():
                places[entry.place] = _address(callback)
            self.complete = True
        return self._call_session_new(args, table, size, third, fourth)

    def _reply_open(self, request: int, info: Any) -> Any:
        answer = self.whole_answers.pop(info[0].fh, None)
        if answer is not None:
            return self._library.reply_buf(request, answer, len(answer))
        bits = self.answers.pop(info[0].fh, None)
        if bits is not None:
            info[0].bits |= bits
        return self._call_reply_open(request, info)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
