"""A mount that reaches S3 through a proxy, and what must hold whatever the proxy does."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from s3blobfs.control.client import MountedVolume as Control
from tests.conftest import unique_bucket_name
from tests.mount.conftest import KINDS
from tests.support.bucket import blobs_of, objects_of, sweep, write_ids_of
from tests.support.mounted import MountedVolume, mounted
from tests.support.proxy import RecordingProxy
from tests.support.servers import S3Server

REQUEST_TIMEOUT_S = 1.0
TOTAL_TIMEOUT_S = 4.0
DEADLINE_S = 3 * TOTAL_TIMEOUT_S
"""A call may need several requests. A busy machine needs its time, too."""


@dataclass
class Wire:
    """A mounted volume and the proxy before its server."""

    volume: MountedVolume
    proxy: RecordingProxy
    written: dict[Path, bytes] = field(default_factory=dict)
    """What files hold; compared in the end."""

    @property
    def root(self) -> Path:
        return self.volume.mountpoint

    def put(self, path: Path, data: bytes) -> None:
        self.written[path] = data
        path.write_bytes(data)

    def sync(self) -> None:
        """The barrier; what failed is tried again a second or two later."""
        Control.of(self.root).call("sync", inode=None)

    def forget(self) -> None:
        """Mount again with nothing in the cache: what is read then comes from S3."""
        self.volume.umount()
        shutil.rmtree(self.volume.directory / "index.db.tier")
        self.volume.mount()
        self.proxy.clear()

    def another_file_goes_on(self, name: str) -> None:
        """While requests about others fail."""
        with deadline():
            self.put(self.root / name, name.encode())

    def compare(self) -> None:
        """By bytes that come from S3."""
        self.forget()
        for path, data in self.written.items():
            assert path.read_bytes() == data, path


@contextmanager
def deadline(seconds: float = DEADLINE_S) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds, f"it took {took:.1f} s"


@contextmanager
def in_background() -> Iterator[ThreadPoolExecutor]:
    """For calls that have to wait; system calls release the GIL."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


@contextmanager
def wired(server: S3Server, kind: str, expected_logs: list[str]) -> Iterator[Wire]:
    """Made, mounted, and in the end unmounted and compared: S3 holds exactly what the index says."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-wire-"))
    timeouts = [f"--request-timeout={REQUEST_TIMEOUT_S}", f"--total-timeout={TOTAL_TIMEOUT_S}"]
    try:
        with RecordingProxy(server.endpoint_url) as proxy:
            volume = MountedVolume(
                server,
                unique_bucket_name(),
                directory,
                mkfs_options=KINDS[kind],
                mount_options=timeouts,
                endpoint_url=proxy.url,
                expected_logs=expected_logs,
            )
            with mounted(volume):
                wire = Wire(volume, proxy)
                yield wire
                proxy.clear()
                wire.compare()
            explained, _ = blobs_of(volume)
            named = write_ids_of(volume, explained & objects_of(volume))
            strays = objects_of(volume) - explained
            # A request that is given up may reach the server after it was made again: the same upload, twice.
            twice = {version for version in strays if write_ids_of(volume, [version]) & named}
            # Or after its content was replaced.
            assert len(strays - twice) <= 1, f"nothing names {strays - twice}"
            assert sweep(volume).strays == strays
    finally:
        shutil.rmtree(directory)
