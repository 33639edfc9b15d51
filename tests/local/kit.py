"""A mounted volume whose local files are on a disk that the test can break."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import unique_bucket_name
from tests.mount.conftest import KINDS
from tests.support.faultydisk import FaultyDisk
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server


@dataclass
class OnDisk:
    """A volume and the disk that its index, or its cache directory, is on."""

    volume: MountedVolume
    disk: FaultyDisk

    @property
    def root(self) -> Path:
        return self.volume.mountpoint

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.volume.command("status", self.root, "--json").stdout)
        return found

    def forget_pages(self) -> None:
        """Of the kernel, so that what is read next comes from the mount's process."""
        self.volume.remount()

    def write_back(self) -> None:
        """Let the kernel bring to the disk what it keeps, as it does by itself after a while. Whether that
        succeeds is told to those who have the files open."""
        fd = os.open(self.disk.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ctypes.CDLL(None).syncfs(fd)
        finally:
            os.close(fd)


@contextmanager
def on_disk(
    server: S3Server,
    kind: str,
    *,
    index: bool = False,
    durability: str = "s3",
    writeback: bool = False,
    expected_logs: Sequence[str] = (),
    mount: Sequence[str] = (),
) -> Iterator[OnDisk]:
    """Made, mounted, and unmounted in order. ``index``: it is on the disk, and nothing else is; otherwise the
    cache directory."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-local-"))
    try:
        with FaultyDisk(directory, writeback=writeback) as disk:
            tier = directory / "tier" if index else disk.path / "tier"
            volume = MountedVolume(
                server,
                unique_bucket_name(),
                directory,
                mkfs_options=KINDS[kind],
                mount_options=["--cache-dir", str(tier), "--durability", durability, *mount],
                expected_logs=list(expected_logs),
            )
            if index:
                volume.index = disk.path / "index.db"
            with mounted(volume):
                yield OnDisk(volume, disk)
    finally:
        shutil.rmtree(directory)


def errno_of(call: Callable[[], object]) -> str:
    """The name of the error that a call gets; empty for success."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def overwrite(path: Path, data: bytes) -> str:
    """Open without truncating, write, close; the first error's name."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    writing = errno_of(lambda: os.pwrite(fd, data, 0))
    closing = errno_of(lambda: os.close(fd))
    return writing or closing
