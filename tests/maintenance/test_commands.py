"""The commands as operators type them: on a mount and offline, over a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from s3blobfs.cli.main import run
from tests.app.commands import COMMAND, CommandLine, Outcome
from tests.conftest import UseServer, unique_bucket_name
from tests.maintenance.kit import damage
from tests.support.servers import S3Server

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
)


class Operated(CommandLine):
    """A volume that its operator looks after, beside its bucket. The tools run in this process; a Python
    takes a second to start."""

    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str | Path) -> Outcome:
        if arguments[0] not in ("fsck", "scrub", "gc"):
            return super().run(*arguments)
        self.capsys.readouterr()
        code = run([*map(str, arguments)])
        shown = self.capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://")

    @property
    def s3_client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.server.access_key_id,
            aws_secret_access_key=self.server.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def blob_keys(self) -> list[str]:
        """Of its objects, but for the volume's own."""
        listed = self.s3_client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return [entry["Key"] for entry in listed if not entry["Key"].startswith(".s3blobfs/")]

    def tool(self, name: str, *options: str, code: int = 0, offline: bool = False) -> dict[str, Any]:
        """Its report."""
        target = (self.uri, *self.s3) if offline else (str(self.mountpoint),)
        outcome = self.run(name, *target, *options, "--json")
        assert outcome.code == code, f"{name} {options}: {outcome}"
        report: dict[str, Any] = json.loads(outcome.out)
        return report


@pytest.fixture
def volume(
    tmp_path: Path,
    weed_server: S3Server,
    use_server: UseServer,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Operated]:
    """Made, mounted, with two files."""
    operated = Operated(tmp_path / "operated", use_server(weed_server), f"s3://{unique_bucket_name()}")
    operated.capsys = capsys
    try:
        operated.mkfs("--create-bucket")
        operated.mount()
        (operated.mountpoint / "a").write_bytes(b"content of a")
        (operated.mountpoint / "b").write_bytes(b"content of b" * 50_000)
        yield operated
    finally:
        operated.clean_up()


def test_fsck(volume: Operated) -> None:
    assert volume.tool("fsck")["problems"] == []
    assert volume.ok("fsck", volume.mountpoint) == "the index is in order\n"
    outcome = volume.run("fsck", volume.uri, *volume.s3)
    assert outcome.code == 8
    assert outcome.line == f"the volume is mounted at {volume.mountpoint}: s3blobfs fsck {volume.mountpoint}"

    inode = (volume.mountpoint / "a").stat().st_ino
    volume.umount()
    damage(volume.paths.index, f"DELETE FROM dentries WHERE inode_id = {inode}")
    damage(volume.paths.index, "UPDATE counters SET inodes = 7")
    volume.mount()
    found = volume.tool("fsck", code=4)
    assert {problem["kind"] for problem in found["problems"]} == {"unnamed-inode", "usage"}
    report = volume.tool("fsck", "--repair", code=5)
    assert report["counts"] == {"found": 0, "mended": 1, "left": 1}
    volume.umount()

    report = volume.tool("fsck", "--repair", code=1, offline=True)
    assert report["counts"] == {"found": 0, "mended": 1, "left": 0}
    assert volume.tool("fsck", offline=True)["problems"] == []
    volume.mount()
    assert (volume.mountpoint / "lost+found" / f"#{inode}").read_bytes() == b"content of a"
    volume.umount()

    # What was mended without the bucket is there all the same: the mount sent the whole index.
    elsewhere = volume.directory / "elsewhere.db"
    s3 = ("--endpoint-url", volume.endpoint_url, "--index", str(elsewhere))
    document = json.loads(volume.ok("recover", volume.uri, *s3, "--json"))
    assert document["complete"] and document["problems"] == [] and document["restored"] == []
    assert volume.ok("fsck", volume.uri, *s3) == "the index is in order\n"
    copies = [sqlite3.connect(path) for path in (volume.paths.index, elsewhere)]
    names = [copy.execute("SELECT name FROM dentries ORDER BY name").fetchall() for copy in copies]
    assert names[0] == names[1] and (f"#{inode}".encode(),) in names[1]
    for copy in copies:
        copy.close()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--nonsense"], 16),
        ([], 16),
        (["/"], 16),
        (["/", "--index", "/tmp/index"], 16),
    ],
)
def test_exit_codes_of_fsck(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fsck", *arguments]) == code
    assert capsys.readouterr().err.startswith("s3blobfs: ")


def test_scrub(volume: Operated) -> None:
    report = volume.tool("scrub")
    assert (report["checked"], report["remaining"], report["depth"]) == (2, 0, "head")
    report = volume.tool("scrub", "--read", "--rate", "100", "--bandwidth", "50M")
    assert report["bytes_read"] == 12 + 600_000
    assert "everything is well" in volume.ok("scrub", volume.mountpoint)

    for key in volume.blob_keys():
        volume.s3_client.delete_object(Bucket=volume.bucket, Key=key)
    report = volume.tool("scrub", code=4)
    assert sorted(path for damage in report["damages"] for path in damage["paths"]) == ["a", "b"]
    shown = volume.run("scrub", volume.mountpoint)
    assert shown.code == 4
    assert "there is no such object" in shown.out
    assert volume.tool("scrub", "--heal")["healed"] == {"cache": 2}
    assert len(volume.blob_keys()) == 2

    volume.umount()
    shutil.rmtree(volume.paths.tier)
    assert volume.tool("scrub", "--read", offline=True)["remaining"] == 0
    volume.mount()
    assert (volume.mountpoint / "b").read_bytes() == b"content of b" * 50_000


def test_the_copy_of_the_index_is_looked_at(volume: Operated) -> None:
    """Somebody deletes a segment; whoever scrubs learns of it before a machine is lost."""
    for name in ("c", "d", "e"):
        (volume.mountpoint / name).write_text(name)
        volume.ok("sync", volume.mountpoint)
        time.sleep(1.0)  # the lag: each becomes a segment of its own
    client = volume.s3_client
    prefix = ".s3blobfs/index/segments/"
    segments = [
        entry["Key"] for entry in client.list_objects_v2(Bucket=volume.bucket, Prefix=prefix)["Contents"]
    ]
    assert len(segments) >= 3
    assert volume.tool("scrub")["index_copy"]["damage"] == []
    client.delete_object(Bucket=volume.bucket, Key=segments[1])
    report = volume.tool("scrub", code=4)
    (damage,) = report["index_copy"]["damage"]
    assert damage == f"segment {int(segments[1].removeprefix(prefix))} is missing"
    shown = volume.run("scrub", volume.mountpoint)
    assert f"copy of the index in the bucket: {damage}" in shown.out and "everything is well" not in shown.out
    assert volume.status()["index_copy"]["damage"] == damage
    assert volume.tool("scrub", "--heal")["index_copy"]["renewed"]
    report = volume.tool("scrub", "--read")
    assert report["index_copy"]["damage"] == [] and damage in report["index_copy"]["gaps"]
    volume.umount()
    assert volume.tool("scrub", offline=True)["index_copy"]["damage"] == []
    elsewhere = volume.directory / "elsewhere.db"
    volume.ok("recover", volume.uri, "--endpoint-url", volume.endpoint_url, "--index", elsewhere)


def test_altered_bytes(volume: Operated) -> None:
    """Of the right length, with the stamp of the right ones: only reading tells."""
    client = volume.s3_client
    (key,) = [key for key in volume.blob_keys() if _head(volume, key)["ContentLength"] == 12]
    stamp = _head(volume, key)["Metadata"]
    client.put_object(Bucket=volume.bucket, Key=key, Body=b"CONTENT OF A", Metadata=stamp)
    volume.umount()
    report = volume.tool("scrub", "--read", code=4, offline=True)
    assert [damage["paths"] for damage in report["damages"]] == [["a"]]
    assert volume.tool("scrub", "--read", "--heal", offline=True)["healed"] == {"cache": 1}
    assert client.get_object(Bucket=volume.bucket, Key=key)["Body"].read() == b"content of a"


def _head(volume: Operated, key: str) -> Any:
    return volume.s3_client.head_object(Bucket=volume.bucket, Key=key)


def test_gc(volume: Operated) -> None:
    client = volume.s3_client
    named = sorted(volume.blob_keys())
    client.put_object(Bucket=volume.bucket, Key="README", Body=b"foreign")
    volume.umount()
    damage(
        volume.paths.index,
        "PRAGMA foreign_keys = OFF; DELETE FROM dentries WHERE inode_id > 1; DELETE FROM inodes WHERE id > 1;"
        f" DELETE FROM blobs WHERE object_key = '{named[0]}'",
    )
    volume.tool("fsck", "--repair", code=1, offline=True)
    upload = client.create_multipart_upload(Bucket=volume.bucket, Key="0" * 32)

    report = volume.tool("gc", offline=True)
    assert report["kept"]["recent"]["count"] >= 1
    report = volume.tool("gc", "--grace", "0", offline=True)
    assert report["found"]["unnamed-object"]["count"] == 1
    assert report["kept"]["foreign"]["count"] == 1
    assert report["kept"]["volume"]["count"] >= 1
    assert report["delete"] is False
    assert sorted(volume.blob_keys()) == sorted([*named, "README"])

    shown = volume.run("gc", volume.uri, *volume.s3, "--grace", "0", "--delete")
    assert shown.code == 0, shown
    assert f"s3://{volume.bucket}/{named[0]}" in shown.out
    assert sorted(volume.blob_keys()) == [named[1], "README"]
    uploads = client.list_multipart_uploads(Bucket=volume.bucket).get("Uploads", [])
    assert [each["UploadId"] for each in uploads] == [upload["UploadId"]]  # not a day old

    volume.mount()
    assert volume.tool("gc", "--delete")["failed"] == 0
    assert "at least 1h" in volume.refused("gc", volume.mountpoint, "--grace", "5m")


def press_ctrl_c_until_it_ends(process: subprocess.Popen[str]) -> str:
    """What it says on stderr. Python loses an interrupt that falls into a finalizer (sys.unraisablehook): a
    person presses the key again."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[1]
    raise AssertionError("it cannot be interrupted")


def test_an_interrupted_command_lets_go_of_the_volume(volume: Operated) -> None:
    volume.umount()
    command = [*COMMAND, "scrub", volume.uri, *volume.s3, "--rate", "0.1"]
    environment = {**os.environ, **volume.server.environment}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not volume.paths.lock.read_text():
            assert process.poll() is None
        err = press_ctrl_c_until_it_ends(process)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "s3blobfs: interrupted"
    assert volume.tool("fsck", offline=True)["problems"] == []


def test_an_index_that_is_behind_explains_nothing_away(volume: Operated) -> None:
    """Somebody brought back a copy of the index, and the bucket knows better."""
    volume.umount()
    older = shutil.copy(volume.paths.index, volume.directory / "older.db")
    volume.mount()
    (volume.mountpoint / "c").write_bytes(b"content of c")
    volume.umount()
    for options in ((), ("--delete",)):
        outcome = volume.run(
            "gc", volume.uri, "--endpoint-url", volume.endpoint_url, "--index", str(older), *options
        )
        assert outcome.code == 1
        assert "the bucket has a later state of this volume" in outcome.line
    assert len(volume.blob_keys()) == 3
