"""Access control lists on a mount, compared with the machine's own filesystem."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3blobfs.fs.acl import ACCESS, DEFAULT, Acl
from tests.mount.conftest import NewVolume, remount_cold
from tests.mount.users import as_user
from tests.support.acls import acl, valid_acls

NOBODY, GROUP = 65_534, 54_321


def lists(path: Path) -> dict[bytes, bytes]:
    return {name: os.getxattr(path, name) for name in map(os.fsencode, os.listxattr(path))}


def seen(path: Path) -> tuple[int, dict[bytes, bytes]]:
    return path.stat().st_mode, lists(path)


def put(path: Path, name: bytes, value: Acl) -> None:
    os.setxattr(path, name, value.encode())


@pytest.fixture(autouse=True)
def no_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    default=valid_acls,
    access=valid_acls,
    made=st.integers(0, 0o777),
    changed=st.integers(0, 0o7777),
)
def test_lists_and_modes_as_on_the_own_filesystem(
    here: Path, plain: Path, default: Acl, access: Acl, made: int, changed: int
) -> None:
    """Every step of a life with lists, on both; root does it, so that no list stops it."""

    def steps(directory: Path) -> list[tuple[int, dict[bytes, bytes]]]:
        directory.mkdir()
        put(directory, DEFAULT, default)
        told = [seen(directory)]
        (directory / "sub").mkdir(made)
        os.close(os.open(directory / "f", os.O_CREAT | os.O_RDWR, made))
        os.mkfifo(directory / "p", made)
        children = [directory / name for name in ("sub", "f", "p")]
        told += map(seen, children)
        for child in children:
            child.chmod(changed)
            told.append(seen(child))
            put(child, ACCESS, access)
            told.append(seen(child))
            child.chmod(made)
            told.append(seen(child))
            os.removexattr(child, ACCESS)
            told.append(seen(child))
        return told

    name = f"{len(os.listdir(here))}"
    assert steps(here / name) == steps(plain / name)


def test_a_default_list_stands_in_the_place_of_the_umask(own_volume: NewVolume, plain: Path) -> None:
    """Which needs the FUSE extension (docs/fuse-extension.md)."""

    def made_below(directory: Path, umask: int) -> list[tuple[int, dict[bytes, bytes]]]:
        parents = [directory / f"without-{umask}", directory / f"with-{umask}"]
        os.umask(0)
        for parent in parents:
            parent.mkdir()
        put(parents[1], DEFAULT, acl("u::rwx,u:65534:rwx,g::r-x,m::rwx,o::r--"))
        os.umask(umask)
        for parent in parents:
            (parent / "sub").mkdir()
            (parent / "f").touch()
            os.mkfifo(parent / "p")
        return [seen(parent / name) for parent in parents for name in ("sub", "f", "p")]

    with own_volume("digest-cached") as volume:
        for umask in (0o077, 0o027, 0o777):
            assert made_below(volume.mountpoint, umask) == made_below(plain, umask)


def test_without_the_extension_the_kernel_applies_the_umask_first(own_volume: NewVolume, plain: Path) -> None:
    """As if programs had asked for that much less (fuse_create_open and others in Linux's fs/fuse/dir.c)."""

    def made_below(directory: Path, umask: int, masked: int) -> list[tuple[int, dict[bytes, bytes]]]:
        os.umask(0)
        directory.mkdir()
        put(directory, DEFAULT, acl("u::rwx,u:65534:rwx,g::r-x,m::rwx,o::r--"))
        os.umask(umask)
        (directory / "sub").mkdir(0o777 & ~masked)
        os.close(os.open(directory / "f", os.O_CREAT, 0o666 & ~masked))
        os.mkfifo(directory / "p", 0o666 & ~masked)
        return [seen(directory / name) for name in ("sub", "f", "p")]

    with own_volume("digest-cached", mount=["--fuse-extension", "off"]) as volume:
        for umask in (0o077, 0o027):
            made = made_below(volume.mountpoint / f"{umask}", umask, 0)
            assert made == made_below(plain / f"{umask}", 0, umask)


def test_lists_are_kept(own_volume: NewVolume) -> None:
    with own_volume("digest-cached") as volume:
        path = volume.mountpoint / "d"
        path.mkdir()
        put(path, DEFAULT, acl("u::rwx,u:65534:rwx,g::r-x,m::rwx,o::---"))
        (path / "f").write_bytes(b"content")
        before = seen(path), seen(path / "f")
        remount_cold(volume)
        assert (seen(path), seen(path / "f")) == before


def test_lists_are_enforced(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    path.chmod(0o600)

    def read() -> bytes:
        return path.read_bytes()

    def append() -> None:
        with path.open("ab") as file:
            file.write(b"!")

    with pytest.raises(PermissionError):
        as_user(NOBODY, GROUP, read)
    put(path, ACCESS, acl(f"u::rw-,u:{NOBODY}:r--,g::---,m::r--,o::---"))
    assert as_user(NOBODY, GROUP, read) == b"content"
    with pytest.raises(PermissionError):
        as_user(NOBODY, GROUP, append)
    put(path, ACCESS, acl(f"u::rw-,g::---,g:{GROUP}:rw-,m::rw-,o::---"))
    as_user(NOBODY, GROUP, append)
    path.chmod(0o640)
    assert as_user(NOBODY, GROUP, read) == b"content!"
    with pytest.raises(PermissionError):
        as_user(NOBODY, GROUP, append)
    put(path, ACCESS, acl(f"u::rw-,u:{NOBODY}:---,g::rw-,m::rw-,o::rw-"))
    with pytest.raises(PermissionError):
        as_user(NOBODY, GROUP, read)
    os.removexattr(path, ACCESS)
    path.chmod(0o644)
    assert as_user(NOBODY, GROUP, read) == b"content!"


def test_only_the_owner_sets_them(here: Path) -> None:
    (here / "f").touch(0o666)
    with pytest.raises(PermissionError):
        as_user(NOBODY, GROUP, lambda: put(here / "f", ACCESS, acl("u::rw-,g::---,o::---")))


def test_set_group_id_goes_with_a_stranger_to_the_group(here: Path, plain: Path) -> None:
    def set_by_a_stranger(path: Path) -> None:
        path.touch()
        os.chown(path, NOBODY, GROUP)
        path.chmod(0o2750)
        as_user(NOBODY, 12_345, lambda: put(path, ACCESS, acl("u::rwx,u:1:r--,g::r-x,m::r-x,o::---")))

    for directory in (here, plain):
        set_by_a_stranger(directory / "f")
    assert seen(here / "f") == seen(plain / "f")


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff", b"\1\0\0\0"])
def test_what_is_no_list_is_refused(here: Path, plain: Path, value: bytes) -> None:
    told: list[int | None] = []
    for directory in (here, plain):
        (directory / "f").touch()
        try:
            os.setxattr(directory / "f", ACCESS, value)
            told.append(0)
        except OSError as error:
            told.append(error.errno)
    assert told[0] == told[1]


def test_a_default_list_is_for_directories(here: Path) -> None:
    (here / "f").touch()
    with pytest.raises(OSError) as caught:
        put(here / "f", DEFAULT, acl("u::rw-,g::---,o::---"))
    assert caught.value.errno == errno.EACCES
