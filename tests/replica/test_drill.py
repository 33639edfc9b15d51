"""The whole thing on a real server: lose the machine in the middle of load, and come back on another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config

from s3blobfs.replica import names
from tests.conftest import MakeBucket
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LAG_S = 1.0
MARGIN_S = 2.0
"""What a loaded machine may add."""
LOAD_S = 4.0


class Load:
    """Writes files until the mount is gone, and notes which were acknowledged, and when."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self.acknowledged: dict[str, tuple[float, str]] = {}
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        number = 0
        try:
            while True:
                directory = self._mountpoint / f"d{number % 7}"
                directory.mkdir(exist_ok=True)
                data = os.urandom(1000 + number % 5000)
                (directory / f"f{number}").write_bytes(data)
                self.acknowledged[f"d{number % 7}/f{number}"] = time.time(), hashlib.sha256(data).hexdigest()
                number += 1
        except OSError:
            return  # the mount was killed


@pytest.fixture
def machine(tmp_path: Path, weed_server: S3Server, make_bucket: MakeBucket) -> Iterator[MountedVolume]:
    volume = MountedVolume(weed_server, make_bucket(weed_server, versioning=True), tmp_path / "first")
    try:
        yield volume
    finally:
        volume.abandon()


@pytest.fixture
def other_machine(machine: MountedVolume, tmp_path: Path) -> Iterator[MountedVolume]:
    volume = MountedVolume(machine.server, machine.bucket, tmp_path / "second")
    try:
        yield volume
        volume.finish()
    finally:
        volume.abandon()


def recover(volume: MountedVolume, *options: str) -> dict[str, object]:
    result = volume.command(
        "recover", volume.uri, "--index", volume.index, *volume._endpoint, "--json", *options
    )
    document: dict[str, object] = json.loads(result.stdout)
    return document


def client_of(volume: MountedVolume) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=volume.server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=volume.server.access_key_id,
        aws_secret_access_key=volume.server.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.mark.parametrize(("mode", "sync"), [("digest", False), ("versioned", True)])
def test_a_machine_is_lost_under_load(
    machine: MountedVolume, other_machine: MountedVolume, mode: str, sync: bool
) -> None:
    machine.mkfs_options = ("--mode", mode)
    machine.mount_options = ("--index-sync",) if sync else ()
    machine.mkfs()
    machine.mount()
    load = Load(machine.mountpoint)
    load.start()
    time.sleep(LOAD_S)
    killed_at = time.time()
    machine.kill()
    load.join()
    shutil.rmtree(machine.directory)
    assert len(load.acknowledged) > 20

    document = recover(other_machine)
    assert document["complete"] and document["problems"] == []
    other_machine.mount()
    for path, (at, digest) in load.acknowledged.items():
        file = other_machine.mountpoint / path
        promised = sync or at < killed_at - LAG_S - MARGIN_S
        if promised or (file.exists() and file.stat().st_size):
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, path
    (other_machine.mountpoint / "after").write_text("goes on")
    status = json.loads(other_machine.command("status", other_machine.mountpoint, "--json").stdout)
    assert status["index_copy"]["fenced"] is None and status["index_copy"]["fencing"] == "conditional"


def test_two_machines_one_volume(machine: MountedVolume, other_machine: MountedVolume) -> None:
    """The first is not lost at all: it is fenced off by the second, and says what to do."""
    machine.expected_logs = ["another mount has gone on with this volume"]
    machine.mkfs()
    machine.mount()
    (machine.mountpoint / "common").write_text("common")
    machine.command("sync", machine.mountpoint)
    recover(other_machine)
    other_machine.mount()
    other_machine.command("sync", other_machine.mountpoint)
    with pytest.raises(OSError):  # EROFS, or EIO while it finds out
        for number in range(100):
            (machine.mountpoint / f"late {number}").write_text("late")
            time.sleep(0.1)
    with pytest.raises(OSError, match="Read-only"):
        (machine.mountpoint / "too late").write_text("late")
    assert (machine.mountpoint / "common").read_text() == "common"
    table = machine.command("status", machine.mountpoint).stdout
    assert "another mount has gone on" in table
    refused = machine.command("umount", machine.mountpoint, check=False)
    assert refused.returncode == 1 and "--take-over" in refused.stderr
    assert machine.unexpected_logs() == []

    again = machine.command(
        "mount", machine.uri, machine.mountpoint, "--index", machine.index, *machine._endpoint, check=False
    )
    assert again.returncode == 1 and "s3blobfs recover" in again.stderr
    other_machine.umount()
    document = recover(machine, "--force")
    assert "index.db.tier.before-recovery-" in str(document["set_aside"])
    machine.mount()
    assert (machine.mountpoint / "common").read_text() == "common"
    machine.umount()
    # The other's index is behind now; it is the right one if its owner says so.
    other_machine.mount("--take-over")


def test_back_in_time_and_from_objects(machine: MountedVolume, tmp_path: Path) -> None:
    machine.mkfs()
    machine.mount()
    (machine.mountpoint / "d").mkdir()
    (machine.mountpoint / "d" / "kept").write_text("kept")
    machine.command("sync", machine.mountpoint)
    time.sleep(0.1)
    before = time.time()
    time.sleep(1.0)
    (machine.mountpoint / "d" / "later").write_text("later")
    machine.umount()
    back = MountedVolume(machine.server, machine.bucket, tmp_path / "back")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before)) + f".{int(before % 1 * 1000):03}Z"
    document = recover(back, "--at", stamp)
    assert document["complete"] and document["inodes"] == 3

    # Not even the segments are left.
    from_objects = MountedVolume(machine.server, machine.bucket, tmp_path / "objects")
    document = recover(from_objects, "--from-objects")
    assert document["files"] == 2
    from_objects.mount()
    try:
        assert (from_objects.mountpoint / "d" / "kept").read_text() == "kept"
        assert (from_objects.mountpoint / "d" / "later").read_text() == "later"
        from_objects.finish()
    finally:
        from_objects.abandon()


def test_damage_is_said_and_nothing_is_written(machine: MountedVolume, tmp_path: Path) -> None:
    machine.mkfs()
    machine.mount()
    for number in range(3):
        (machine.mountpoint / f"{number}").write_text("content")
        machine.command("sync", machine.mountpoint)
    machine.umount()
    client = client_of(machine)
    newest = client.list_objects_v2(Bucket=machine.bucket, Prefix=names.segments_prefix(""))["Contents"][-1]
    client.put_object(Bucket=machine.bucket, Key=newest["Key"], Body=b"not a segment")
    back = MountedVolume(machine.server, machine.bucket, tmp_path / "back")
    arguments = ("recover", back.uri, "--index", back.index, *back._endpoint)
    refused = back.command(*arguments, check=False)
    assert refused.returncode == 1 and newest["Key"] in refused.stderr and "--partial" in refused.stderr
    assert not back.index.exists()
    document = recover(back, "--partial")
    assert not document["complete"] and len(document["problems"]) == 1  # type: ignore[arg-type]
    assert back.index.exists()
    client.close()
