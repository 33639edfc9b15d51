"""Which entries the cache has, which of them goes next, and which one is charged for a file of several names.

Bookkeeping alone: the disk and the accounts of room are the cache's."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from s3blobfs.tier.entry import Record

Key = tuple[int, str]
"""Store id and file name."""


def _inode_of(record: Record) -> int:
    return record.inode


class EntryTable:
    """Of one cache. An entry is *idle* while nobody has it pinned."""

    def __init__(self) -> None:
        self._records: dict[Key, Record] = {}
        self._idle: OrderedDict[Key, Record] = OrderedDict()  # oldest use first
        self._names_of: dict[int, list[Record]] = {}  # by inode, of those with more than one name
        self.idle_bytes = 0
        """Charged to idle entries."""

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def find(self, key: Key) -> Record | None:
        return self._records.get(key)

    def has(self, record: Record) -> bool:
        """Whether it was not forgotten, nor another one put in its place."""
        return self._records.get(record.key) is record

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    @property
    def oldest_idle(self) -> Record:
        return next(iter(self._idle.values()))

    def others(self, record: Record) -> list[Record]:
        """Further names of the same file."""
        return [each for each in self._names_of.get(record.inode, ()) if each is not record]

    # -- changes ---------------------------------------------------------------------------------------

    def begin(self, records: Sequence[Record]) -> None:
        """What was found on the disk, all idle, the oldest use first."""
        for record in records:
            self._records[record.key] = record
            self.park(record)
        for inode, names in itertools.groupby(sorted(records, key=_inode_of), key=_inode_of):
            if len(same := list(names)) > 1:
                self._names_of[inode] = same

    def add(self, record: Record) -> None:
        """One that is not idle."""
        self._records[record.key] = record

    def add_name(self, source: Record, record: Record) -> None:
        """A further name of the file of ``source``, idle."""
        self._names_of.setdefault(source.inode, [source]).append(record)
        self._records[record.key] = record
        self.park(record)

    def park(self, record: Record) -> None:
        """Idle from now on: the last one to go."""
        self._idle[record.key] = record
        self.idle_bytes += record.charged

    def age(self, record: Record) -> None:
        """Of the idle ones it is the first to go."""
        self._idle.move_to_end(record.key, last=False)

    def unpark(self, record: Record) -> None:
        """Somebody has it pinned."""
        del self._idle[record.key]
        self.idle_bytes -= record.charged

    def forget(self, record: Record) -> None:
        """What it was charged for goes over to another name of the file, if there is one."""
        del self._records[record.key]
        if record.pins == 0:
            self.unpark(record)
        names = self._names_of.get(record.inode)
        if names is None:
            return
        names.remove(record)
        heir = names[0]
        if record.charged:
            heir.charged, record.charged = record.charged, 0
            if heir.pins == 0:
                self.idle_bytes += heir.charged
        if len(names) == 1:
            del self._names_of[record.inode]
