"""How far the kernel reads ahead in a mounted file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3blobfs.fuse.mount import READ_AHEAD_KIB, READ_AHEADS, raise_read_ahead
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server

DEVICE = os.makedev(0, 57)


@pytest.fixture
def read_ahead(tmp_path: Path) -> Path:
    """The kernel's file for ``DEVICE``, below ``tmp_path``."""
    path = tmp_path / "0:57" / "read_ahead_kb"
    path.parent.mkdir()
    return path


def test_it_is_raised_from_the_kernels_own_choice(read_ahead: Path, tmp_path: Path) -> None:
    read_ahead.write_text("128\n")
    raise_read_ahead(DEVICE, tmp_path)
    assert read_ahead.read_text() == str(READ_AHEAD_KIB)


def test_more_is_left_alone(read_ahead: Path, tmp_path: Path) -> None:
    read_ahead.write_text("4096\n")
    raise_read_ahead(DEVICE, tmp_path)
    assert read_ahead.read_text() == "4096\n"


def test_where_it_may_not_be_set_nothing_fails(tmp_path: Path) -> None:
    raise_read_ahead(DEVICE, tmp_path / "missing")


def test_a_mount_has_it(moto_server: S3Server, tmp_path: Path) -> None:
    with mounted(MountedVolume(moto_server, "read-ahead", tmp_path)) as volume:
        device = volume.mountpoint.stat().st_dev
        path = READ_AHEADS / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
        if os.access(path, os.W_OK):
            assert int(path.read_text()) == READ_AHEAD_KIB
