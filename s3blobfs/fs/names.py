"""Names that are in core: what a directory's entry leads to, without asking the index.

The kernel keeps names for minutes and asks seldom; what it does ask again is answered from here. Only names
of inodes that are in core count, so nothing here says what an inode is.
"""

from __future__ import annotations

NAMES_KEPT = 32_768
"""Some 6 MiB with names of usual length."""


class NameTable:
    """The ids of inodes by directory and name, at most so many, the oldest given up first.

    An entry never outlives a change of its name: whoever changes a name calls :meth:`forget` after its
    transaction, and whoever has read the index notes what was found only if nothing was forgotten since it
    began (:attr:`changes`)."""

    def __init__(self, kept: int = NAMES_KEPT) -> None:
        self._kept = kept
        self._ids: dict[tuple[int, bytes], int] = {}
        self.changes = 0
        """How often something was forgotten."""

    def find(self, parent_id: int, name: bytes) -> int | None:
        return self._ids.get((parent_id, name))

    def note(self, parent_id: int, name: bytes, inode_id: int, changes: int) -> None:
        """The index had this name when :attr:`changes` was so many."""
        if changes != self.changes:
            return
        if len(self._ids) >= self._kept:
            del self._ids[next(iter(self._ids))]
        self._ids[parent_id, name] = inode_id

    def forget(self, *names: tuple[int, bytes]) -> None:
        """Each a directory and a name; what they lead to has changed, or may have."""
        self.changes += 1
        for each in names:
            self._ids.pop(each, None)

    def forget_all(self) -> None:
        """Names were changed by others than those who say which."""
        self.changes += 1
        self._ids.clear()
