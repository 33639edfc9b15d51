"""Directories, file names, and what others put in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import MIB
from s3blobfs.errors import UsageError
from s3blobfs.tier.layout import NAME_SAFE_BYTES, TEMPORARY_PREFIX, TierLayout, entry_name
from s3blobfs.tier.tier import Tier


def test_directories_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        layout = TierLayout(tmp_path / "deep" / "tier")
        os.close(layout.staging.create("bin_1.tmp"))
        layout.store(7)
    finally:
        os.umask(old)
    for path in ("staging", "cache", "cache/7"):
        assert stat.S_IMODE((layout.directory / path).stat().st_mode) == 0o700, path
    assert stat.S_IMODE((layout.staging.path / "bin_1.tmp").stat().st_mode) == 0o600
    assert layout.store_ids() == [7]
    layout.close()


def test_directories_of_others_are_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(UsageError, match="belongs to another user"):
        TierLayout(tmp_path)


def test_too_open_directories_are_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir(mode=0o777)
    layout = TierLayout(tmp_path)
    assert stat.S_IMODE((tmp_path / "staging").stat().st_mode) == 0o700
    layout.close()


@pytest.mark.parametrize("name", ["", "staging", "cache"])
def test_symlinks_in_place_of_directories_are_refused(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if name:
        (tmp_path / "tier").mkdir()
    (tmp_path / "tier" / name).symlink_to(elsewhere)
    with pytest.raises(UsageError, match="symbolic link"):
        TierLayout(tmp_path / "tier")
    assert list(elsewhere.iterdir()) == []


def test_symlink_in_place_of_a_store_is_refused(tmp_path: Path) -> None:
    layout = TierLayout(tmp_path / "tier")
    (tmp_path / "tier" / "cache" / "1").symlink_to(tmp_path)
    with pytest.raises(OSError, match="symbolic link"):
        layout.store(1)
    layout.close()


def test_files_are_never_reached_through_symlinks_or_special_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    layout = TierLayout(tmp_path / "tier")
    directory = layout.store(1)
    (directory.path / "link").symlink_to(secret)
    os.mkfifo(directory.path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(OSError):
            directory.open(name)
    with pytest.raises(FileExistsError):
        directory.create("link")
    layout.link(directory, "link", directory, "second")  # the link itself, not what it points to
    assert (directory.path / "second").is_symlink()
    layout.close()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_what_cannot_be_made_is_said_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot use .* as the local tier") as caught:
        TierLayout(tmp_path / place)
    assert "\n" not in str(caught.value)


def test_one_mount_at_a_time(tmp_path: Path) -> None:
    first = TierLayout(tmp_path)
    with pytest.raises(UsageError, match="another mount"):
        TierLayout(tmp_path)
    first.close()
    TierLayout(tmp_path).close()


def test_failing_to_open_leaks_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UsageError):
        TierLayout(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_rename_durably_replaces_at_once(tmp_path: Path) -> None:
    layout = TierLayout(tmp_path)
    (layout.staging.path / "new").write_bytes(b"new")
    (layout.store(1).path / "name").write_bytes(b"old")
    layout.rename_durably(layout.staging, "new", layout.store(1), "name")
    assert (layout.store(1).path / "name").read_bytes() == b"new"
    assert layout.staging.names() == []
    layout.close()


async def test_large_files_lose_their_name_at_once(tier: Tier) -> None:
    layout = tier.layout
    path = layout.staging.path / "bin_1.tmp"
    path.write_bytes(bytes(17 * MIB))
    assert layout.unlink(layout.staging, path.name, 17 * MIB)
    assert not path.exists()
    layout.disposal.wait()
    assert layout.staging.names() == []
    assert not layout.unlink(layout.staging, path.name, 17 * MIB)


# --- names from outside -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["id1@3sL4kqtJlcpXroDTDmJ.xrSpXd3dIbrHY", "acbd18db4cc2f85cedef654fccc4a4d8", "a-b_c.d"]
)
def test_ordinary_names_are_kept(name: str) -> None:
    assert entry_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "a/b",
        "/etc/passwd",
        ".hidden",
        "bin_x.tmp",
        "sealed_0011",
        "hashed_" + "0" * 64,
        "a" * (NAME_SAFE_BYTES + 1),
        "nul\0byte",
        "new\nline",
        "umlaut-ä",
        "surrogate-\udc80",
        "trailing\n",
    ],
)
def test_hostile_names_are_hashed(name: str) -> None:
    assert entry_name(name).startswith("hashed_")


@given(st.text(), st.text())
def test_names_are_single_safe_components_and_distinct(one: str, other: str) -> None:
    name = entry_name(one)
    assert name
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(TEMPORARY_PREFIX)
    assert len(name.encode()) <= NAME_SAFE_BYTES
    assert (entry_name(other) == name) == (one == other)
