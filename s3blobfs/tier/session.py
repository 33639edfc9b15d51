"""Which cached contents to trust after a crash of the machine.

Entries get their names without an fsync: a cache is not worth one per file. After a crash of the process
nothing is lost by that, since the page cache stays. After a crash of the machine an entry may have its name,
its length and its times, and yet blocks that never reached the disk. So the tier keeps a record of the boot
in which it was last mounted and of the time up to which all of it is known to be on the disk; after another
boot the entries that are younger are dropped. The stamps of entries never go back, though the clock may: one
that was put back would make what is younger look older than the record.

A mount that ends in order records that, too. What was changed later than that record (by ctime, which no
program can set back) was changed by others. After a mount that was killed nobody can tell by ctime what it
did last; the stamps remain.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3blobfs.tier.layout import TEMPORARY_PREFIX, TierLayout

_NAME = "session.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARGIN_NS = 2 * 10**9
"""An entry's mtime is exact to a second."""


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which of the files that were found may be used."""

    distrusted_from_ns: int | None
    """From this mtime on they may have lost bytes in a crash of the machine; ``None``: none has."""
    ended_ns: int | None
    """When the mount before ended in order, by the disk's own clock; ``None`` if it did not."""

    def whole(self, status: os.stat_result) -> bool:
        return self.distrusted_from_ns is None or status.st_mtime_ns < self.distrusted_from_ns

    def unaltered(self, status: os.stat_result) -> bool:
        return self.ended_ns is None or status.st_ctime_ns <= self.ended_ns


def current_boot() -> str:
    """A name of this boot of the machine (random(4)); empty, which matches no boot, where there is none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Session:
    """The record; all methods block for the disk and raise ``OSError``. ``boot`` and ``now_ns`` are for
    tests."""

    def __init__(
        self,
        layout: TierLayout,
        *,
        boot: Callable[[], str] = current_boot,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._layout = layout
        self._boot = boot
        self._now_ns = now_ns
        self._synced_ns = 0
        self._newest_ns = 0

    def begin(self) -> Trust:
        """What is to be made of what is found."""
        boot, self._synced_ns, ended_ns = self._read()
        self._newest_ns = self._synced_ns
        if ended_ns is not None:
            try:
                self._write(self._synced_ns, boot=boot)
            except OSError as error:
                log.info("cached files may be dropped if this mount is killed: %s", error)
        same_boot = boot != "" and boot == self._boot()
        return Trust(None if same_boot else self._synced_ns - _MARGIN_NS, ended_ns)

    def stamp_ns(self, now_ns: int) -> int:
        """The time to stamp an entry with: now, but never before one that was given or recorded."""
        self._newest_ns = max(self._newest_ns, now_ns)
        return self._newest_ns

    def distrusted_are_gone(self) -> None:
        """What the last boot left is on the disk. Until this is recorded, later mounts distrust the same
        entries and those of this one."""
        self._write(self.stamp_ns(self._now_ns()))

    def sync(self) -> None:
        """Bring all of the tier's disk up to date, and record that."""
        began_ns = self.stamp_ns(self._now_ns())
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._layout.root.fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._write(began_ns)

    def end(self) -> None:
        """The mount ends: whatever is changed after this was not changed by it."""
        boot, synced_ns, _ = self._read()
        self._write(synced_ns, boot=boot, ended=True)

    def _read(self) -> tuple[str, int, int | None]:
        """Boot, time of the last sync, and when the mount before ended."""
        try:
            fd = self._layout.root.open(_NAME)
        except FileNotFoundError:
            return "", 0, None
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            try:
                record = json.load(file)
                ended_ns = os.fstat(file.fileno()).st_ctime_ns if record.get("ended") is True else None
                return str(record["boot"]), int(record["synced_ns"]), ended_ns
            except (ValueError, KeyError, TypeError, AttributeError):
                return "", 0, None  # damaged: nothing can be trusted

    def _write(self, synced_ns: int, *, boot: str | None = None, ended: bool = False) -> None:
        """``boot``: this one, if none is given."""
        boot = self._boot() if boot is None else boot
        root = self._layout.root
        temporary = f"{TEMPORARY_PREFIX}{_NAME}"
        root.unlink(temporary)
        with open(root.create(temporary), "w") as file:  # noqa: PTH123 - a descriptor
            json.dump({"boot": boot, "synced_ns": synced_ns, "ended": ended}, file)
        self._layout.rename_durably(root, temporary, root, _NAME)
        self._synced_ns = synced_ns
