"""Where one round of rows works in a directory, and the files that they share.

Rows can be chosen one by one, so each asks for the files that it needs; what an earlier row has made is used
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchlib.content import large_content, small_contents, write_file
from benchlib.targets import DirectoryTarget
from s3blobfs.config import MIB

T = TypeVar("T")

THREADS = 16


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a round does."""

    large_bytes: int = 64 * MIB
    small_files: int = 1000
    pieces: int = 1000
    """Small reads out of the large file."""
    appends: int = 20
    directories: int = 200
    tree_files: int = 200
    tree_renames_s: float = 3.0
    """No more renames of the tree after this time: where each object is copied, one takes seconds."""

    def with_sizes(self, large_bytes: int | None, small_files: int | None) -> Scale:
        """The same, but for the sizes that are given."""
        return replace(
            self,
            large_bytes=self.large_bytes if large_bytes is None else large_bytes,
            small_files=self.small_files if small_files is None else small_files,
        )


QUICK = Scale(large_bytes=6 * MIB, small_files=24, pieces=24, appends=2, directories=8, tree_files=12)
"""The large file is still larger than what is fetched in one request."""


class Place:
    """One round on one target."""

    def __init__(self, target: DirectoryTarget, scale: Scale, number: int) -> None:
        self.target = target
        self.scale = scale
        self.seed = f"round {number}"
        self.directory = target.directory / f"round-{number}"
        self.directory.mkdir()
        self._small: list[Path] = []

    def path(self, name: str) -> Path:
        return self.directory / name

    # -- the large file --------------------------------------------------------------------------------

    @cached_property
    def large_content(self) -> bytes:
        return large_content(self.seed, self.scale.large_bytes)

    @cached_property
    def buffer(self) -> bytearray:
        """For reading the large file: memory that has been touched already."""
        return bytearray(b"\xff") * self.scale.large_bytes

    @property
    def large_file(self) -> Path:
        path = self.path("large")
        if not path.exists():
            write_file(path, self.large_content)
        return path

    # -- the small files -------------------------------------------------------------------------------

    @cached_property
    def small_contents(self) -> list[bytes]:
        return small_contents(self.seed, self.scale.small_files)

    @property
    def small_files(self) -> list[Path]:
        """In a directory of their own."""
        if not self._small:
            self.keep_small_files(self.new_small_files("small"))
            in_threads(lambda pair: write_file(*pair), zip(self._small, self.small_contents, strict=True))
        return self._small

    def new_small_files(self, directory: str) -> list[Path]:
        """Paths in a new directory, for as many files."""
        self.path(directory).mkdir()
        return [self.path(directory) / f"{number:06}" for number in range(self.scale.small_files)]

    def keep_small_files(self, paths: list[Path]) -> None:
        """These have been written."""
        self._small = paths

    # -- forgetting ------------------------------------------------------------------------------------

    @property
    def files(self) -> list[Path]:
        """Those that reading rows read."""
        large = self.path("large")
        return [*([large] if large.exists() else []), *self._small]

    def forget_everything(self) -> None:
        self.target.forget_everything(self.files)

    def forget_in_kernel(self) -> None:
        """The local cache has everything, the kernel nothing. Read once first: what was never read may not
        be in the cache."""
        self.target.forget_in_kernel(self.files)


def in_threads(work: Callable[[T], object], items: Iterable[T], threads: int = THREADS) -> None:
    """Raises what the first that fails raises."""
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)  # after a failure, or Ctrl-C
        for _ in pool.map(work, items):
            pass


def one_by_one(work: Callable[[T], object], items: Iterable[T]) -> None:
    for item in items:
        work(item)
