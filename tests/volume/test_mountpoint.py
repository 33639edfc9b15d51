"""What is at a path, by the kernel's mount table; mounts of ours are tested in tests/app."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3blobfs.errors import UsageError
from s3blobfs.volume import mountpoint
from s3blobfs.volume.mountpoint import State, check_vacant, find_mount, resolve, state_of


def test_empty_directory_will_do(tmp_path: Path) -> None:
    assert state_of(tmp_path) is State.FREE
    check_vacant(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "does not exist; make it"), ("file", "is not a directory"), ("full", "is not empty")],
)
def test_bad_mountpoints(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(UsageError, match=message):
        check_vacant(tmp_path / name)


def test_other_filesystem() -> None:
    assert state_of(Path("/proc")) is State.FOREIGN
    with pytest.raises(UsageError, match="another filesystem is mounted"):
        check_vacant(Path("/proc"))


def test_table_as_the_kernel_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:20 / /proc rw,nosuid shared:13 master:1 - proc proc rw\n"
        b"40 22 0:40 / /mnt/my\\040files rw - fuse.s3blobfs s3://b/ rw,user_id=0\n"
        b"41 22 0:41 / /mnt/x rw - ext4 /dev/a rw\n"
        b"42 41 0:42 / /mnt/x rw - fuse.s3blobfs s3://b/ rw\n"
    )
    monkeypatch.setattr(mountpoint, "MOUNT_TABLE", table)
    ours = find_mount(Path("/mnt/my files"))
    assert ours is not None and ours.filesystem_type == "fuse.s3blobfs"
    topmost = find_mount(Path("/mnt/x"))
    assert topmost is not None and topmost.filesystem_type == "fuse.s3blobfs"
    assert find_mount(Path("/mnt")) is None


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("link")) == Path(os.path.realpath(tmp_path)) / "real"
