"""What every file may hold, by what was acknowledged and what was only begun."""

from __future__ import annotations

import enum
import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Content = tuple[int, str] | None
"""Size and SHA-256; ``None`` is no file."""


class By(enum.Enum):
    """The call that acknowledged a content or a name."""

    CLOSE = "close"
    FSYNC = "fsync"
    TRUNCATE = "truncate"
    COPY = "copy"
    """By S3, or within a store."""
    NAMES = "fsync of a directory"
    """Of a name that was given or taken away."""


Promise = tuple[By, str]
"""With the durability."""


@dataclass(frozen=True)
class Loss:
    promise: Promise
    what: str
    not_in_s3: bool = False
    """Whether another client looked for it in vain."""


def content_of(data: bytes) -> Content:
    return len(data), hashlib.sha256(data).hexdigest()


EMPTY = content_of(b"")


@dataclass
class Ledger:
    """Thread-safe; each file has one writer."""

    root: Path
    durability: str
    allowed: dict[str, set[Content]] = field(default_factory=dict)
    acknowledged: Counter[Promise] = field(default_factory=Counter)
    losses: list[Loss] = field(default_factory=list)
    bytes_compared: int = 0
    files_compared: int = 0
    _by: dict[str, By] = field(default_factory=dict)
    _renames: dict[tuple[str, str], Content] = field(default_factory=dict)
    """Not acknowledged: the content has to be under one of the two names."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, name: str) -> Content:
        """The content of a file about which there is no doubt; ``None`` also for doubt."""
        with self._lock:
            allowed = self.allowed.get(name, {None})
            return next(iter(allowed)) if len(allowed) == 1 else None

    @contextmanager
    def change(self, name: str, to: Content, by: By, passing: Iterable[Content] = ()) -> Iterator[None]:
        """Acknowledged behind the context, in doubt if it is left by an error. ``passing``: what it may hold
        on the way, when somebody else syncs the whole volume meanwhile."""
        with self._lock:
            before = self.allowed.get(name, {None})
            made = {EMPTY} if None in before and to is not None else set()
            self.allowed[name] = before | {to} | made | set(passing)
        yield
        with self._lock:
            self.allowed[name] = {to}
            self._by[name] = by
            self.acknowledged[by, self.durability] += 1

    @contextmanager
    def rename(self, source: str, target: str) -> Iterator[None]:
        """Only of a file about which there is no doubt."""
        content = self.known(source)
        with self._lock:
            self._renames[source, target] = content
        with self.change(source, None, By.NAMES), self.change(target, content, By.NAMES):
            yield
        with self._lock:
            del self._renames[source, target]

    def compare_one(self, name: str, data: bytes) -> None:
        """What was read of a file that nobody changes meanwhile."""
        with self._lock:
            self._compare(name, content_of(data))
            self.bytes_compared += len(data)

    def compare(self) -> None:
        """Every file, while nobody changes any; from now on each has what was found."""
        found: dict[str, Content] = {}
        for name in sorted(self.allowed):
            path = self.root / name
            data = path.read_bytes() if path.exists() else None
            found[name] = None if data is None else content_of(data)
            self._compare(name, found[name])
            self.bytes_compared += len(data or b"")
        for (source, target), content in self._renames.items():
            if content not in (found[source], found[target]):
                self._lose(source, f"lost in its rename to {target}")
        self._renames.clear()
        self.allowed = {name: {content} for name, content in found.items()}

    def not_in_s3(self, name: str, what: str) -> None:
        """An acknowledged content should be in S3, and is not."""
        with self._lock:
            self._lose(name, what, not_in_s3=True)

    def _compare(self, name: str, found: Content) -> None:
        self.files_compared += 1
        if found not in self.allowed[name]:
            self._lose(name, f"found {found}, acknowledged was one of {self.allowed[name]}")

    def _lose(self, name: str, what: str, *, not_in_s3: bool = False) -> None:
        # A file that nothing was ever acknowledged of cannot have been there before it was made by a write.
        promise = self._by.get(name, By.CLOSE), self.durability
        self.losses.append(Loss(promise, f"{name}: {what}", not_in_s3))
