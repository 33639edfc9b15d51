"""Corners where filesystems over object stores are known to fail, on real mounts."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import NewVolume
from tests.mount.test_semantics import fails, fd_of
from tests.support.mounted import MountedVolume
from tests.support.renameat2 import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2

NAME_MAX = 255
DAY_NS = 24 * 3600 * 10**9
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_APPEND_FL, FS_IMMUTABLE_FL = 0x20, 0x10
F_OFD_SETLK = 37
"""<linux/fs.h> and <linux/fcntl.h>."""


# -- names ---------------------------------------------------------------------------------------------

TOO_LONG = "n" * (NAME_MAX + 1)
NAME_CALLS: dict[str, Callable[[Path], object]] = {
    "create": lambda here: os.open(here / TOO_LONG, os.O_CREAT | os.O_WRONLY),
    "open": lambda here: os.open(here / TOO_LONG, os.O_RDONLY),
    "stat": lambda here: os.stat(here / TOO_LONG),
    "mkdir": lambda here: os.mkdir(here / TOO_LONG),
    "rmdir": lambda here: os.rmdir(here / TOO_LONG),
    "mkfifo": lambda here: os.mkfifo(here / TOO_LONG),
    "symlink": lambda here: os.symlink("target", here / TOO_LONG),
    "readlink": lambda here: os.readlink(here / TOO_LONG),
    "link": lambda here: os.link(here / "f", here / TOO_LONG),
    "unlink": lambda here: os.unlink(here / TOO_LONG),
    "rename from": lambda here: os.rename(here / TOO_LONG, here / "g"),
    "rename to": lambda here: os.rename(here / "f", here / TOO_LONG),
    "truncate": lambda here: os.truncate(here / TOO_LONG, 0),
    "chmod": lambda here: os.chmod(here / TOO_LONG, 0o600),
    "utime": lambda here: os.utime(here / TOO_LONG),
    "getxattr": lambda here: os.getxattr(here / TOO_LONG, "user.x"),
    "within a path": lambda here: os.stat(here / TOO_LONG / "f"),
}


@pytest.mark.parametrize("call", NAME_CALLS)
def test_a_name_that_is_too_long(here: Path, call: str) -> None:
    assert os.statvfs(here).f_namemax == NAME_MAX
    (here / "f").touch()
    with fails(errno.ENAMETOOLONG):
        NAME_CALLS[call](here)
    assert os.listdir(here) == ["f"]


def test_the_longest_name(here: Path) -> None:
    name = b"\xff" * NAME_MAX
    path = os.fsencode(here) + b"/" + name
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.rename(path, os.fsencode(here / "short"))
    os.rename(os.fsencode(here / "short"), path)
    assert os.listdir(os.fsencode(here)) == [name]


# -- renames -------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"content"),
    "directory": lambda path: path.mkdir(),
    "full directory": lambda path: (path / "sub").mkdir(parents=True),
    "symlink": lambda path: path.symlink_to("nowhere"),
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_rename_flags_of_every_kind(here: Path, first: str, second: str) -> None:
    one, two = here / "one", here / "two"
    KINDS[first](one)
    KINDS[second](two)
    before = one.lstat(), two.lstat()
    with fails(errno.EEXIST):
        renameat2(one, two, RENAME_NOREPLACE)
    renameat2(one, two, RENAME_EXCHANGE)
    after = two.lstat(), one.lstat()
    assert [(each.st_ino, each.st_mode, each.st_nlink) for each in after] == [
        (each.st_ino, each.st_mode, each.st_nlink) for each in before
    ]
    renameat2(one, here / "three", RENAME_NOREPLACE)
    assert (here / "three").lstat().st_ino == before[1].st_ino


def test_exchange_between_directories_counts_links(here: Path) -> None:
    for name in ("a", "b", "a/d"):
        (here / name).mkdir()
    (here / "b" / "f").touch()
    renameat2(here / "a" / "d", here / "b" / "f", RENAME_EXCHANGE)
    assert ((here / "a").stat().st_nlink, (here / "b").stat().st_nlink) == (2, 3)
    assert (here / "b" / "f").is_dir()


def test_whiteout_is_refused(here: Path) -> None:
    """Which overlayfs asks for in its upper directory only."""
    (here / "f").touch()
    with fails(errno.EINVAL):
        renameat2(here / "f", here / "g", RENAME_WHITEOUT)
    assert os.listdir(here) == ["f"]


def test_a_listing_ends_while_everything_is_renamed_under_it(here: Path) -> None:
    names = {f"before-{number:04}" for number in range(1000)}
    for name in names:
        (here / name).touch()
    seen: list[str] = []
    with os.scandir(here) as entries:
        for entry in entries:
            seen.append(entry.name)
            if entry.name in names:
                (here / entry.name).rename(here / entry.name.replace("before", "after"))
    # Each file is seen, under one of its names or both, and the listing does not run after the new ones.
    assert {name.replace("after", "before") for name in seen} == names
    assert len(seen) <= 2 * len(names)
    assert len(os.listdir(here)) == len(names)


def test_an_open_directory_that_was_replaced(here: Path) -> None:
    (here / "d").mkdir()
    (here / "other").mkdir()
    with fd_of(here / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        inode = os.fstat(fd).st_ino
        os.rename(here / "other", here / "d")
        status = os.fstat(fd)
        assert (status.st_ino, status.st_nlink) == (inode, 0)
        assert os.listdir(fd) == []
        assert (here / "d").stat().st_ino != inode


def test_inode_numbers_are_not_used_again(here: Path) -> None:
    seen = set()
    for _ in range(50):
        (here / "f").write_bytes(b"content")
        seen.add((here / "f").stat().st_ino)
        (here / "f").unlink()
    assert len(seen) == 50


def test_a_handle_outlives_its_name_and_its_number_stays_its_own(here: Path) -> None:
    with fd_of(here / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"of the first")
        number = os.fstat(fd).st_ino
        (here / "f").unlink()
        for index in range(20):
            (here / f"g{index}").write_bytes(b"of others")
            assert (here / f"g{index}").stat().st_ino != number
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == b"of the first"


def test_opens_and_unlinks_race_without_io_errors(here: Path) -> None:
    """Each open finds a file or none, each unlink, too; what was opened can be read."""
    unexpected: list[BaseException] = []
    path = here / "f"

    def work(number: int) -> None:
        for round_ in range(60):
            try:
                if (number + round_) % 3 == 0:
                    path.unlink()
                else:
                    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
                        os.pwrite(fd, b"x" * 10, 0)
                        assert os.pread(fd, 10, 0) in (b"x" * 10, b"")
            except FileNotFoundError:
                pass
            except BaseException as error:
                unexpected.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []


def test_a_sparse_file_that_no_object_holds(own_volume: NewVolume) -> None:
    """Made by truncate it costs nothing, its size is honest, and the close refuses it; smaller again, it is
    stored."""
    with own_volume("digest-cached") as volume:
        volume.expected_logs.append("stays staged after its last close: File too large")
        path = volume.mountpoint / "f"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, b"start", 0)
        os.ftruncate(fd, 10**15)
        status = os.fstat(fd)
        assert (status.st_size, status.st_blocks <= 8) == (10**15, True)
        assert os.pread(fd, 100, 10**15 - 3) == bytes(3)
        with fails(errno.EFBIG):
            os.close(fd)
        assert path.stat().st_size == 10**15
        os.truncate(path, 5)
        assert path.read_bytes() == b"start"
        assert os.getxattr(path, "user.s3blobfs.state") == b"stored"


# -- times ---------------------------------------------------------------------------------------------

TIMES_NS = [-1, -(2**31 - 1) * 10**9 + 7, 2**31 * 10**9 + 1, 2**32 * 10**9 + 999_999_999, 1]


@pytest.mark.parametrize("time_ns", TIMES_NS)
def test_times_before_1970_and_after_2038(here: Path, time_ns: int) -> None:
    (here / "f").touch()
    os.utime(here / "f", ns=(time_ns, time_ns + 1))
    status = (here / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (time_ns, time_ns + 1)


CTIME_CALLS: dict[str, Callable[[Path], object]] = {
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: path.rename(path.with_name("g")),
    "unlink of another name": lambda path: os.unlink(path.with_name("other")),
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "truncate": lambda path: os.truncate(path, 1),
}


@pytest.mark.parametrize("call", CTIME_CALLS)
def test_what_changes_ctime(here: Path, call: str) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    os.link(path, here / "other")
    with fd_of(path, os.O_RDONLY) as fd:
        before = os.fstat(fd)
        CTIME_CALLS[call](path)
        after = os.fstat(fd)
    assert after.st_ctime_ns > before.st_ctime_ns
    if call != "truncate":
        assert after.st_mtime_ns == before.st_mtime_ns


def age(path: Path) -> None:
    """Access time before modification time: the next read renews it."""
    os.utime(path, ns=(DAY_NS, 2 * DAY_NS))


def test_access_times_are_relative(here: Path) -> None:
    (here / "d").mkdir()
    path = here / "d" / "f"
    path.write_bytes(b"content")
    for each in (path, here / "d"):
        age(each)
    path.read_bytes()
    os.listdir(here / "d")
    first = path.stat().st_atime_ns, (here / "d").stat().st_atime_ns
    assert min(first) > 2 * DAY_NS
    assert path.stat().st_mtime_ns == 2 * DAY_NS


@pytest.mark.parametrize("option", ["noatime", "nodiratime"])
def test_access_times_can_be_left_alone(own_volume: NewVolume, option: str) -> None:
    with own_volume("digest-cached", mount=["-o", option]) as volume:
        directory = volume.mountpoint / "d"
        directory.mkdir()
        path = directory / "f"
        path.write_bytes(b"content")
        for each in (path, directory):
            age(each)
        path.read_bytes()
        os.listdir(directory)
        assert (path.stat().st_atime_ns == DAY_NS) is (option == "noatime")
        assert directory.stat().st_atime_ns == DAY_NS


# -- locks ---------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def test_locks_of_open_file_descriptions(here: Path) -> None:
    """fcntl(2), F_OFD_SETLK: two descriptions of one process exclude each other."""
    path = here / "f"
    path.write_bytes(bytes(10))
    lock = struct.pack("hhlli4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    with fd_of(path, os.O_RDWR) as one, fd_of(path, os.O_RDWR) as two:
        fcntl.fcntl(one, F_OFD_SETLK, lock)
        with fails(errno.EAGAIN, errno.EACCES):
            fcntl.fcntl(two, F_OFD_SETLK, lock)
    with fd_of(path, os.O_RDWR) as two:
        fcntl.fcntl(two, F_OFD_SETLK, lock)


DEADLOCK = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mine, theirs = (0, 5) if sys.argv[2] == "one" else (5, 0)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, mine)
print("locked", flush=True)
sys.stdin.readline()
try:
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, theirs)
except OSError as error:
    print(error.errno, flush=True)
else:
    print(0, flush=True)
"""


def test_deadlocks_are_found(here: Path) -> None:
    path = here / "f"
    path.write_bytes(bytes(10))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DEADLOCK, path, who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in ("one", "two")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(told) == sorted(["0", str(errno.EDEADLK)])


def test_no_lock_outlives_a_killed_mount(own_volume: NewVolume) -> None:
    with own_volume("digest-cached") as volume:
        path = volume.mountpoint / "f"
        path.write_bytes(b"content")
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        volume.kill()
        with fails(errno.ENOTCONN):
            os.close(fd)
        volume.mount()
        with fd_of(path, os.O_RDWR) as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [FS_APPEND_FL, FS_IMMUTABLE_FL], ids=["append-only", "immutable"])
def test_inode_flags_are_refused(here: Path, flag: int) -> None:
    """chattr(1) says so, and the file stays as it was."""
    (here / "f").touch()
    with fd_of(here / "f", os.O_RDWR) as fd, fails(errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flag))
    (here / "f").unlink()


def mount_flags(volume: MountedVolume) -> set[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mountpoint, _, options, *_ = line.split()
        if mountpoint == str(volume.mountpoint):
            return set(options.split(","))
    raise AssertionError("not mounted")


def test_mount_options_are_honoured(own_volume: NewVolume) -> None:
    with own_volume("digest-cached", mount=["-o", "noexec,nosuid,nodev"]) as volume:
        assert {"noexec", "nosuid", "nodev"} <= mount_flags(volume)
        script = volume.mountpoint / "script"
        script.write_text("#!/bin/sh\nexit 0\n")
        script.chmod(0o755)
        with pytest.raises(PermissionError):
            subprocess.run([script], check=False)
        os.mknod(volume.mountpoint / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with pytest.raises(PermissionError):
            (volume.mountpoint / "null").read_bytes()


def test_a_read_only_mount_leaves_everything(own_volume: NewVolume) -> None:
    with own_volume("digest-cached") as volume:
        path = volume.mountpoint / "f"
        path.write_bytes(b"content")
        age(path)
        volume.umount()
        volume.mount("-o", "ro")
        assert "ro" in mount_flags(volume)
        assert path.read_bytes() == b"content"
        assert path.stat().st_atime_ns == DAY_NS
        for call in (
            lambda: path.write_bytes(b"x"),
            lambda: path.unlink(),
            lambda: os.truncate(path, 0),
            lambda: os.setxattr(path, "user.x", b"y"),
            lambda: path.chmod(0o600),
        ):
            with fails(errno.EROFS):
                call()


# -- NFS export ----------------------------------------------------------------------------------------


def test_handles_lead_back_to_files(here: Path) -> None:
    """name_to_handle_at(2) and open_by_handle_at(2), which is what an NFS server does."""
    (here / "d").mkdir()
    (here / "d" / "f").write_bytes(b"content")
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    path = os.fsencode(here / "d" / "f")
    if _libc.name_to_handle_at(-100, path, handle, ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    with fd_of(here, os.O_RDONLY | os.O_DIRECTORY) as root:
        fd = _libc.open_by_handle_at(root, handle, os.O_RDONLY)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        try:
            assert os.read(fd, 100) == b"content"
        finally:
            os.close(fd)


def test_signals_do_not_break_calls(here: Path) -> None:
    """A signal that arrives while a request is under way neither loses nor repeats it."""
    path = here / "f"
    stop = threading.Event()
    main = threading.get_ident()

    def pester() -> None:
        while not stop.wait(0.002):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=pester)
    thread.start()
    try:
        for number in range(30):
            with path.open("ab") as file:
                file.write(b"%04d" % number)
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert path.read_bytes() == b"".join(b"%04d" % number for number in range(30))
