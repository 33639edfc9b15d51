"""Starting and stopping the demo. What it does to volumes it does by the commands a user would type."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from s3blobfs.control.client import MountedVolume
from s3blobfs.demo.server import BUCKET, DemoServer
from s3blobfs.errors import S3BlobFSError, UsageError
from s3blobfs.types import Keying
from s3blobfs.volume.mountpoint import State, resolve, state_of
from s3blobfs.volume.paths import make_private_directory

VERSIONED = "versioned"
"""Name, prefix and directory of the second store."""

Say = Callable[[str], None]


class DemoFailed(S3BlobFSError):
    """A command of the demo failed; the message is its own."""


class Demo:
    """The demo below one directory."""

    def __init__(self, directory: Path, say: Say) -> None:
        """``say`` tells the user what is going on."""
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self._index = directory / "index.db"
        self._say = say

    def start(self) -> DemoServer:
        """Bring up whatever is not up: server, bucket, volume, mount. What this started is stopped again
        when a later step fails. Raises :class:`UsageError`, :class:`DemoFailed`."""
        make_private_directory(self.directory)
        with self._exclusive():
            server = DemoServer(self.directory)
            ran = server.is_running
            state = self._mount_state()
            if ran and state is State.MOUNTED:
                self._say("the demo is running already")
                return server
            if not ran:
                self._say("starting the S3 server")
            server.start(keep_ports=state is State.MOUNTED)
            try:
                self._mount(server, state)
            except BaseException:
                if not ran:
                    server.stop()
                raise
            return server

    def stop(self) -> None:
        """Unmount, which waits until everything is in S3, and end the server. Raises :class:`UsageError`
        when there is nothing to stop, :class:`DemoFailed`."""
        if not self.directory.is_dir():
            raise UsageError(f"there is no demo at {self.directory}")
        with self._exclusive():
            server = DemoServer(self.directory)
            state = self._mount_state()
            if state is State.MOUNTED and not server.is_running:
                # What is staged has to get somewhere.
                self._say("starting the S3 server again: the mount still needs it")
                server.start(keep_ports=True)
            if state is not State.FREE:
                self._say(f"unmounting {self.mountpoint}")
                self._run(server, "umount", str(self.mountpoint))
            self._say("stopping the S3 server; this may take 20 seconds")
            if not server.stop() and state is State.FREE:
                self._say("the demo was not running")

    # -- steps -----------------------------------------------------------------------------------------

    def _mount(self, server: DemoServer, state: State) -> None:
        uri = f"s3://{BUCKET}"
        if not self._index.exists():
            self._say(f"making the bucket {BUCKET} and a volume in it")
            index = f"--index={self._index}"
            self._run(server, "mkfs", uri, index, "--create-bucket", "--versioning")
        if state is State.STALE:
            self._run(server, "umount", str(self.mountpoint))
        if state is not State.MOUNTED:
            make_private_directory(self.mountpoint)
            self._say(f"mounting it at {self.mountpoint}")
            self._run(server, "mount", uri, str(self.mountpoint), f"--index={self._index}")
        self._add_versioned_store(server, uri)

    def _add_versioned_store(self, server: DemoServer, uri: str) -> None:
        every = MountedVolume.of(self.mountpoint).call("store.list")["stores"]
        directory = self.mountpoint / VERSIONED
        directory.mkdir(exist_ok=True)
        if all(store["name"] != VERSIONED for store in every):
            mode = f"--mode={Keying.VERSIONED.value}"
            self._run(server, "store", "add", str(self.mountpoint), VERSIONED, f"{uri}/{VERSIONED}", mode)
        if all(f"/{VERSIONED}" not in store["directories"] for store in every):
            self._run(server, "store", "bind", str(directory), VERSIONED)

    def _mount_state(self) -> State:
        return state_of(resolve(self.mountpoint))

    def _run(self, server: DemoServer, *arguments: str) -> None:
        """Run ``s3blobfs ARGUMENTS`` with the demo's credentials and nothing of the user's AWS set-up."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        command = [sys.executable, "-P", "-m", "s3blobfs", *arguments]
        done = subprocess.run(
            command,
            env={**environment, **server.aws_environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise DemoFailed(done.stderr.strip().removeprefix("s3blobfs: ") or f"{arguments[0]} failed")

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"the demo at {self.directory} is being started or stopped already"
                ) from None
            yield
