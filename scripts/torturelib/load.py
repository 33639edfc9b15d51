"""Threads that use a mount as programs do, and note what was acknowledged to them."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torturelib.ledger import Ledger, content_of

FILES = 12
"""Names of one thread."""
SIZES = (0, 1, 900, 40_000, 40_000, 300_000, 1_500_000)
CHUNK_BYTES = 200_000
"""Of one write."""
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


class Worker:
    """One user, with a directory of its own."""

    def __init__(self, number: int, seed: int, root: Path, ledger: Ledger, gate: Gate) -> None:
        self._thread = threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)
        self._random = random.Random(seed)
        self._root = root
        self._directory = f"w{number}"
        self._ledger = ledger
        self._gate = gate
        self._ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.bytes_written = 0
        self.unexpected: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After the call it is in."""
        self._ended.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        steps = (self._write, self._write, self._write, self._read, self._read, self._rename, self._delete)
        while not self._ended.is_set():
            step = self._random.choice(steps)
            with self._gate.inside():
                try:
                    step()
                except OSError as error:
                    self.counts["refused"] += 1
                    if error.errno not in EXPECTED:
                        self.unexpected.append(f"{step.__name__}: {error}")

    def _name(self) -> str:
        return f"{self._directory}/{self._random.randrange(FILES)}"

    def _write(self) -> None:
        name = self._name()
        data = self._random.randbytes(self._random.choice(SIZES))
        prefixes = [content_of(data[:end]) for end in range(0, len(data), CHUNK_BYTES)]
        with self._ledger.change(name, content_of(data), prefixes):
            fd = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                done = 0
                while done < len(data):
                    done += os.write(fd, data[done : done + CHUNK_BYTES])
            finally:
                os.close(fd)
            self._sync_names()
        self.bytes_written += len(data)
        self.counts["written"] += 1

    def _read(self) -> None:
        name = self._name()
        if self._ledger.known(name) is None:
            return
        self._ledger.compare_one(name, (self._root / name).read_bytes())
        self.counts["read"] += 1

    def _rename(self) -> None:
        source, target = self._name(), self._name()
        if source == target or self._ledger.known(source) is None:
            return
        with self._ledger.rename(source, target):
            os.rename(self._root / source, self._root / target)
            self._sync_names()
        self.counts["renamed"] += 1

    def _delete(self) -> None:
        name = self._name()
        if self._ledger.known(name) is None:
            return
        with self._ledger.change(name, None):
            os.unlink(self._root / name)
            self._sync_names()
        self.counts["deleted"] += 1

    def _sync_names(self) -> None:
        fd = os.open(self._root / self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
