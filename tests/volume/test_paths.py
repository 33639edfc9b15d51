"""Where files of a volume lie."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from s3blobfs.errors import UsageError
from s3blobfs.volume.paths import VolumePaths, make_private_directory


def test_files_lie_beside_the_index() -> None:
    paths = VolumePaths(Path("/data/my.db"))
    assert [str(each) for each in (paths.lock, paths.control_socket, paths.log, paths.tier)] == [
        "/data/my.db.lock",
        "/data/my.db.sock",
        "/data/my.db.log",
        "/data/my.db.tier",
    ]


def test_default_is_in_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert VolumePaths.default("abc").index == Path("/state/s3blobfs/abc/index.db")


def test_directories_are_made_for_this_user_alone(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a" / "b")
    for made in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    make_private_directory(tmp_path / "a" / "b")


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a directory"):
        make_private_directory(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot create the directory"):
        make_private_directory(tmp_path / "file" / "below")
