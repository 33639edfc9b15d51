"""The limits on S3's side: clients that move the same bytes without a filesystem."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

from benchlib.aside import put_aside
from benchlib.bare import BareS3, Work
from benchlib.content import compare, large_content, small_contents
from benchlib.measure import Watch
from benchlib.peers.bucket import Bucket
from benchlib.peers.system import Server
from benchlib.peers.tools import S5CMD
from benchlib.place import THREADS, Scale
from benchlib.targets import InThisProcess
from benchlib.usage import Usage
from benchlib.volume import CommandFailed

_COMMAND_TIMEOUT_S = 300.0


class Obstore(BareS3):
    """The library that s3blobfs uses, alone, in this process."""

    name = "obstore"

    def __init__(self, server: Server, bucket: str, scale: Scale) -> None:
        super().__init__(server.endpoint_url, scale, bucket)
        self._bucket = Bucket(bucket, server)

    def remove(self) -> None:
        self._bucket.remove()


class S5cmd(InThisProcess):
    """A program; each row starts it once, from files and to files. Its memory is not told: what wait4(2) says
    begins with that of the process that started it."""

    name = "s5cmd"

    def __init__(self, directory: Path, server: Server, bucket: str, scale: Scale) -> None:
        self._directory = directory
        self._bucket = Bucket(bucket, server)
        self._bucket.make()
        self._scale = scale
        self._url = f"s3://{bucket}"
        self._command = [str(_binary(S5CMD.path)), f"--endpoint-url={server.endpoint_url}", "--log=error"]
        self._cpu_s = 0.0
        directory.mkdir()

    def remove(self) -> None:
        self._bucket.remove()
        put_aside(self._directory)

    @property
    def rows(self) -> dict[str, Work]:
        """By the names of the rows that they are the limit of; each is handed the name of its objects."""
        return {
            "large-write": self._put_large,
            "large-read-cold": self._get_large,
            "small-write": self._put_small(1),
            "small-write-threads": self._put_small(THREADS),
            "small-read-cold": self._get_small(1),
            "small-read-cold-threads": self._get_small(THREADS),
        }

    def _put_large(self, name: str, watch: Watch) -> int:
        content = large_content(name, self._scale.large_bytes)
        source = self._directory / name
        source.write_bytes(content)
        with watch():
            self._run("cp", str(source), f"{self._url}/{name}")
        return len(content)

    def _get_large(self, name: str, watch: Watch) -> int:
        content = large_content(name, self._scale.large_bytes)
        target = self._directory / name
        target.write_bytes(content)
        self._run("cp", str(target), f"{self._url}/{name}")
        target.unlink()
        with watch():
            self._run("cp", f"{self._url}/{name}", str(target))
        compare([target.read_bytes()], [content], target)
        return len(content)

    def _put_small(self, workers: int) -> Work:
        def put(name: str, watch: Watch) -> int:
            contents = self._write_small(name)
            with watch():
                self._copy(f"{self._directory / name}/", f"{self._url}/{name}/", workers)
            return len(contents)

        return put

    def _get_small(self, workers: int) -> Work:
        def get(name: str, watch: Watch) -> int:
            contents = self._write_small(name)
            source, target = self._directory / name, self._directory / f"{name}-read"
            self._copy(f"{source}/", f"{self._url}/{name}/", THREADS)
            with watch():
                self._copy(f"{self._url}/{name}/*", f"{target}/", workers)
            compare(((target / f"{number}").read_bytes() for number in range(len(contents))), contents, name)
            return len(contents)

        return get

    def _write_small(self, name: str) -> list[bytes]:
        contents = small_contents(name, self._scale.small_files)
        directory = self._directory / name
        directory.mkdir()
        for number, content in enumerate(contents):
            (directory / f"{number}").write_bytes(content)
        return contents

    def _copy(self, source: str, target: str, workers: int) -> None:
        self._run("cp", source, target, options=[f"--numworkers={workers}"])

    def _run(self, *arguments: str, options: list[str] | None = None) -> None:
        """Raises :class:`~benchlib.volume.CommandFailed`."""
        log = self._directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self._command, *(options or []), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        pidfd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_COMMAND_TIMEOUT_S * 1000):
                raise CommandFailed(f"s5cmd {arguments[0]}: has not ended after {_COMMAND_TIMEOUT_S:.0f} s")
        finally:
            os.close(pidfd)
            os.kill(process.pid, signal.SIGKILL)  # an interrupted one; Popen.kill() would wait
            _, status, used = os.wait4(process.pid, 0)  # it tells what was used, which Popen does not
            process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_s += used.ru_utime + used.ru_stime
        if process.returncode:
            said = log.read_text(errors="replace").strip()[-1000:]
            raise CommandFailed(f"s5cmd {arguments[0]}: {process.returncode}: {said}")

    # -- as a target -----------------------------------------------------------------------------------

    def usage(self) -> Usage:
        return Usage(self._cpu_s)


def _binary(found: Path) -> Path:
    """The program itself: pip's package starts it by a Python script, which takes longer than the rows."""
    packaged = found.resolve().parent.parent.glob("lib/python*/site-packages/s5cmd/bin/s5cmd")
    return next(packaged, found)
