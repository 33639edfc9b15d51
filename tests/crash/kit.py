"""A mount that is killed at a failpoint, and what was acknowledged until then."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import apsw

from s3blobfs.control.client import MountedVolume as Control
from s3blobfs.control.messages import ControlError
from s3blobfs.errors import UsageError
from s3blobfs.failpoints import VARIABLE
from tests.support.bucket import sweep
from tests.support.mounted import MountedVolume, is_running

DEATH_TIMEOUT_S = 30.0
"""The reaper waits for company, and a busy machine for its turn."""
GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""What a call gets on a mount whose process has ended."""

OTHER = "other"
"""The directory that a second store is bound to."""


class Died(Exception):
    """The mount's process is gone."""


@dataclass
class Ledger:
    """What each file may hold: ``None`` is no file."""

    allowed: dict[str, set[bytes | None]] = field(default_factory=dict)

    @contextmanager
    def change(self, name: str, to: bytes | None) -> Iterator[None]:
        """Inside, the file gets another content; behind it, that is acknowledged."""
        before = self.allowed.get(name, {None})
        # A name exists before it has content.
        self.allowed[name] = before | {to} | ({b""} if None in before and to is not None else set())
        yield
        self.allowed[name] = {to}

    def compare(self, root: Path) -> None:
        for name, allowed in self.allowed.items():
            path = root / name
            found = path.read_bytes() if path.exists() else None
            assert found in allowed, f"{name}: {_short(found)}, not of {[_short(each) for each in allowed]}"


def _short(content: bytes | None) -> str:
    return "no file" if content is None else f"{len(content)} bytes {content[:12]!r}"


class Victim:
    """A volume whose mounts are killed, again and again."""

    def __init__(self, volume: MountedVolume) -> None:
        self.volume = volume
        self.ledger = Ledger()
        self._pid = 0

    @contextmanager
    def killed_at(self, failpoint: str) -> Iterator[None]:
        """Mounted inside, until it kills itself: sooner or later it has to. Not mounted afterwards."""
        self.volume.extra_environment[VARIABLE] = failpoint
        try:
            self.volume.mount()
        finally:
            del self.volume.extra_environment[VARIABLE]
        self._pid = Control.of(self.volume.mountpoint).call("status")["mount"]["pid"]
        with suppress(Died):
            yield
        deadline = time.monotonic() + DEATH_TIMEOUT_S
        while is_running(self._pid):
            assert time.monotonic() < deadline, f"{failpoint} was not reached"
            time.sleep(0.02)
        self.volume.bury(self._pid)

    # -- what a user does ------------------------------------------------------------------------------

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (ControlError, UsageError) as error:
            self._must_be_dying(error)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._must_be_dying(error)

    def _must_be_dying(self, error: Exception) -> NoReturn:
        deadline = time.monotonic() + DEATH_TIMEOUT_S
        while is_running(self._pid):
            if time.monotonic() > deadline:
                raise error
            time.sleep(0.01)
        raise Died from error

    def write(self, name: str, content: bytes) -> None:
        with self._alive(), self.ledger.change(name, content):
            fd = os.open(self.volume.mountpoint / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)  # an error of close counts
            self._sync_names()

    def write_until_sent(self, name: str, content: bytes) -> None:
        """The end of the content comes, and then the close, when S3 has a part of what comes before."""
        held_back = 4 * 1024 * 1024
        with self._alive(), self.ledger.change(name, content):
            control = Control.of(self.volume.mountpoint)
            parts = control.call("status")["counts"].get("s3.part", 0)
            fd = os.open(self.volume.mountpoint / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(fd, content[:-held_back])
                at = len(content) - held_back
                deadline = time.monotonic() + DEATH_TIMEOUT_S
                # What was hashed meanwhile is seen when more is written.
                while control.call("status")["counts"].get("s3.part", 0) == parts:
                    assert time.monotonic() < deadline, "no part is sent before the close"
                    at += os.write(fd, content[at : at + 4096])
                    time.sleep(0.01)
                os.write(fd, content[at:])
            finally:
                os.close(fd)
            self._sync_names()

    def append(self, name: str, data: bytes, *, header: bytes = b"") -> None:
        """To what is acknowledged of the file; then change how it begins."""
        (content,) = self.ledger.allowed[name]
        assert content is not None
        with self._alive(), self.ledger.change(name, header + content[len(header) :] + data):
            fd = os.open(self.volume.mountpoint / name, os.O_WRONLY)
            try:
                os.pwrite(fd, data, len(content))
                if header:
                    os.pwrite(fd, header, 0)
            finally:
                os.close(fd)
            self._sync_names()

    def unlink(self, name: str) -> None:
        with self._alive(), self.ledger.change(name, None):
            os.unlink(self.volume.mountpoint / name)
            self._sync_names()

    def copy(self, source: str, target: str) -> None:
        """A direct copy."""
        content = self.ledger.allowed[source]
        assert len(content) == 1
        path = self.volume.mountpoint / target
        with self._alive(), self.ledger.change(target, next(iter(content))):
            control = Control.of(self.volume.mountpoint)
            control.call(
                "copy",
                source=control.inode_of(self.volume.mountpoint / source),
                parent=control.inode_of(path.parent),
                name=path.name,
                replace=True,
            )

    def sync(self) -> None:
        with self._alive():
            Control.of(self.volume.mountpoint).call("sync", inode=None)

    def _sync_names(self) -> None:
        """With durability ``disk`` names get to the disk a moment later, or now."""
        fd = os.open(self.volume.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- afterwards ------------------------------------------------------------------------------------

    def compare(self, *, strays: int = 0) -> None:
        """Everything promised is there, now and in S3. Nothing else is in the bucket, but for so many objects
        that no row names, and gc finds just those. At first and at last not mounted."""
        self.volume.check()
        self.volume.mount()
        self.ledger.compare(self.volume.mountpoint)
        self.sync()
        self.ledger.compare(self.volume.mountpoint)
        self.volume.umount()
        self.volume.check()
        swept = sweep(self.volume)
        assert len(swept.strays) <= strays, f"nothing named {swept.strays}"


def keep_no_garbage(volume: MountedVolume) -> None:
    """Let a digest store's blobs be deleted as soon as nothing refers to them."""
    connection = apsw.Connection(str(volume.index))
    connection.execute("UPDATE volume SET garbage_grace_s = 0")
    connection.close()
