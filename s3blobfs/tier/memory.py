"""The memory that windows may take, over all readers of a mount."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class MemoryBudget:
    """Counts bytes. What a reader waits for is always granted, so the sum may pass the limit by one window
    per reader; what is fetched ahead is granted within the limit only. Contents that are merely kept, in
    case they are read again, are given up for either, least recently used first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[object, Callable[[], None]] = OrderedDict()
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """For what is waited for."""
        self._make_room(size_bytes)
        self.used_bytes += size_bytes

    def try_take(self, size_bytes: int) -> bool:
        """For what is fetched ahead."""
        self._make_room(size_bytes)
        if self.used_bytes + size_bytes > self._limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        assert size_bytes <= self.used_bytes, "more memory given back than taken"
        self.used_bytes -= size_bytes

    @property
    def exceeded(self) -> bool:
        return self.used_bytes > self._limit_bytes

    def keep(self, owner: object, give_up: Callable[[], None]) -> None:
        """``owner`` holds bytes it could do without: ``give_up`` gives them back. Called again, it is the
        most recently used."""
        self._kept[owner] = give_up
        self._kept.move_to_end(owner)
        if self.exceeded:
            self._make_room(0)

    def forget(self, owner: object) -> None:
        """``owner`` keeps nothing any more."""
        self._kept.pop(owner, None)

    def _make_room(self, size_bytes: int) -> None:
        while self._kept and self.used_bytes + size_bytes > self._limit_bytes:
            _, give_up = self._kept.popitem(last=False)
            give_up()
