"""What a tree of processes has used: processor time and memory by proc(5), and requests as it counts them
itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CHILDREN_TIME_FIELD = 16
_TIME_FIELDS = 2
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


def cpu_s(pid: int) -> float:
    """User and system time of all its threads, to the nanosecond, and of the children it has waited for, in
    steps of 10 ms. Raises :class:`OSError` when there is no such process."""
    # The second field is the program's name in parentheses, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    of_children = fields[_CHILDREN_TIME_FIELD - _FIRST_FIELD_AFTER_NAME :][:_TIME_FIELDS]
    return _own_cpu_s(pid) + sum(map(int, of_children)) / _TICKS_PER_S


def _own_cpu_s(pid: int) -> float:
    """clock_getcpuclockid(3)."""
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock)):
        raise OSError(error, os.strerror(error), f"process {pid}")
    return time.clock_gettime(clock.value)


def forget_peak_memory(pid: int) -> None:
    """From here on :func:`peak_memory_bytes` tells of what follows."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def peak_memory_bytes(pid: int) -> int:
    """The most that was resident since the start, or since :func:`forget_peak_memory`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"process {pid} has no memory: it has ended")


@dataclass(frozen=True, slots=True)
class Tree:
    """A process and all that descend from it."""

    pid: int

    def pids(self) -> list[int]:
        """Those that there are now, each after its parent."""
        found, left = [], [self.pid]
        while left:
            found.append(left.pop())
            for task in _tasks(found[-1]):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    left += map(int, (task / "children").read_text().split())
        return [each for each in found if Path(f"/proc/{each}").exists()]

    def cpu_s(self) -> float:
        return sum(map(cpu_s, self.pids()))

    def forget_peak_memory(self) -> None:
        for pid in self.pids():
            forget_peak_memory(pid)

    def peak_memory_bytes(self) -> int:
        """The sum of all peaks, though each may have been at another time."""
        return sum(map(peak_memory_bytes, self.pids()))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []
