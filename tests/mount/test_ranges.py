"""System calls on ranges of a file, with the extension of FUSE and without: the same bytes by other means."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from s3blobfs.fuse import ioctl
from tests.fs.calls import pattern
from tests.mount.conftest import NewVolume
from tests.mount.test_semantics import GROUP, NOBODY, fails, fd_of, mode_of, ours, owned
from tests.mount.users import as_user
from tests.support.fallocate import COLLAPSE, INSERT, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from tests.support.mounted import MountedVolume

MIB = 1024 * 1024
DATA = pattern(3_000_001)


def requests(volume: MountedVolume) -> dict[str, int]:
    """To S3, by kind, so far."""
    counts = json.loads(volume.command("status", volume.mountpoint, "--json").stdout)["counts"]
    return {name: counts.get(name, 0) for name in ("s3.put", "s3.part", "s3.get", "s3.copy", "s3.head")}


# -- cp ------------------------------------------------------------------------------------------------


def test_cp_of_a_stored_file(volume: MountedVolume, here: Path, extended: bool) -> None:
    (here / "f").write_bytes(DATA)
    (here / "there").write_bytes(b"something else")
    before = requests(volume)
    subprocess.run(["cp", here / "f", here / "g"], check=True)
    subprocess.run(["cp", "-p", here / "f", here / "there"], check=True)
    if extended:
        assert requests(volume) == before
        assert ours(here / "g", "key") == ours(here / "there", "key") == ours(here / "f", "key")
    assert ours(here / "g", "state") == "stored"
    with (here / "g").open("r+b") as changed:
        changed.write(b"CHANGED")
    (here / "f").unlink()
    assert (here / "g").read_bytes() == b"CHANGED" + DATA[7:]
    assert (here / "there").read_bytes() == DATA


def test_cp_of_a_tree(here: Path) -> None:
    tree = here / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "empty").touch()
    (tree / "small").write_bytes(b"small")
    (tree / "d" / "large").write_bytes(DATA)
    os.link(tree / "small", tree / "d" / "link")
    (tree / "symlink").symlink_to("small")
    subprocess.run(["cp", "-a", tree, here / "copy"], check=True)
    subprocess.run(["diff", "-r", tree, here / "copy"], check=True)
    subprocess.run(["cp", "-a", "--sparse=always", tree, here / "sparse"], check=True)
    subprocess.run(["diff", "-r", tree, here / "sparse"], check=True)


def test_cp_into_another_filesystem_and_back(here: Path, tmp_path: Path) -> None:
    (here / "f").write_bytes(DATA)
    subprocess.run(["cp", here / "f", tmp_path / "f"], check=True)
    subprocess.run(["cp", tmp_path / "f", here / "g"], check=True)
    assert (tmp_path / "f").read_bytes() == (here / "g").read_bytes() == DATA


def test_a_copy_is_there_when_it_was_killed_after_close(own_volume: NewVolume) -> None:
    for durability in ("s3", "disk"):
        with own_volume("versioned-cached", mount=["--durability", durability]) as volume:
            (volume.mountpoint / "f").write_bytes(DATA)
            volume.command("sync", volume.mountpoint)
            subprocess.run(["cp", volume.mountpoint / "f", volume.mountpoint / "g"], check=True)
            volume.kill()
            volume.mount()
            assert (volume.mountpoint / "g").read_bytes() == DATA


# -- copy_file_range -----------------------------------------------------------------------------------


def test_parts_are_copied(here: Path) -> None:
    (here / "f").write_bytes(DATA)
    (here / "g").write_bytes(DATA[::-1])
    with fd_of(here / "f", os.O_RDONLY) as source, fd_of(here / "g", os.O_RDWR) as target:
        assert os.copy_file_range(source, target, 100_000, 5, 1_000_000) == 100_000
        assert os.pread(target, 10, 1_000_000) == DATA[5:15]
        assert os.copy_file_range(source, target, 100, len(DATA), 0) == 0
        with fails(errno.EBADF):
            os.copy_file_range(source, source, 10)
    expected = bytearray(DATA[::-1])
    expected[1_000_000:1_100_000] = DATA[5:100_005]
    assert (here / "g").read_bytes() == expected


def test_what_is_written_is_what_is_copied(here: Path) -> None:
    """Through a mapping, too, and pages of the target that were read before are not shown any more."""
    (here / "g").write_bytes(bytes(len(DATA)))
    with fd_of(here / "f", os.O_CREAT | os.O_RDWR) as source, fd_of(here / "g", os.O_RDWR) as target:
        assert os.pread(target, 100, 0) == bytes(100)
        os.write(source, DATA)
        done = 0
        while count := os.copy_file_range(source, target, len(DATA) - done, done, done):
            done += count
        assert os.pread(target, 100, 0) == DATA[:100]
    assert (here / "g").read_bytes() == DATA


def test_a_copy_drops_set_id_bits(here: Path) -> None:
    (here / "f").write_bytes(DATA)
    (here / "f").chmod(0o644)
    (here / "g").touch()
    owned(here / "g", NOBODY, 0o6777)

    def copy() -> None:
        with fd_of(here / "f", os.O_RDONLY) as source, fd_of(here / "g", os.O_WRONLY) as target:
            os.copy_file_range(source, target, len(DATA))

    as_user(NOBODY, GROUP, copy)
    assert mode_of(here / "g") == 0o777


# -- fallocate -----------------------------------------------------------------------------------------


def test_fallocate(here: Path, extended: bool) -> None:
    path = here / "f"
    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
        if not extended:
            with fails(errno.EOPNOTSUPP, errno.ENOSYS):
                fallocate(fd, 0, 0, 4096)
        os.posix_fallocate(fd, 0, 4 * MIB)  # without it the C library writes zeros in its place
        status = os.fstat(fd)
        assert status.st_size == 4 * MIB
        assert status.st_blocks * 512 >= 4 * MIB
        os.pwrite(fd, DATA, 0)
        if extended:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, MIB)
            assert os.pread(fd, MIB, 0) == bytes(MIB)
            fallocate(fd, ZERO_RANGE, 2 * MIB, 3 * MIB)
            assert os.fstat(fd).st_size == 5 * MIB
            fallocate(fd, KEEP_SIZE, 0, 8 * MIB)
            assert os.fstat(fd).st_size == 5 * MIB
            for mode in (COLLAPSE, INSERT):
                with fails(errno.EOPNOTSUPP):
                    fallocate(fd, mode, 0, 4096)
    expected = DATA + bytes(4 * MIB - len(DATA))
    if extended:
        expected = bytes(MIB) + DATA[MIB : 2 * MIB] + bytes(3 * MIB)
    assert path.read_bytes() == expected


def _truncates(fd: int) -> None:
    os.ftruncate(fd, 10)


CHANGES: dict[str, Callable[[int], None]] = {
    "allocate": lambda fd: fallocate(fd, 0, 0, 2 * MIB),
    "keep size": lambda fd: fallocate(fd, KEEP_SIZE, 0, 2 * MIB),
    "punch hole": lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
    "zero range": lambda fd: fallocate(fd, ZERO_RANGE, 0, 4096),
    "ftruncate": _truncates,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_bytes_drops_set_id_bits(
    here: Path, extended: bool, change: Callable[[int], None]
) -> None:
    if not extended and change is not _truncates:
        return  # refused: test_fallocate
    path = here / "f"
    path.write_bytes(DATA)
    owned(path, NOBODY, 0o6777)

    def act() -> None:
        with fd_of(path, os.O_WRONLY) as fd:
            change(fd)

    as_user(NOBODY, GROUP, act)
    assert mode_of(path) == 0o777


def test_allocating_more_than_there_is_room_for(own_volume: NewVolume) -> None:
    with own_volume("digest-cached", mount=["--cache-size", "16M"]) as volume:
        path = volume.mountpoint / "f"
        with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
            with fails(errno.ENOSPC):
                fallocate(fd, 0, 0, 32 * MIB)
            assert os.fstat(fd).st_size == 0
            fallocate(fd, 0, 0, 8 * MIB)
            os.pwrite(fd, DATA, 0)
        assert path.read_bytes() == DATA + bytes(8 * MIB - len(DATA))


# -- holes ---------------------------------------------------------------------------------------------


def test_data_and_holes(volume: MountedVolume, here: Path, extended: bool) -> None:
    path = here / "f"
    size = 20 * MIB + 3
    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"start", 0)
        os.pwrite(fd, b"end", 20 * MIB)
        if extended:
            assert os.lseek(fd, 4096, os.SEEK_DATA) == 20 * MIB
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
        else:  # all of it is data
            assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096
            assert os.lseek(fd, 0, os.SEEK_HOLE) == size
        with fails(errno.ENXIO):
            os.lseek(fd, size, os.SEEK_DATA)
        subprocess.run(["cp", "--sparse=always", path, here / "copy"], check=True)
    with fd_of(path, os.O_RDONLY) as fd:  # what is stored has none
        assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096
        assert os.lseek(fd, 0, os.SEEK_HOLE) == size
    assert (here / "copy").read_bytes() == path.read_bytes()
    assert path.read_bytes() == b"start" + bytes(20 * MIB - 5) + b"end"


# -- ioctl ---------------------------------------------------------------------------------------------


def test_ioctl_brings_a_file_into_s3(own_volume: NewVolume) -> None:
    with own_volume("digest-cached", mount=["--durability", "disk"]) as volume:
        path = volume.mountpoint / "f"
        with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
            os.write(fd, DATA)
            fcntl.ioctl(fd, ioctl.SYNC)
            assert ours(path, "state") == "stored"
            os.write(fd, b"more")
            with fd_of(volume.mountpoint, os.O_RDONLY | os.O_DIRECTORY) as directory:
                fcntl.ioctl(directory, ioctl.SYNC)
            assert ours(path, "state") == "stored"
            with fails(errno.ENOTTY):
                fcntl.ioctl(fd, ioctl.SYNC + 1)
        assert path.read_bytes() == DATA + b"more"


def test_ioctl_without_the_extension(own_volume: NewVolume) -> None:
    with (
        own_volume("digest-cached", mount=["--fuse-extension", "init"]) as volume,
        fd_of(volume.mountpoint / "f", os.O_CREAT | os.O_RDWR) as fd,
        fails(errno.ENOTTY, errno.ENOSYS),
    ):
        fcntl.ioctl(fd, ioctl.SYNC)


# -- listings that the kernel keeps --------------------------------------------------------------------


def test_a_listing_shows_each_change(volume: MountedVolume, here: Path) -> None:
    """Whoever makes it: the kernel, or a direct copy behind its back."""

    def listed() -> list[str]:
        for _ in range(2):  # the second one from the kernel's pages
            names = sorted(os.listdir(here))
        return names

    assert listed() == []
    (here / "f").write_bytes(DATA)
    assert listed() == ["f"]
    (here / "d").mkdir()
    assert listed() == ["d", "f"]
    (here / "f").rename(here / "g")
    assert listed() == ["d", "g"]
    volume.command("cp", here / "g", here / "copied")
    assert listed() == ["copied", "d", "g"]
    os.link(here / "g", here / "d" / "h")
    (here / "d" / "h").rename(here / "h")
    assert listed() == ["copied", "d", "g", "h"]
    (here / "g").unlink()
    (here / "d").rmdir()
    assert listed() == ["copied", "h"]


def test_an_open_listing_goes_on_while_names_change(here: Path) -> None:
    for number in range(500):
        (here / f"{number:04}").touch()
    list(os.scandir(here))
    with os.scandir(here) as entries:
        seen = [next(entries).name]
        for number in range(250):
            (here / f"{number:04}").unlink()
        seen += [entry.name for entry in entries]
    assert {f"{number:04}" for number in range(250, 500)} <= set(seen)
    assert len(set(seen)) == len(seen)
    assert sorted(os.listdir(here)) == [f"{number:04}" for number in range(250, 500)]
