"""The steps of the diagrams, done with plain open, read, write, close and unlink on a mounted volume."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.support.mounted import MountedVolume

CLIENT = "Application"
"""The client's name in the fixtures."""
DEADLINE_S = 30.0


class Scenario:
    """One diagram in the making."""

    def __init__(self, volume: MountedVolume, trace_file: Path, *, by_cp: bool = False) -> None:
        """``by_cp``: direct copies are made by cp(1)."""
        self.volume = volume
        self._by_cp = by_cp
        self.trace_file = trace_file
        self.root = volume.mountpoint

    # -- the recorder --------------------------------------------------------------------------------------

    def start(self) -> None:
        self.volume.command("trace", self.root, "start", self.trace_file)

    def section(self, title: str) -> None:
        self.volume.command("trace", self.root, "section", title)

    def stop(self) -> str:
        self.volume.command("trace", self.root, "stop")
        return self.trace_file.read_text()

    def wait_for(self, text: str) -> None:
        """What runs behind the filesystem is drawn when it happens."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.trace_file.read_text():
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.trace_file.read_text()}"
            time.sleep(0.02)

    # -- the client ----------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        fd = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        fd = os.open(self.root / name, os.O_RDONLY)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def copy_directly(self, source: str, target: str) -> None:
        if self._by_cp:
            subprocess.run(["cp", self.root / source, self.root / target], check=True)
        else:
            self.volume.command("cp", self.root / source, self.root / target)

    def look_for(self, blob: str) -> None:
        """Ask where a blob is; the answers are drawn."""
        self.volume.command("trace", self.root, "blob", blob)

    def blob_name(self, name: str) -> str:
        """``id@version``."""
        path = self.root / name
        key, version = (os.getxattr(path, f"user.s3blobfs.{part}").decode() for part in ("key", "version_id"))
        return f"{key.rpartition('/')[2]}@{version}"


def versioned(scenario: Scenario) -> str:
    """Write, read, copy through the client, read the copy, write again, read, delete."""
    scenario.start()
    scenario.section("Write")
    scenario.write("file", b"foo")
    first = scenario.blob_name("file")
    scenario.section("Read")
    assert scenario.read("file") == b"foo"
    scenario.section("Copy")
    drop_pages(scenario.root / "file")
    scenario.write("other/copy", scenario.read("file"))
    scenario.section("Read copy")
    assert scenario.read("other/copy") == b"foo"
    scenario.section("Write second blob")
    scenario.write("file", b"bar")
    scenario.section("Read second blob")
    assert scenario.read("file") == b"bar"
    scenario.section("Delete second blob")
    second = scenario.blob_name("file")
    os.unlink(scenario.root / "file")
    scenario.wait_for("deleteVersion")
    scenario.look_for(second)
    trace = scenario.stop()
    assert first != second
    return trace


def digest(scenario: Scenario) -> str:
    """Write, read, write the same again, copy directly into the other store, read the copy, write, read."""
    scenario.start()
    scenario.section("Write")
    scenario.write("file", b"foo")
    scenario.section("Read")
    assert scenario.read("file") == b"foo"
    scenario.section("Write same again")
    scenario.write("same", b"foo")
    scenario.section("Copy")
    scenario.copy_directly("file", "other/copy")
    scenario.section("Read copy")
    assert scenario.read("other/copy") == b"foo"
    scenario.section("Write second blob")
    scenario.write("second", b"bar")
    scenario.section("Read second blob")
    assert scenario.read("second") == b"bar"
    return scenario.stop()


def versioned_direct_copy(scenario: Scenario) -> str:
    """Write, copy directly into the other store, read the copy."""
    scenario.start()
    scenario.section("Write")
    scenario.write("file", b"foo")
    scenario.section("Copy")
    scenario.copy_directly("file", "other/copy")
    scenario.section("Read copy")
    assert scenario.read("other/copy") == b"foo"
    return scenario.stop()


def drop_pages(path: Path) -> None:
    """Let the kernel forget the file's pages, so that a read reaches the filesystem."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
