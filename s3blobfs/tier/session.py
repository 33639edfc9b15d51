"""Which cached contents to trust after a crash of the machine.

Entries get their names without an fsync: a cache is not worth one per file. After a crash of the process
nothing is lost by that, since the page cache stays. After a crash of the machine an entry may have its name,
its length and its times, and yet blocks that never reached the disk. So the tier keeps a record of the boot
in which it was last mounted and of the time up to which all of it is known to be on the disk; after another
boot the entries that are younger are dropped.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from s3blobfs.tier.layout import TEMPORARY_PREFIX, TierLayout

_NAME = "session.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARGIN_NS = 2 * 10**9
"""An entry's mtime is exact to a second."""


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

    def begin(self) -> int | None:
        """The mtime from which on entries cannot be trusted; ``None`` when all can."""
        boot, self._synced_ns = self._read()
        if boot and boot == self._boot():
            return None
        return self._synced_ns - _MARGIN_NS

    def distrusted_are_gone(self) -> None:
        """What the last boot left is on the disk. Until this is recorded, later mounts distrust the same
        entries and those of this one."""
        self._write(self._now_ns())

    def sync(self) -> None:
        """Bring all of the tier's disk up to date, and record that."""
        began_ns = self._now_ns()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._layout.root.fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._write(began_ns)

    def _read(self) -> tuple[str, int]:
        try:
            fd = self._layout.root.open(_NAME)
        except FileNotFoundError:
            return "", 0
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            try:
                record = json.load(file)
                return str(record["boot"]), int(record["synced_ns"])
            except (ValueError, KeyError, TypeError):
                return "", 0  # damaged: nothing can be trusted

    def _write(self, synced_ns: int) -> None:
        root = self._layout.root
        temporary = f"{TEMPORARY_PREFIX}{_NAME}"
        root.unlink(temporary)
        with open(root.create(temporary), "w") as file:  # noqa: PTH123 - a descriptor
            json.dump({"boot": self._boot(), "synced_ns": synced_ns}, file)
        self._layout.rename_durably(root, temporary, root, _NAME)
        self._synced_ns = synced_ns
