"""The demo as a user sees it: started, used, stopped, started again, and after something was killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3blobfs.demo.process import ProcessId
from s3blobfs.volume.lock import find_holder
from s3blobfs.volume.mountpoint import State, state_of
from s3blobfs.volume.paths import VolumePaths
from tests.app.commands import run_command

pytestmark = pytest.mark.timeout(300)  # the server takes 15 s to end

KILLED_TIMEOUT_S = 20.0

LIST_BUCKET = """
import boto3
for entry in boto3.client("s3").list_objects_v2(Bucket="s3blobfs-demo")["Contents"]:
    print(entry["Key"])
"""


class DemoRun:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt"

    def ok(self, *arguments: str | Path) -> str:
        outcome = run_command(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out + outcome.err

    def start(self) -> str:
        return self.ok("demo", self.directory)

    def stop(self) -> str:
        return self.ok("demo", "--stop", self.directory)

    def server(self) -> ProcessId:
        return ProcessId(**json.loads((self.directory / "state.json").read_text())["process"])

    def mount(self) -> ProcessId:
        holder = find_holder(VolumePaths(self.directory / "index.db").lock)
        assert holder is not None
        process = ProcessId.of(holder.pid)
        assert process is not None
        return process


def kill(process: ProcessId) -> None:
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILLED_TIMEOUT_S
    while process.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoRun]:
    demo = DemoRun(tmp_path / "demo")
    try:
        yield demo
    finally:
        run_command("demo", "--stop", demo.directory)
        assert state_of(demo.mountpoint) is State.FREE


def test_start_use_stop_start_again(demo: DemoRun) -> None:
    said = demo.start()
    for expected in (str(demo.mountpoint), "s3blobfs status", "aws s3 ls", "AWS_CONFIG_FILE", "demo --stop"):
        assert expected in said
    mnt = demo.mountpoint
    (mnt / "a").write_bytes(b"foo")
    (mnt / "versioned" / "note").write_bytes(b"bar")
    assert "the demo is running already" in demo.start()
    server, mount = demo.server(), demo.mount()
    for private in (demo.directory, *demo.directory.glob("aws/*"), demo.directory / "s3.json"):
        assert stat.S_IMODE(private.stat().st_mode) & 0o077 == 0, private
    keys = subprocess.run(
        [sys.executable, "-c", LIST_BUCKET],
        env={
            "PATH": os.environ["PATH"],
            "AWS_CONFIG_FILE": str(demo.directory / "aws" / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(demo.directory / "aws" / "credentials"),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert ".s3blobfs/volume.json" in keys
    assert "acbd18db4cc2f85cedef654fccc4a4d8" in keys
    assert [key for key in keys if key.startswith("versioned/")]

    demo.stop()
    assert state_of(mnt) is State.FREE
    assert not server.is_running
    assert find_holder(VolumePaths(demo.directory / "index.db").lock) is None or not mount.is_running
    assert "the demo was not running" in demo.stop()

    demo.start()
    assert (mnt / "a").read_bytes() == b"foo"
    assert (mnt / "versioned" / "note").read_bytes() == b"bar"


def test_killed_server_and_killed_mount(demo: DemoRun) -> None:
    demo.start()
    (demo.mountpoint / "a").write_bytes(b"foo")
    mount = demo.mount()
    kill(demo.server())
    assert "starting the S3 server" in demo.start()
    assert demo.mount() == mount, "the mount goes on with the new server"
    (demo.mountpoint / "b").write_bytes(b"bar")

    kill(mount)
    demo.start()
    assert (demo.mountpoint / "a").read_bytes() == b"foo"
    assert (demo.mountpoint / "b").read_bytes() == b"bar"

    # Stopping brings the server back once more, for the mount to end well.
    kill(demo.server())
    assert "the mount still needs it" in demo.stop()


def test_failing_demo_leaves_nothing_running(demo: DemoRun) -> None:
    demo.mountpoint.mkdir(parents=True, mode=0o700)
    (demo.mountpoint / "in the way").touch()
    outcome = run_command("demo", demo.directory)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"s3blobfs: the mountpoint {demo.mountpoint} is not empty")
    assert json.loads((demo.directory / "state.json").read_text())["process"] is None


def test_nothing_to_stop(tmp_path: Path) -> None:
    outcome = run_command("demo", "--stop", tmp_path / "none")
    assert (outcome.code, outcome.line) == (1, f"there is no demo at {tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    outcome = run_command("demo", tmp_path)
    assert outcome.code == 1
    assert outcome.line.startswith(f"{tmp_path / 'state.json'} is damaged")


def test_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3blobfs.cli.demo import default_directory

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "s3blobfs" / "demo"
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".local" / "share" / "s3blobfs" / "demo"
