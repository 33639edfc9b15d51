"""What a tree of processes has used: processor time and memory by proc(5), and requests as it counts them
itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_USER_TIME_FIELD = 14
_FIRST_FIELD_AFTER_NAME = 3
"""proc_pid_stat(5)."""
_RESET_PEAK = "5"
"""proc_pid_clear_refs(5)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals since the processes began."""

    cpu_s: float
    requests: Mapping[str, int] = field(default_factory=dict)

    def since(self, earlier: Usage) -> Usage:
        """What came in between; requests that did not take place are left out."""
        requests = {name: count - earlier.requests.get(name, 0) for name, count in self.requests.items()}
        return Usage(self.cpu_s - earlier.cpu_s, {name: count for name, count in requests.items() if count})


def tree(pid: int) -> list[int]:
    """A process and all that descend from it; nothing when it has ended."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        for tasks in _tasks(found[-1]):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                left += map(int, (tasks / "children").read_text().split())
    return [each for each in found if Path(f"/proc/{each}").exists()]


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of all their threads and of the children they have waited for."""
    return sum(map(_cpu_s, pids))


def _cpu_s(pid: int) -> float:
    # The second field is the program's name in parentheses, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    times = fields[_USER_TIME_FIELD - _FIRST_FIELD_AFTER_NAME :][:4]
    return sum(map(int, times)) / _TICKS_PER_S


def forget_peak_memory(pids: Iterable[int]) -> None:
    """From here on :func:`peak_memory_bytes` tells of what follows."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def peak_memory_bytes(pids: Iterable[int]) -> int:
    """The most that was resident since the start, or since :func:`forget_peak_memory`; of several processes
    the sum, though each may have had its most at another time."""
    return sum(map(_peak_memory_bytes, pids))


def _peak_memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"process {pid} has no memory: it has ended")
