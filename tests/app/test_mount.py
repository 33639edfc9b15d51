"""Mounting and unmounting as users do it: processes, signals, locks, logs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import boto3
import pytest

from s3blobfs.volume.lock import find_holder
from s3blobfs.volume.mountpoint import State, state_of
from tests.app.commands import COMMAND, CommandLine, command_line, run_command
from tests.support.proxy import RecordingProxy, WireFault, error_answer

END_TIMEOUT_S = 30.0


def wait_until_ended(volume: CommandLine) -> None:
    """The lock is given back last."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while find_holder(volume.paths.lock) is not None:
        assert time.monotonic() < deadline, volume.log()
        time.sleep(0.02)


def objects_of(volume: CommandLine) -> dict[str, bytes]:
    """What other S3 clients see of the volume: current objects by key, but for the copy of the index."""
    server = volume.server
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )
    bucket = volume.uri.split("/")[2]
    listed = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    keys = [key for key in listed if "/.s3blobfs/index/" not in key]
    found = {}
    for key in keys:
        with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
            found[key] = body.read()
    client.close()
    return found


def test_mount_use_unmount_and_again(volume: CommandLine) -> None:
    assert "mount it with: s3blobfs mount" in volume.mkfs()
    volume.mount()
    assert state_of(volume.mountpoint) is State.MOUNTED
    (volume.mountpoint / "a").write_bytes(b"foo")
    assert objects_of(volume).keys() == {
        "files/.s3blobfs/volume.json",
        "files/acbd18db4cc2f85cedef654fccc4a4d8",
    }
    volume.umount()
    assert state_of(volume.mountpoint) is State.FREE
    assert find_holder(volume.paths.lock) is None
    assert not volume.paths.control_socket.exists()
    volume.mount()
    assert (volume.mountpoint / "a").read_bytes() == b"foo"
    volume.umount()


def test_everything_local_is_private(mounted: CommandLine) -> None:
    for path in (mounted.paths.index, mounted.paths.lock, mounted.paths.log, mounted.paths.control_socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(mounted.paths.tier.stat().st_mode) == 0o700


def test_no_credential_in_arguments_log_index_or_bucket(mounted: CommandLine) -> None:
    (mounted.mountpoint / "a").write_bytes(b"foo")
    mounted.ok("trace", mounted.mountpoint, "start", mounted.directory / "trace")
    mounted.ok("trace", mounted.mountpoint, "stop")
    mounted.umount()
    seen = [path.read_bytes() for path in mounted.directory.rglob("*") if path.is_file()]
    seen += objects_of(mounted).values()
    for secret in (mounted.server.secret_access_key, mounted.server.access_key_id):
        assert not any(secret.encode() in each for each in seen)


def test_command_line_of_the_daemon_holds_no_credential(mounted: CommandLine) -> None:
    arguments = Path(f"/proc/{mounted.daemon().pid}/cmdline").read_bytes()
    assert mounted.server.secret_access_key.encode() not in arguments
    assert mounted.server.access_key_id.encode() not in arguments


def test_daemon_has_left_the_terminal_and_the_directory(mounted: CommandLine) -> None:
    pid = mounted.daemon().pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert "mounted at" in mounted.log()


def test_second_mount_names_the_first(mounted: CommandLine) -> None:
    other = mounted.directory / "other"
    other.mkdir()
    line = mounted.refused("mount", mounted.uri, other, *mounted.s3)
    assert f"the volume is mounted at {mounted.mountpoint} (process {mounted.daemon().pid} on " in line
    assert f"s3blobfs umount {mounted.mountpoint}" in line
    assert state_of(mounted.mountpoint) is State.MOUNTED
    line = mounted.refused("mount", mounted.uri, mounted.mountpoint, *mounted.s3)
    assert "a volume is mounted at" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_unmounts_cleanly(mounted: CommandLine, number: int) -> None:
    (mounted.mountpoint / "a").write_bytes(b"foo")
    process = mounted.daemon()
    os.kill(process.pid, number)
    wait_until_ended(mounted)
    assert state_of(mounted.mountpoint) is State.FREE
    assert "everything is in S3" in mounted.log()


def test_plain_umount_ends_the_daemon(mounted: CommandLine) -> None:
    subprocess.run(["umount", mounted.mountpoint], check=True)
    wait_until_ended(mounted)
    assert "everything is in S3" in mounted.log()


def test_killed_mount_is_named_cleaned_up_and_mounted_again(volume: CommandLine) -> None:
    volume.mkfs("--durability", "disk")
    volume.mount()
    (volume.mountpoint / "a").write_bytes(b"acknowledged")
    volume.daemon().end(0)  # SIGTERM, and SIGKILL at once
    wait_until_ended(volume)
    if state_of(volume.mountpoint) is State.STALE:
        for command in ("status", "sync"):
            assert "is gone; nothing is lost" in volume.refused(command, volume.mountpoint)
        assert "is a mount whose process is gone" in volume.refused(
            "mount", volume.uri, volume.mountpoint, *volume.s3
        )
        assert "cleaned up" in volume.ok("umount", volume.mountpoint)
    volume.mount()
    assert (volume.mountpoint / "a").read_bytes() == b"acknowledged"
    volume.umount()


def test_busy_mount_is_not_unmounted(mounted: CommandLine) -> None:
    with (mounted.mountpoint / "a").open("w"):
        assert "is in use" in mounted.refused("umount", mounted.mountpoint)
        assert state_of(mounted.mountpoint) is State.MOUNTED
        assert mounted.status()["filesystem"]["open_files"] == 1
    mounted.umount()


def test_unmount_waits_for_what_is_staged(volume: CommandLine) -> None:
    volume.mkfs("--durability", "disk")
    volume.mount()
    for number in range(20):
        (volume.mountpoint / f"f{number}").write_bytes(os.urandom(300_000))
    volume.umount()
    assert len(objects_of(volume)) == 21


def test_detached_unmount_leaves_the_rest_to_the_next_mount(volume: CommandLine) -> None:
    volume.mkfs("--durability", "disk")
    contents = {f"f{number}": os.urandom(10_000) for number in range(5)}
    with RecordingProxy(volume.server.endpoint_url) as proxy:
        volume.endpoint_url = proxy.url
        volume.mount()
        proxy.on(WireFault(answer=error_answer(403, "AccessDenied")), method="HEAD", path="*/files/*")
        for name, data in contents.items():
            (volume.mountpoint / name).write_bytes(data)
        said = volume.ok("umount", volume.mountpoint, "--detach")
        assert "5 files (50000 bytes) are not in S3 yet" in said
        assert state_of(volume.mountpoint) is State.FREE
        proxy.clear()
        volume.mount()
        assert {path.name: path.read_bytes() for path in volume.mountpoint.iterdir()} == contents
        volume.umount()
    assert set(contents.values()) <= set(objects_of(volume).values())


def test_unmount_of_what_is_not_ours(volume: CommandLine) -> None:
    assert volume.refused("umount", volume.mountpoint) == f"nothing is mounted at {volume.mountpoint}"
    assert "is not an s3blobfs volume" in volume.refused("umount", "/proc")


def test_foreground_stays_and_logs_to_stderr(volume: CommandLine) -> None:
    volume.mkfs()
    command = [*COMMAND, "mount", "-f", volume.uri, str(volume.mountpoint), *volume.s3]
    environment = {**os.environ, **volume.server.environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "mounted at" in line:
                break
        assert state_of(volume.mountpoint) is State.MOUNTED, lines
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(END_TIMEOUT_S) == 0, rest
    assert "everything is in S3" in rest
    assert not volume.paths.log.exists()


def test_fstab_options_and_call_by_mount(volume: CommandLine) -> None:
    volume.mkfs()
    options = (
        f"ro,noexec,_netdev,nofail,x-systemd.automount,cache_size=64M,index={volume.paths.index},"
        f"endpoint_url={volume.endpoint_url},trace={volume.directory / 'trace'},trace_client=Nuxeo"
    )
    # As mount.fuse3 calls the program of the type fuse.s3blobfs.
    volume.ok(volume.uri, volume.mountpoint, "-v", "-n", "-o", options)
    status = volume.status()
    assert status["mount"]["read_only"] is True
    assert status["tier"]["size_limit_bytes"] == 64 * 1024**2
    table = Path("/proc/self/mountinfo").read_text()
    (line,) = [line for line in table.splitlines() if f" {volume.mountpoint} " in line]
    assert {"ro", "noexec"} <= set(line.split()[5].split(","))
    with pytest.raises(OSError, match="Read-only"):
        (volume.mountpoint / "a").touch()
    volume.umount()
    assert (volume.directory / "trace").read_text().splitlines()[1] == "participant Nuxeo order 1"


def test_index_in_the_state_directory(
    tmp_path: Path, volume: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    s3 = ("--endpoint-url", volume.endpoint_url)
    made = volume.ok("mkfs", volume.uri, *s3)
    volume.ok("mount", volume.uri, volume.mountpoint, *s3)
    status = volume.status()
    assert status["volume"]["id"] in made
    assert status["mount"]["index"] == str(
        tmp_path / "state" / "s3blobfs" / status["volume"]["id"] / "index.db"
    )
    volume.umount()


def test_relative_paths(volume: CommandLine) -> None:
    environment = volume.server.environment
    options = ("--endpoint-url", volume.endpoint_url, "--index", "i.db")
    for command in (
        ("mkfs", volume.uri, *options),
        ("mount", volume.uri, "mnt", *options, "--cache-dir", "cache", "--trace", "trace"),
        ("umount", "mnt"),
    ):
        outcome = run_command(*command, environment=environment, cwd=volume.directory)
        assert outcome.code == 0, outcome.err
    for name in ("i.db", "i.db.log", "cache", "trace"):
        assert (volume.directory / name).exists()


def test_barrier_that_cannot_end_is_explained_and_given_up(volume: CommandLine) -> None:
    """S3 refuses under a volume with durability 'disk': unmounting waits and says why, a second signal gives
    up, and the next mount brings the file to S3."""
    volume.mkfs("--durability", "disk")
    with RecordingProxy(volume.server.endpoint_url) as proxy:
        volume.endpoint_url = proxy.url
        volume.mount()
        proxy.on(WireFault(answer=error_answer(403, "AccessDenied")), method="HEAD", path="*/files/*")
        (volume.mountpoint / "a").write_bytes(b"acknowledged")
        command = [*COMMAND, "umount", str(volume.mountpoint)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "still trying" in process.stderr.readline()
            assert state_of(volume.mountpoint) is State.FREE
            os.kill(volume.daemon().pid, signal.SIGTERM)
            line = process.stderr.read()
            assert process.wait(END_TIMEOUT_S) == 1
        assert "unmounted, but not everything is in S3: given up: 1 files" in line
        assert "mounted again" in line
        wait_until_ended(volume)
        proxy.clear()
        volume.mount()
        assert (volume.mountpoint / "a").read_bytes() == b"acknowledged"
        volume.umount()
    assert b"acknowledged" in objects_of(volume).values()


def test_other_volume_on_the_same_machine(tmp_path: Path, mounted: CommandLine) -> None:
    with command_line(tmp_path / "other", mounted.server, f"{mounted.uri}-other") as other:
        other.mkfs()
        other.mount()
        assert other.status()["volume"]["id"] != mounted.status()["volume"]["id"]
        other.umount()
    assert state_of(mounted.mountpoint) is State.MOUNTED
