"""A process that outlives the command that started it, found again by its id and start time.

The id alone would not do: after a restart of the machine it may be anybody's.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

_START_TIME_FIELD = 22
_STATE_FIELD = 3
"""proc_pid_stat(5)."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time (until the machine restarts)."""

    pid: int
    boot: str
    start_ticks: int
    """Since the start of the machine."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """``None`` when there is no such process, or it has ended and waits for its parent."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the program's name in parentheses, which may hold anything.
        fields = stat[stat.rindex(")") + 2 :].split()
        if fields[_STATE_FIELD - 3] in "ZX":
            return None
        return cls(pid, _boot_id(), int(fields[_START_TIME_FIELD - 3]))

    @property
    def is_running(self) -> bool:
        return self.boot == _boot_id() and ProcessId.of(self.pid) == self

    def end(self, grace_s: float) -> bool:
        """SIGTERM, and SIGKILL after ``grace_s``; returns when it has ended. Whether the first sufficed."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # Looked at once more while the descriptor keeps the id from being given away.
            if not self.is_running:
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if _ended(pidfd, grace_s):
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _ended(pidfd, None)
            return False
        except ProcessLookupError:
            return True
        finally:
            os.close(pidfd)


def _ended(pidfd: int, timeout_s: float | None) -> bool:
    """pidfd_open(2): readable when the process has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
