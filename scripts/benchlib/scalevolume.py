"""A volume of ``scripts/bench scale``, and what it uses."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchlib.content import drop_pages
from benchlib.usage import forget_peak_memory
from benchlib.volume import MODES, CommandFailed, Volume
from s3blobfs.config import KIB, S3Options
from s3blobfs.replica import names
from s3blobfs.s3.connection import S3Connection


class ScaledVolume(Volume):
    """A volume with a bucket of its own."""

    def __init__(self, name: str, directory: Path, endpoint_url: str) -> None:
        super().__init__(MODES["digest"], directory, endpoint_url, bucket=f"scale-{name}")
        self.name = name
        self._bucket = f"scale-{name}"
        self._endpoint_url = endpoint_url

    # -- what it uses ----------------------------------------------------------------------------------

    def serving_s(self) -> float:
        """Processor time of the mount's first thread, which serves the requests, to the nanosecond (the
        kernel's Documentation/scheduler/sched-stats.rst)."""
        assert self._process is not None, "not mounted"
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e9

    def peak_memory_bytes(self) -> int:
        peak = super().peak_memory_bytes()
        assert peak is not None
        return peak

    def measured(self, command: str, index: Path) -> tuple[float, int]:
        """``s3blobfs COMMAND`` of the unmounted volume with an index: seconds, and the most memory that the
        process had. Raises :class:`CommandFailed`."""
        arguments = [
            sys.executable,
            "-P",
            "-m",
            "s3blobfs",
            command,
            self._uri,
            f"--index={index}",
            self._endpoint,
        ]
        # A child's most begins with what its parent had at the most (the kernel's fs/exec.c, exec_mmap()),
        # and this process has had the whole index mapped.
        forget_peak_memory(os.getpid())
        with tempfile.TemporaryFile("w+") as errors:
            begun = time.perf_counter()
            process = subprocess.Popen(
                arguments, env=self._environment, stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
            seconds = time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
            errors.seek(0)
            if process.returncode:
                raise CommandFailed(f"s3blobfs {command}: {errors.read().strip()}")
        return seconds, used.ru_maxrss * KIB

    # -- the index -------------------------------------------------------------------------------------

    @property
    def index(self) -> Path:
        return self._index

    @contextlib.contextmanager
    def index_in_memory(self) -> Iterator[None]:
        """The operating system has the whole index in memory, as far as there is room. It is mapped
        meanwhile: pages that are only cached go at any time, by /proc/sys/vm/drop_caches for instance."""
        with (
            self._index.open("rb") as file,
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ),
        ):
            yield

    def forget_index_pages(self) -> None:
        """After this the operating system has nothing of the index in memory, what SQLite itself caches
        apart."""
        drop_pages([self._index])

    def snapshot_bytes(self) -> int:
        """The size of the newest snapshot in the bucket."""
        connection = S3Connection(S3Options(endpoint_url=self._endpoint_url))
        try:
            answer = connection.boto.list_objects_v2(Bucket=self._bucket, Prefix=names.snapshots_prefix(""))
        finally:
            connection.close()
        return max(answer["Contents"], key=lambda each: each["LastModified"])["Size"]
