"""One process at a time; the second is told who the first is."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from s3blobfs.errors import UsageError, VolumeInUse
from s3blobfs.volume.lock import LockHolder, VolumeLock, find_holder

HOLD = """
import sys, time
from pathlib import Path
from s3blobfs.volume.lock import LockHolder, VolumeLock
lock = VolumeLock(Path(sys.argv[1]), LockHolder.this_process("mount", Path("/mnt/there")))
print("locked", flush=True)
sys.stdin.read()
"""


def test_second_one_is_told_who_has_the_volume(tmp_path: Path) -> None:
    path = tmp_path / "index.db.lock"
    with VolumeLock(path, LockHolder.this_process("mount", Path("/mnt/here"))):
        with pytest.raises(VolumeInUse, match=rf"mounted at /mnt/here \(process {os.getpid()} on ") as caught:
            VolumeLock(path, LockHolder.this_process("mount", Path("/mnt/other")))
        assert "s3blobfs umount /mnt/here" in str(caught.value)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_command_that_holds_the_volume_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with VolumeLock(path, LockHolder.this_process("fsck")):
        holder = find_holder(path)
        assert holder is not None and holder.purpose == "fsck"
        with pytest.raises(VolumeInUse, match="in use by 's3blobfs fsck'"):
            VolumeLock(path, LockHolder.this_process("mount"))


def test_released_lock_can_be_taken_and_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = VolumeLock(path, LockHolder.this_process("mount"))
    lock.release()
    lock.release()
    assert find_holder(path) is None
    VolumeLock(path, LockHolder.this_process("mount")).release()


def test_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        holder = find_holder(path)
        assert holder is not None and holder.pid == process.pid and holder.mountpoint == "/mnt/there"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert find_holder(path) is None
    VolumeLock(path, LockHolder.this_process("mount")).release()


def test_holder_that_has_not_said_who_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with VolumeLock(path, LockHolder.this_process("mount")):
        path.write_text('{"pid": 1')
        with pytest.raises(VolumeInUse, match="in use by another process"):
            VolumeLock(path, LockHolder.this_process("mount"))


def test_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open the volume's lock"):
        VolumeLock(tmp_path / "missing" / "lock", LockHolder.this_process("mount"))


def test_lock_is_not_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        VolumeLock(tmp_path / "lock", LockHolder.this_process("mount"))
    assert not (tmp_path / "elsewhere").exists()
