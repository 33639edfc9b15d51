"""The state machine: every rule does the same to the model and to the subject and compares the answers.

Few names and small files on purpose: the interesting things happen where operations meet. Offsets and sizes
gather around the edges that the implementation has (checksum blocks, pages, the end of the file).
"""

from __future__ import annotations

import os
import stat
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tests.model.driver import Driver, Outcome, Where, outcome_of
from tests.support.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.support.renameat2 import RENAME_EXCHANGE, RENAME_NOREPLACE

NAMES = [b"a", b"b", b"c\n", b"d@", b"\xff\xfe", b"e" * 255]
EDGES = [0, 1, 3, 4095, 4096, 4097, 65536, 262143, 262144, 262145]
MAX_OPEN = 6

names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=2).map(b"/".join)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 10_000))
contents = st.one_of(
    st.binary(max_size=32),
    st.tuples(st.binary(min_size=1, max_size=8), st.sampled_from([512, 4096, 70_000])).map(
        lambda pair: (pair[0] * pair[1])[: pair[1]]
    ),
)
modes = st.sampled_from([0o600, 0o644, 0o755, 0o2755, 0o4711, 0o1777, 0o000])
open_flags = st.tuples(
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
    st.sampled_from([0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, os.O_APPEND]),
).map(lambda flags: flags[0] | flags[1] | flags[2] | flags[3])
ALLOCATIONS = [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]
# Of the first and the last second that it can express, the model's own filesystem drops the fraction.
times_ns = st.integers((-(2**31) + 1) * 10**9, 2**33 * 10**9)
xattr_names = st.sampled_from([b"user.one", b"user.two", b"trusted.three"])


class FilesystemMachine(RuleBasedStateMachine):
    """Subclasses say what the two drivers are."""

    handles: Bundle[int] = Bundle("handles")

    model: Driver
    subject: Driver
    has_ranges = True
    """Whether the subject does more of fallocate(2) than what every filesystem does."""

    def make_drivers(self) -> tuple[Driver, Driver]:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.model, self.subject = self.make_drivers()
        self.open_numbers: set[int] = set()
        self.appending: set[int] = set()
        self.flags: dict[int, int] = {}
        self.next_number = 0

    def both(self, operation: str, *arguments: Any) -> Outcome:
        expected = outcome_of(lambda: getattr(self.model, operation)(*arguments))
        actual = outcome_of(lambda: getattr(self.subject, operation)(*arguments))
        assert actual == expected, f"{operation}{arguments!r}: {actual} instead of {expected}"
        return expected

    # -- names ---------------------------------------------------------------------------------------

    @rule(path=paths, mode=modes)
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both("mkdir", path, mode)

    @rule(path=paths)
    def rmdir(self, path: bytes) -> None:
        self.both("rmdir", path)

    @rule(path=paths)
    def mkfifo(self, path: bytes) -> None:
        self.both("mkfifo", path, 0o640)

    @rule(path=paths, points_to=st.binary(max_size=64).filter(lambda target: b"\0" not in target))
    def symlink(self, path: bytes, points_to: bytes) -> None:
        # Where it points there is nothing: following links is the kernel's part, not ours to compare.
        self.both("symlink", b"/nowhere/" + points_to, path)

    @rule(path=paths)
    def readlink(self, path: bytes) -> None:
        self.both("readlink", path)

    @rule(source=paths, path=paths)
    def link(self, source: bytes, path: bytes) -> None:
        self.both("link", source, path)

    @rule(path=paths)
    def unlink(self, path: bytes) -> None:
        self.both("unlink", path)

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.both("rename", old, new, flags)

    # -- attributes ----------------------------------------------------------------------------------

    @rule(path=paths)
    def status(self, path: bytes) -> None:
        self.both("stat", path)

    @rule(path=paths, mode=modes)
    def chmod(self, path: bytes, mode: int) -> None:
        if outcome_of(lambda: self.model.readlink(path)).error is not None:  # it would follow the link
            self.both("chmod", path, mode)

    @rule(path=paths, mtime_ns=times_ns)
    def utime(self, path: bytes, mtime_ns: int) -> None:
        self.both("utime", path, mtime_ns)

    @rule(path=paths, name=xattr_names, value=st.binary(max_size=40), flags=st.sampled_from([0, 1, 2]))
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self.both("setxattr", path, name, value, flags)

    @rule(path=paths, name=xattr_names)
    def getxattr(self, path: bytes, name: bytes) -> None:
        self.both("getxattr", path, name)

    @rule(path=paths, name=xattr_names)
    def removexattr(self, path: bytes, name: bytes) -> None:
        self.both("removexattr", path, name)

    @rule(path=paths)
    def listxattr(self, path: bytes) -> None:
        self.both("listxattr", path)

    # -- bytes ---------------------------------------------------------------------------------------

    @rule(path=paths, size=sizes)
    def truncate(self, path: bytes, size: int) -> None:
        if outcome_of(lambda: self.model.readlink(path)).error is not None:
            kind = outcome_of(lambda: self.model.stat(path))
            if kind.error is not None or kind.value.size_bytes is not None:  # a fifo would block
                self.both("truncate", path, size)

    @rule(target=handles, path=paths, flags=open_flags, mode=modes)
    def open(self, path: bytes, flags: int, mode: int) -> Any:
        if len(self.open_numbers) >= MAX_OPEN or self._is_special(path):
            return multiple()
        number = self.next_number
        self.next_number += 1
        if self.both("open", number, path, flags, mode | 0o600).error is not None:
            return multiple()
        self.open_numbers.add(number)
        self.flags[number] = flags
        if flags & os.O_APPEND:
            self.appending.add(number)
        return number

    def _is_special(self, path: bytes) -> bool:
        """A fifo or a directory, which open(2) treats by other rules."""
        found = outcome_of(lambda: self.model.stat(path))
        return found.error is None and found.value.size_bytes is None

    @rule(number=consumes(handles))
    def close(self, number: int) -> None:
        if number in self.open_numbers:
            self.open_numbers.remove(number)
            self.both("close", number)

    @rule(number=handles, offset=sizes, size=sizes)
    def pread(self, number: int, offset: int, size: int) -> None:
        if number in self.open_numbers:
            self.both("pread", number, offset, size)

    @rule(number=handles, offset=sizes, data=contents)
    def pwrite(self, number: int, offset: int, data: bytes) -> None:
        if number in self.open_numbers and number not in self.appending:
            self.both("pwrite", number, offset, data)

    @rule(number=handles, data=contents)
    def append(self, number: int, data: bytes) -> None:
        if number in self.open_numbers and number in self.appending:
            self.both("append", number, data)

    @rule(number=handles, size=sizes)
    def ftruncate(self, number: int, size: int) -> None:
        if number in self.open_numbers:
            self.both("ftruncate", number, size)

    @rule(number=handles, offset=sizes, data=contents.filter(len))
    def mapped_write(self, number: int, offset: int, data: bytes) -> None:
        """A store through a shared mapping of a part that the file has."""
        if number in self.open_numbers and self.flags[number] & os.O_ACCMODE == os.O_RDWR:
            size = self.both("fstat", number).value.size_bytes
            if offset + len(data) <= size:
                self.both("mapped_write", number, offset, data)

    @rule(number=handles, mode=st.sampled_from(ALLOCATIONS), offset=sizes, length=sizes)
    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        if number in self.open_numbers and self.has_ranges:
            self.both("fallocate", number, mode, offset, length)

    @rule(source=handles, into=handles, offset=sizes, into_offset=sizes, length=sizes)
    def copy_range(self, source: int, into: int, offset: int, into_offset: int, length: int) -> None:
        self._copy_range(source, offset, into, into_offset, length)

    @rule(source=handles, into=handles)
    def copy_whole(self, source: int, into: int) -> None:
        """What cp(1) does, which may be a copy in the index alone."""
        self._copy_range(source, 0, into, 0, 2**20)

    def _copy_range(self, source: int, offset: int, into: int, into_offset: int, length: int) -> None:
        if {source, into} <= self.open_numbers:
            self.both("copy_range", source, offset, into, into_offset, length)

    @rule(path=paths, writers=st.integers(2, 4), size=st.sampled_from([1, 5, 5000]))
    def append_at_once(self, path: bytes, writers: int, size: int) -> None:
        """Every piece is there, whole, whatever the order was. The model then does it in that order."""
        if self._is_special(path):
            return
        numbers = range(self.next_number, self.next_number + writers)
        self.next_number += writers
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        if any(self.both("open", number, path, flags, 0o600).error is not None for number in numbers):
            return
        first = numbers[0]
        size_before = self.both("fstat", first).value.size_bytes
        pieces = {bytes([65 + number - first]) * size: number for number in numbers}
        self.subject.append_at_once([(number, piece) for piece, number in pieces.items()])
        for offset in range(size_before, size_before + writers * size, size):
            piece = self.subject.pread(first, offset, size)
            assert piece in pieces, f"{path!r} has {piece[:20]!r} at {offset}"
            self.model.append(pieces.pop(piece), piece)
        for number in numbers:
            self.both("close", number)

    @rule(number=handles)
    def fsync(self, number: int) -> None:
        if number in self.open_numbers:
            self.both("fsync", number)

    @rule(number=handles)
    def fstat(self, number: int) -> None:
        if number in self.open_numbers:
            self.both("fstat", number)

    @rule(where=st.sampled_from(Where))
    def remount(self, where: Where) -> None:
        for number in sorted(self.open_numbers):
            self.both("close", number)
        self.open_numbers.clear()
        self.model.remount(where)
        self.subject.remount(where)
        self.compare_trees()

    # -- the whole -----------------------------------------------------------------------------------

    @invariant()
    def same_root(self) -> None:
        if hasattr(self, "model"):
            self.both("listdir", b"")

    def compare_trees(self, path: bytes = b"") -> None:
        """Every name, attribute and byte."""
        listed = self.both("listdir", path)
        for name in listed.value:
            below = os.path.join(path, name)
            status = self.both("stat", below).value
            self.both("listxattr", below)
            if stat.S_ISDIR(status.kind):
                self.compare_trees(below)
            elif status.size_bytes is not None:
                if stat.S_ISLNK(status.kind):
                    self.both("readlink", below)
                else:
                    self.compare_bytes(below, status.size_bytes)

    def compare_bytes(self, path: bytes, size: int) -> None:
        number = -1
        self.both("open", number, path, os.O_RDONLY, 0)
        self.both("pread", number, 0, size + 1)
        self.both("close", number)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.remount(Where.HERE)
