"""What other users of the machine, and other processes of the same user, get to see of a mount."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from s3blobfs.errors import UsageError
from s3blobfs.tier.layout import TierLayout
from s3blobfs.volume.lock import LockHolder, VolumeLock
from tests.conftest import unique_bucket_name
from tests.mount.conftest import pytestmark as needs_fuse
from tests.mount.users import as_user
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server

NOBODY = 65534


@pytest.fixture(scope="module")
def volume(weed_server: S3Server) -> Iterator[MountedVolume]:
    """Made and mounted with no umask at all, in a directory that everybody may enter."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-privacy-"))
    directory.chmod(0o755)
    old = os.umask(0)
    try:
        made = MountedVolume(
            weed_server,
            unique_bucket_name(),
            directory,
            mkfs_options=["--mode", "versioned"],
            mount_options=["--durability", "disk", "--cache-dir", str(directory / "above" / "tier")],
        )
        with mounted(made):
            (made.mountpoint / "file").write_bytes(b"secret")
            yield made
    finally:
        os.umask(old)
        shutil.rmtree(directory)


def _local_files(volume: MountedVolume) -> dict[Path, int]:
    """What there is, with its mode. An upload that ends meanwhile takes its staged file away."""
    found = {}
    for path in volume.directory.rglob("*"):
        if path != volume.mountpoint and volume.mountpoint not in path.parents:
            with suppress(FileNotFoundError):
                found[path] = path.lstat().st_mode
    return found


@needs_fuse
def test_nothing_local_is_open_to_others_whatever_the_umask(volume: MountedVolume) -> None:
    found = _local_files(volume)
    assert {"index.db", "index.db.log", "index.db.sock", "index.db.lock", "staging", "cache"} <= {
        path.name for path in found
    }
    for path, mode in found.items():
        assert not stat.S_IMODE(mode) & 0o077, path


@needs_fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_another_user_gets_nothing(volume: MountedVolume) -> None:
    for path in _local_files(volume):
        if path.is_file():
            with pytest.raises(PermissionError):
                as_user(NOBODY, NOBODY, path.read_bytes)
    # FUSE looks at all of a process's ids, so this has to be one.
    reading = subprocess.run(
        ["cat", volume.mountpoint / "file"], capture_output=True, check=False, user=NOBODY, group=NOBODY
    )
    assert reading.returncode != 0 and reading.stdout == b""
    assert b"Permission denied" in reading.stderr

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(volume.index) + ".sock")

    with pytest.raises(PermissionError):
        as_user(NOBODY, NOBODY, connect)


@needs_fuse
def test_the_process_keeps_its_memory(volume: MountedVolume) -> None:
    limits = Path(f"/proc/{volume.pid}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4] == "0"


def test_memory_is_kept_from_others_of_the_same_user() -> None:
    """prctl(2) PR_GET_DUMPABLE: 0 forbids core dumps, also to a handler, and ptrace(2)."""
    code = (
        "import ctypes, resource; from s3blobfs.process import keep_memory_private as keep; keep();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "0"]


@needs_fuse
def test_set_user_id_and_devices_mean_nothing(volume: MountedVolume) -> None:
    """Who can write to the bucket could make them, by way of the index's copy."""
    (line,) = [
        line for line in Path("/proc/mounts").read_text().splitlines() if f" {volume.mountpoint} " in line
    ]
    assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))


def test_a_directory_open_to_all_is_refused_for_the_index(tmp_path: Path) -> None:
    """As SQLite would take another's ``index.db-wal`` for its own."""
    tmp_path.chmod(0o1777)
    with pytest.raises(UsageError, match="everybody may write"):
        VolumeLock(tmp_path / "index.db.lock", LockHolder.this_process("test"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_open_to_all_is_refused_for_the_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(UsageError, match="everybody may write"):
        TierLayout(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_of_another_user_is_refused_for_the_cache(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(UsageError, match="another user"):
        TierLayout(tmp_path)


def test_directories_above_the_cache_are_made_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        TierLayout(tmp_path / "a" / "b" / "tier").close()
    finally:
        os.umask(old)
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
