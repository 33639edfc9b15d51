"""The whole thing on a real server: lose the machine in the middle of load, and come back on another."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from s3blobfs.replica import names
from tests.conftest import MakeBucket
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOAD_S = 4.0


class Load:
    """Writes files until the mount is gone, and notes which were acknowledged.

    Relative to an open descriptor of its root: the mountpoint's path would lead into the directory below once
    the mount is taken away, and a thread that slept meanwhile would go on there for ever."""

    def __init__(self, mountpoint: Path) -> None:
        self._root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        self.acknowledged: dict[str, str] = {}
        """Path to digest."""
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for number in itertools.count():
                directory = f"d{number % 7}"
                if number < 7:
                    os.mkdir(directory, dir_fd=self._root)
                data = os.urandom(1000 + number % 5000)
                path = f"{directory}/f{number}"
                with open(os.open(path, os.O_WRONLY | os.O_CREAT, dir_fd=self._root), "wb") as file:
                    file.write(data)
                self.acknowledged[path] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED), error  # the mount was killed
        finally:
            os.close(self._root)


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


def recover(volume: MountedVolume, *options: str, code: int = 0) -> dict[str, Any]:
    result = volume.command(
        "recover", volume.uri, "--index", volume.index, *volume._endpoint, "--json", *options, check=False
    )
    assert result.returncode == code, result
    document: dict[str, Any] = json.loads(result.stdout)
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


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("digest", ()),
        ("digest", ("--index-lag", "600")),
        ("versioned", ("--index-lag", "600")),
        ("versioned", ("--index-sync",)),
    ],
)
def test_a_machine_is_lost_under_load(
    machine: MountedVolume, other_machine: MountedVolume, mode: str, options: tuple[str, ...]
) -> None:
    """Every file whose close() returned is there, whether a segment had gone to the bucket or not."""
    machine.mkfs_options = ("--mode", mode)
    machine.mount_options = options
    machine.mkfs()
    machine.mount()
    load = Load(machine.mountpoint)
    load.start()
    time.sleep(LOAD_S)
    machine.kill()
    load.join()
    shutil.rmtree(machine.directory)
    assert len(load.acknowledged) > 20

    document = recover(other_machine)
    assert document["complete"] and document["problems"] == [] and document["gone"] == []
    made = [each["path"] for each in document["restored"] if each["outcome"] in ("made", "changed")]
    if "--index-lag" in options:
        assert len(made) >= len(load.acknowledged)
    other_machine.mount()
    for path, digest in load.acknowledged.items():
        assert hashlib.sha256((other_machine.mountpoint / path).read_bytes()).hexdigest() == digest, path
    (other_machine.mountpoint / "after").write_text("goes on")
    status = json.loads(other_machine.command("status", other_machine.mountpoint, "--json").stdout)
    assert status["index_copy"]["fenced"] is None and status["index_copy"]["fencing"] == "conditional"


def test_copies_are_acknowledged_as_files_are(machine: MountedVolume, other_machine: MountedVolume) -> None:
    """Also one of a file that has no object to tell of it."""
    machine.mount_options = ("--index-lag", "600", "--index-sync")
    machine.mkfs()
    machine.mount()
    pid = machine.pid
    (machine.mountpoint / "full").write_text("content")
    (machine.mountpoint / "empty").touch()
    machine.command("cp", machine.mountpoint / "full", machine.mountpoint / "full copy")
    machine.command("cp", machine.mountpoint / "empty", machine.mountpoint / "empty copy")
    machine.kill_process(pid)
    machine.bury(pid)
    shutil.rmtree(machine.directory)
    recover(other_machine)
    other_machine.mount()
    assert (other_machine.mountpoint / "full copy").read_text() == "content"
    assert (other_machine.mountpoint / "empty copy").read_text() == ""


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
    document = recover(back, "--partial", code=4)
    assert not document["complete"] and len(document["problems"]) == 1
    assert back.index.exists()
    client.close()


@pytest.mark.parametrize("mode", ["digest", "versioned"])
def test_nothing_is_left_but_objects(machine: MountedVolume, tmp_path: Path, mode: str) -> None:
    """Index, segments and settings: the bucket has lost all that this program keeps for itself."""
    machine.mkfs_options = ("--mode", mode)
    machine.mkfs()
    machine.mount()
    (machine.mountpoint / "d").mkdir()
    (machine.mountpoint / "d" / "file").write_text("content")
    machine.umount()
    client = client_of(machine)
    for version in client.list_object_versions(Bucket=machine.bucket, Prefix=".s3blobfs/")["Versions"]:
        client.delete_object(Bucket=machine.bucket, Key=version["Key"], VersionId=version["VersionId"])
    client.close()
    back = MountedVolume(machine.server, machine.bucket, tmp_path / "back")
    refused = back.command("recover", back.uri, "--index", back.index, *back._endpoint, check=False)
    assert refused.returncode == 1 and "--from-objects" in refused.stderr
    document = recover(back, "--from-objects")
    assert document["files"] == 1 and document["settings_written"]
    assert any(mode in assumption for assumption in document["assumed"])
    try:
        back.mount()
        assert (back.mountpoint / "d" / "file").read_text() == "content"
        (back.mountpoint / "d" / "file").write_text("goes on")
        back.finish()
    finally:
        back.abandon()
    # The machine that had the volume before has another one's index now.
    stale = machine.command(
        "mount", machine.uri, machine.mountpoint, "--index", machine.index, *machine._endpoint, check=False
    )
    assert stale.returncode == 1 and "holds volume" in stale.stderr


def test_only_the_settings_are_lost(machine: MountedVolume, tmp_path: Path) -> None:
    machine.mkfs_options = ("--digest", "sha256", "--no-cache", "--durability", "disk")
    machine.mkfs()
    machine.mount()
    (machine.mountpoint / "file").write_text("content")
    machine.umount()
    client = client_of(machine)
    before = client.get_object(Bucket=machine.bucket, Key=".s3blobfs/volume.json")["Body"].read()
    client.delete_object(Bucket=machine.bucket, Key=".s3blobfs/volume.json")
    back = MountedVolume(machine.server, machine.bucket, tmp_path / "back")
    document = recover(back)
    assert document["complete"] and document["settings_written"]
    assert client.get_object(Bucket=machine.bucket, Key=".s3blobfs/volume.json")["Body"].read() == before
    client.close()
    try:
        back.mount()
        assert (back.mountpoint / "file").read_text() == "content"
        back.finish()
    finally:
        back.abandon()


def test_going_back_finds_contents_gone(machine: MountedVolume, tmp_path: Path) -> None:
    machine.mkfs_options = ("--mode", "versioned")
    machine.mkfs()
    machine.mount()
    (machine.mountpoint / "kept").write_text("kept")
    (machine.mountpoint / "removed").write_text("removed")
    machine.command("sync", machine.mountpoint)
    time.sleep(0.1)
    before = time.time()
    time.sleep(1.0)
    (machine.mountpoint / "removed").unlink()
    machine.umount()
    machine.mount()  # the barrier of the unmount is of uploads: deletions may be left to this one
    machine.command("sync", machine.mountpoint)
    machine.umount()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before)) + f".{int(before % 1 * 1000):03}Z"
    back = MountedVolume(machine.server, machine.bucket, tmp_path / "back")
    document = recover(back, "--at", stamp, code=1)
    assert [each["path"] for each in document["gone"]] == ["removed"] and not back.index.exists()
    shown = back.command(
        "recover", back.uri, "--index", back.index, *back._endpoint, "--at", stamp, "--partial", check=False
    )
    assert shown.returncode == 4 and "gone: 7 B of removed" in shown.stderr
    assert back.index.exists()
