"""Threads that use a mount as programs do, and note what was acknowledged to them."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3blobfs.control.client import MountedVolume as Control
from s3blobfs.control.messages import ControlError
from s3blobfs.errors import UsageError
from torturelib.ledger import By, Content, Ledger, content_of
from torturelib.witness import Witness

FILES = 8
"""Names of one thread in each of its directories."""
OTHER = "other"
"""Name of the second store, and of the directory of each thread that it is bound to."""
SIZES = (0, 1, 900, 40_000, 40_000, 300_000, 1_500_000)
CHUNK_BYTES = 200_000
"""Of one write."""
APPENDED_MAX_BYTES = 4_000_000
"""A file does not grow beyond."""
ASKED_ONE_IN = 4
"""Of what is to be in S3, so much is looked for there at once."""
LONGEST_CALL_S = 120.0
"""A call that takes longer hangs: it has several requests, each with the mount's --total-timeout, and a
barrier waits for the next attempt of what has just failed."""
EXPECTED = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED})
"""What faults and kills may look like to a program."""


class Gate:
    """Lets calls through, or holds them up and waits until none is under way: nobody may touch the bare
    directory below a mount that is gone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = True
        self._inside = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._open)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._open = False
            self._condition.wait_for(lambda: self._inside == 0)

    def open(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def shut(self) -> None:
        """As :meth:`close`, not waiting for those inside."""
        with self._condition:
            self._open = False


def contents_between(before: bytes, after: bytes, begin: int, end: int) -> list[Content]:
    """What a file may hold until all from ``begin`` to ``end`` is written in chunks: the kernel makes two
    requests of one that does not begin with a page, and between any two of them the file may be synced."""
    starts = range(begin, end, CHUNK_BYTES)
    pages = (-(-start // mmap.PAGESIZE) * mmap.PAGESIZE for start in starts)
    return [content_of(after[:at] + before[at:]) for at in {*starts, *pages} if at < end]


class Worker:
    """One user, with a directory of its own, and one in the other store."""

    def __init__(
        self, number: int, seed: int, root: Path, ledger: Ledger, gate: Gate, witness: Witness
    ) -> None:
        self._thread = threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)
        self._random = random.Random(seed)
        self._root = root
        self.directory = f"w{number}"
        self._ledger = ledger
        self._gate = gate
        self._witness = witness
        self._ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.bytes_written = 0
        self.longest_s = 0.0
        """Of all calls."""
        self.unexpected: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After the call it is in."""
        self._ended.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        steps = {
            self._write: 6,
            self._overwrite: 3,
            self._append: 2,
            self._truncate: 1,
            self._read: 5,
            self._copy: 2,
            self._rename: 2,
            self._delete: 2,
            self._sync: 1,
        }
        while not self._ended.is_set():
            (step,) = self._random.choices(list(steps), list(steps.values()))
            with self._gate.inside():
                began = time.monotonic()
                try:
                    step()
                except OSError as error:
                    self.counts["refused"] += 1
                    if error.errno not in EXPECTED:
                        self.unexpected.append(f"{step.__name__}: {error}")
                except (ControlError, UsageError):
                    self.counts["refused"] += 1  # told in words; that it did no harm is compared
                took_s = time.monotonic() - began
            self.longest_s = max(self.longest_s, took_s)
            if took_s > LONGEST_CALL_S:
                self.unexpected.append(f"{step.__name__} took {took_s:.0f} s")

    def _name(self) -> str:
        below = self._random.choice(("", f"{OTHER}/"))
        return f"{self.directory}/{below}{self._random.randrange(FILES)}"

    # -- changes ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Another content in place of what is there, if anything is."""
        name = self._name()
        data = self._random.randbytes(self._random.choice(SIZES))
        passing = contents_between(b"", data, 0, len(data))
        with self._ledger.change(name, content_of(data), By.CLOSE, passing):
            fd = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                self._put(fd, data, 0)
            finally:
                os.close(fd)  # an error of close counts
        self._must_be_stored(name, len(data))
        self.counts["written"] += 1

    def _overwrite(self) -> None:
        """Change a part in place, fsync, change another part, close."""
        name = self._name()
        data = self._reading(name)
        if not data:
            return
        fd: int | None = os.open(self._root / name, os.O_RDWR)
        assert fd is not None
        try:
            changed = self._spliced(data)
            passing = contents_between(data, *changed)
            with self._ledger.change(name, content_of(changed[0]), By.FSYNC, passing):
                self._put(fd, changed[0][changed[1] : changed[2]], changed[1])
                os.fsync(fd)
            self._must_be_stored(name, len(data))
            again = self._spliced(changed[0])
            passing = contents_between(changed[0], *again)
            with self._ledger.change(name, content_of(again[0]), By.CLOSE, passing):
                self._put(fd, again[0][again[1] : again[2]], again[1])
                closing, fd = fd, None
                os.close(closing)
        finally:
            if fd is not None:
                os.close(fd)
        self._must_be_stored(name, len(data))
        self.counts["overwritten"] += 1

    def _spliced(self, data: bytes) -> tuple[bytes, int, int]:
        """Another content of the same length, and where it differs."""
        begin = self._random.randrange(len(data))
        end = min(len(data), begin + self._random.randrange(1, CHUNK_BYTES))
        return data[:begin] + self._random.randbytes(end - begin) + data[end:], begin, end

    def _append(self) -> None:
        name = self._name()
        data = self._reading(name)
        if data is None or len(data) > APPENDED_MAX_BYTES:
            return
        added = self._random.randbytes(self._random.randrange(1, CHUNK_BYTES))
        passing = contents_between(data, data + added, len(data), len(data + added))
        with self._ledger.change(name, content_of(data + added), By.CLOSE, passing):
            fd = os.open(self._root / name, os.O_WRONLY | os.O_APPEND)
            try:
                self._put(fd, added, None)
            finally:
                os.close(fd)
        self._must_be_stored(name, len(data) + len(added))
        self.counts["appended"] += 1

    def _truncate(self) -> None:
        name = self._name()
        data = self._reading(name)
        if data is None:
            return
        size_bytes = self._random.randrange(2 * len(data) + 1)
        changed = data[:size_bytes].ljust(size_bytes, b"\0")
        with self._ledger.change(name, content_of(changed), By.TRUNCATE):
            os.truncate(self._root / name, size_bytes)
        self._must_be_stored(name, size_bytes)
        self.counts["truncated"] += 1

    def _copy(self) -> None:
        """Within a store, or from one into the other."""
        source, target = self._name(), self._name()
        content = self._ledger.known(source)
        if source == target or content is None:
            return
        path = self._root / target
        control = Control.of(self._root)
        with self._ledger.change(target, content, By.COPY):
            control.call(
                "copy",
                source=control.inode_of(self._root / source),
                parent=control.inode_of(path.parent),
                name=path.name,
                replace=True,
            )
        self._must_be_stored(target, content[0])
        self.counts["copied"] += 1

    def _rename(self) -> None:
        source, target = self._name(), self._name()
        if source == target or self._ledger.known(source) is None:
            return
        with self._ledger.rename(source, target):
            os.rename(self._root / source, self._root / target)
            self._sync_directories(source, target)
        self.counts["renamed"] += 1

    def _delete(self) -> None:
        name = self._name()
        if self._ledger.known(name) is None:
            return
        with self._ledger.change(name, None, By.NAMES):
            os.unlink(self._root / name)
            self._sync_directories(name)
        self.counts["deleted"] += 1

    def _put(self, fd: int, data: bytes, offset: int | None) -> None:
        """All of it, in writes of at most ``CHUNK_BYTES``; ``None``: where an append goes."""
        done = 0
        while done < len(data):
            chunk = data[done : done + CHUNK_BYTES]
            done += os.write(fd, chunk) if offset is None else os.pwrite(fd, chunk, offset + done)
        self.bytes_written += len(data)

    def _sync_directories(self, *names: str) -> None:
        for directory in {(self._root / name).parent for name in names}:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    # -- looking ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        self._reading(self._name())

    def _reading(self, name: str) -> bytes | None:
        """The content of a file, compared; ``None`` of one that is not there or in doubt."""
        if self._ledger.known(name) is None:
            return None
        data = (self._root / name).read_bytes()
        self._ledger.compare_one(name, data)
        self.counts["read"] += 1
        return data

    def _sync(self) -> None:
        """As ``s3blobfs sync FILE``: in S3, whatever the durability."""
        name = self._name()
        content = self._ledger.known(name)
        if content is None:
            return
        control = Control.of(self._root)
        control.call("sync", inode=control.inode_of(self._root / name))
        self._look_for(name, content[0])
        self.counts["synced"] += 1

    def _must_be_stored(self, name: str, size_bytes: int) -> None:
        """With durability ``s3`` an acknowledged content is in S3."""
        if self._ledger.durability == "s3" and self._random.randrange(ASKED_ONE_IN) == 0:
            self._look_for(name, size_bytes)

    def _look_for(self, name: str, size_bytes: int) -> None:
        if size_bytes == 0:
            return  # an empty file has no object
        missing = self._witness.missing(self._root / name, size_bytes)
        if missing is not None:
            self._ledger.not_in_s3(name, missing)
