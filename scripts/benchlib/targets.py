"""What is measured: a directory, with the means to make it forget what it has cached."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from benchlib.content import drop_pages
from benchlib.usage import Usage


class Target(ABC):
    """Something that rows are measured on."""

    name: str

    @abstractmethod
    def settle(self) -> None:
        """Wait until nothing is left to be done behind, so that all of it is counted."""

    @abstractmethod
    def usage(self) -> Usage:
        """Of the process that does the work."""

    @abstractmethod
    def forget_peak_memory(self) -> None:
        """Before a row."""

    @abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """After a row; ``None`` where no process of its own does the work."""


class InThisProcess(Target):
    """Work that is done by this process, and done when a call returns."""

    def settle(self) -> None:
        return

    def usage(self) -> Usage:
        times = os.times()
        return Usage(times.user + times.system)

    def forget_peak_memory(self) -> None:
        return

    def peak_memory_bytes(self) -> int | None:
        return None


class DirectoryTarget(Target):
    """A directory that files are kept in."""

    directory: Path

    @abstractmethod
    def forget_everything(self, paths: Iterable[Path]) -> None:
        """After this nothing of these files is cached, neither by us nor in the kernel."""

    @abstractmethod
    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        """After this the kernel has no page of these files; the local cache has them."""


class PlainDirectory(InThisProcess, DirectoryTarget):
    """The limit on one side: the disk that a volume's local tier is on."""

    def __init__(self, directory: Path) -> None:
        self.name = filesystem_type(directory)
        self.directory = directory

    def forget_everything(self, paths: Iterable[Path]) -> None:
        drop_pages(paths, written=True)

    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        """Nothing: a volume reads its cache from a disk like this one, whose pages the kernel still has."""


def filesystem_type(directory: Path) -> str:
    """As mount(8) names it: that of the longest mountpoint above."""
    best = ("", "disk")
    resolved = str(directory.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mountpoint, kind, *_ = line.split(" ")
        if f"{resolved}/".startswith(f"{mountpoint.rstrip('/')}/"):
            best = max(best, (mountpoint, kind), key=lambda found: len(found[0]))
    return best[1]
