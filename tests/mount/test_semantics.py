"""System calls on a mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fs.calls import pattern
from tests.mount.conftest import remount_cold
from tests.mount.users import as_user
from tests.support.mounted import MountedVolume
from tests.support.renameat2 import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

NOBODY, GROUP = 65_534, 54_321
DEADLINE_S = 20.0
PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


@contextmanager
def fd_of(path: Path | bytes, flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """The kernel releases a file a moment after the last user of it is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def ours(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.s3blobfs.{name}").decode()


# -- bytes ---------------------------------------------------------------------------------------------


def test_write_close_read(any_here: Path) -> None:
    for size in (0, 1, 4095, 4096, 4097, 131_072, 1_000_003, 5 * 1024 * 1024 + 1):
        path = any_here / str(size)
        path.write_bytes(pattern(size))
        assert path.stat().st_size == size
        assert path.read_bytes() == pattern(size)
        assert ours(path, "state") == "stored"


def test_a_file_is_stored_when_close_returns(any_here: Path) -> None:
    path = any_here / "f"
    with fd_of(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"content")
        assert ours(path, "state") == "staged"
    assert ours(path, "state") == "stored"


def test_fsync_stores_without_closing(any_here: Path) -> None:
    path = any_here / "f"
    for sync in (os.fsync, os.fdatasync):
        with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
            os.pwrite(fd, sync.__name__.encode(), 0)
            assert ours(path, "state") == "staged"
            sync(fd)
            assert ours(path, "state") == "stored"


def test_fsync_of_a_directory_stores_what_is_staged(any_here: Path) -> None:
    path = any_here / "f"
    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"content")
        with fd_of(any_here, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
        assert ours(path, "state") == "stored"


def test_o_sync_writes_are_stored_each(here: Path) -> None:
    path = here / "f"
    with fd_of(path, os.O_CREAT | os.O_WRONLY | os.O_SYNC) as fd:
        for _ in range(3):
            os.write(fd, b"line\n")
            assert ours(path, "state") == "stored"
    assert path.read_bytes() == b"line\n" * 3


def test_o_direct(any_here: Path) -> None:
    path = any_here / "f"
    data = pattern(8 * PAGE)
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    with fd_of(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        assert os.pwritev(fd, [buffer], 0) == len(data)
        back = mmap.mmap(-1, len(data))
        assert os.preadv(fd, [back], 0) == len(data)
        assert back[:] == data
        assert os.preadv(fd, [back], 4 * PAGE) == 4 * PAGE
        assert back[: 4 * PAGE] == data[4 * PAGE :]
        back.close()
    buffer.close()
    assert path.read_bytes() == data


def test_o_append_of_two_descriptors(here: Path) -> None:
    path = here / "f"
    with (
        fd_of(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as one,
        fd_of(path, os.O_WRONLY | os.O_APPEND) as two,
    ):
        for number in range(20):
            os.write(one if number % 2 else two, b"%d\n" % number)
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(20))


def test_a_mapping_of_a_file_that_is_open_for_appending(here: Path) -> None:
    path = here / "f"
    with fd_of(path, os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"-" * 3 * PAGE)
        with mmap.mmap(fd, 0) as mapping:
            mapping[PAGE : PAGE + 3] = b"one"
            mapping.flush()
            os.write(fd, b"end")
            mapping[2 * PAGE : 2 * PAGE + 3] = b"two"
    expected = b"".join((b"-" * PAGE, b"one".ljust(PAGE, b"-"), b"two".ljust(PAGE, b"-"), b"end"))
    assert path.read_bytes() == expected


def test_open_flags(here: Path) -> None:
    path = here / "f"
    with fails(errno.ENOENT):
        os.open(path, os.O_RDWR)
    with fd_of(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        os.write(fd, b"content")
        with fails(errno.EBADF):
            os.read(fd, 1)
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.EISDIR):
        os.open(here, os.O_WRONLY)
    with fd_of(path, os.O_RDONLY) as fd, fails(errno.EBADF):
        os.write(fd, b"x")
    with fd_of(path, os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
    assert path.read_bytes() == b""
    os.symlink("f", here / "s")
    with fails(errno.ELOOP):
        os.open(here / "s", os.O_RDONLY | os.O_NOFOLLOW)


def test_truncate(any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    for size in (3, 10, 0, 300_000, 1):
        os.truncate(path, size)
        assert path.stat().st_size == size
        assert len(path.read_bytes()) == size
    path.write_bytes(b"content")
    with fd_of(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 3)
        os.ftruncate(fd, 5)
        assert os.pread(fd, 10, 0) == b"con\0\0"
    assert path.read_bytes() == b"con\0\0"


def test_a_sparse_file(any_here: Path) -> None:
    path = any_here / "f"
    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 20 * 1024 * 1024)
        assert os.fstat(fd).st_blocks * 512 < 1024 * 1024
        assert os.pread(fd, 10, 10 * 1024 * 1024) == bytes(10)
    status = path.stat()
    assert status.st_size == 20 * 1024 * 1024 + 3
    data = path.read_bytes()
    assert data[-3:] == b"end"
    assert not any(data[:-3])


def test_a_file_may_not_exceed_an_object(here: Path) -> None:
    path = here / "f"
    with fd_of(path, os.O_CREAT | os.O_RDWR) as fd, fails(errno.EFBIG):
        os.pwrite(fd, b"x", 5 * 1024**4)
    with fails(errno.EFBIG):
        os.truncate(path, 5 * 1024**4 + 1)
    assert path.stat().st_size == 0


def test_copies_by_the_kernel(here: Path) -> None:
    data = pattern(3_000_001)
    (here / "f").write_bytes(data)
    shutil.copyfile(here / "f", here / "shutil")  # sendfile(2)
    with fd_of(here / "f", os.O_RDONLY) as source, fd_of(here / "g", os.O_CREAT | os.O_WRONLY) as target:
        copied = 0
        while done := os.copy_file_range(source, target, len(data) - copied):
            copied += done
    with (
        fd_of(here / "f", os.O_RDONLY) as source,
        fd_of(here / "s", os.O_CREAT | os.O_WRONLY) as target,
    ):
        sent = 0
        while done := os.sendfile(target, source, sent, len(data)):
            sent += done
    for name in ("shutil", "g", "s"):
        assert (here / name).read_bytes() == data


def test_what_one_descriptor_writes_another_reads_at_once(any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    with fd_of(path, os.O_RDONLY) as reader, fd_of(path, os.O_RDWR) as writer:
        assert os.pread(reader, 100, 0) == b"content"
        os.pwrite(writer, b"C", 0)
        assert os.pread(reader, 100, 0) == b"Content"
        os.fsync(writer)
        assert os.pread(reader, 100, 0) == b"Content"
        os.pwrite(writer, b"!", 7)
        assert os.pread(reader, 100, 0) == b"Content!"
        os.ftruncate(writer, 2)
        assert os.pread(reader, 100, 0) == b"Co"


# -- mappings ------------------------------------------------------------------------------------------


def test_mmap_reads(any_here: Path) -> None:
    data = pattern(700_001)
    (any_here / "f").write_bytes(data)
    with fd_of(any_here / "f", os.O_RDONLY) as fd:
        mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    assert mapped[:] == data
    mapped.close()


def test_mmap_writes_and_msync(any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(bytes(3 * PAGE))
    with fd_of(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 3 * PAGE, mmap.MAP_SHARED)
        mapped[PAGE : PAGE + 5] = b"hello"
        mapped.flush()
        assert os.pread(fd, 5, PAGE) == b"hello"
        mapped.close()
    assert path.read_bytes() == bytes(PAGE) + b"hello" + bytes(2 * PAGE - 5)


def test_a_mapping_outlives_its_descriptor(any_volume: MountedVolume, any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(bytes(2 * PAGE))
    with fd_of(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 2 * PAGE, mmap.MAP_SHARED)
    # The mmap module keeps a duplicate; what matters is that both descriptors are closed before the stores.
    mapped[0:5] = b"after"
    mapped[PAGE : PAGE + 5] = b"close"
    mapped.close()
    expected = b"after" + bytes(PAGE - 5) + b"close" + bytes(PAGE - 5)
    assert path.read_bytes() == expected
    eventually(lambda: ours(path, "state") == "stored", "the mapping's stores do not reach S3")
    remount_cold(any_volume)
    assert path.read_bytes() == expected


def test_a_mapping_after_the_last_close(any_volume: MountedVolume, any_here: Path) -> None:
    """mmap(2) itself, whose mapping holds no descriptor."""
    path = any_here / "f"
    path.write_bytes(bytes(PAGE))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with fd_of(path, os.O_RDWR) as fd:
        address = libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    ctypes.memmove(address, b"mapped", 6)
    assert libc.munmap(address, PAGE) == 0
    eventually(lambda: ours(path, "state") == "stored", "the mapping's stores do not reach S3")
    remount_cold(any_volume)
    assert path.read_bytes() == b"mapped" + bytes(PAGE - 6)


def test_a_private_mapping_changes_nothing(here: Path) -> None:
    (here / "f").write_bytes(bytes(PAGE))
    with fd_of(here / "f", os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE)
        mapped[0:3] = b"abc"
        mapped.close()
    assert (here / "f").read_bytes() == bytes(PAGE)


# -- names ---------------------------------------------------------------------------------------------


def test_names_are_bytes(any_volume: MountedVolume, any_here: Path) -> None:
    names = [b"a\nb", b"id@1", b"...", b"\xff\xfe", b"\x80", "\u00e4".encode(), b"x" * 255, b" ", b"-n"]
    root = os.fsencode(any_here)
    for name in names:
        with fd_of(os.path.join(root, name), os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, name)
    assert sorted(os.listdir(root)) == sorted(names)
    any_volume.remount()
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with fd_of(os.path.join(root, name), os.O_RDONLY) as fd:
            assert os.read(fd, 300) == name


def test_names_and_targets_that_are_too_long(here: Path) -> None:
    root = os.fsencode(here)
    for call in (
        lambda: os.mkdir(os.path.join(root, b"x" * 256)),
        lambda: os.open(os.path.join(root, b"x" * 256), os.O_CREAT | os.O_WRONLY),
        lambda: os.stat(os.path.join(root, b"x" * 256)),
        lambda: os.symlink(b"x" * 4096, os.path.join(root, b"s")),
    ):
        with fails(errno.ENAMETOOLONG):
            call()
    os.symlink(b"x" * 4095, os.path.join(root, b"s"))
    assert os.readlink(os.path.join(root, b"s")) == b"x" * 4095


def test_a_listing_of_many_names(here: Path) -> None:
    expected = {f"{number:05}" for number in range(2000)}
    for name in expected:
        os.mknod(here / name)
    listed = os.listdir(here)
    assert len(listed) == 2000
    assert set(listed) == expected
    with os.scandir(here) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(here) == []


def test_hard_links(any_here: Path) -> None:
    one, two = any_here / "one", any_here / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    assert one.stat().st_ino == two.stat().st_ino
    assert one.stat().st_nlink == two.stat().st_nlink == 2
    two.write_bytes(b"changed")
    assert one.read_bytes() == b"changed"
    one.chmod(0o600)
    assert stat.S_IMODE(two.stat().st_mode) == 0o600
    one.unlink()
    assert two.stat().st_nlink == 1
    assert two.read_bytes() == b"changed"
    with fails(errno.EPERM):
        os.link(any_here, any_here / "directory")


def test_o_trunc_of_who_only_reads(any_here: Path) -> None:
    (any_here / "f").write_bytes(b"content")
    with fd_of(any_here / "f", os.O_RDONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        assert ours(any_here / "f", "state") == "stored"
    assert (any_here / "f").read_bytes() == b""


def test_rename_over_an_open_file(any_here: Path) -> None:
    old, new = any_here / "old", any_here / "new"
    old.write_bytes(b"old content")
    new.write_bytes(b"new content")
    with fd_of(old, os.O_RDWR) as fd:
        os.rename(new, old)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == b"old content"
        os.pwrite(fd, b"OLD", 0)
        assert os.pread(fd, 100, 0) == b"OLD content"
        assert old.read_bytes() == b"new content"
    assert os.listdir(any_here) == ["old"]


def test_rename_flags(here: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "inner").write_bytes(b"in d")
    (here / "f").write_bytes(b"f")
    with fails(errno.EEXIST):
        renameat2(here / "f", here / "d", RENAME_NOREPLACE)
    renameat2(here / "f", here / "d", RENAME_EXCHANGE)
    assert (here / "d").read_bytes() == b"f"
    assert (here / "f" / "inner").read_bytes() == b"in d"
    with fails(errno.EINVAL):
        os.rename(here / "f", here / "f" / "below")
    with fails(errno.ENOTDIR):
        os.rename(here / "f", here / "d")
    with fails(errno.EISDIR):
        os.rename(here / "d", here / "f")


def test_an_unlinked_open_file(any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    with fd_of(path, os.O_RDWR) as fd:
        path.unlink()
        assert not path.exists()
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b" and more", 7)
        os.fsync(fd)
        os.ftruncate(fd, 10)
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 100, 0) == b"content an"
        path.write_bytes(b"another")
        assert os.pread(fd, 100, 0) == b"content an"
    assert path.read_bytes() == b"another"


def test_a_removed_directory_that_is_open(here: Path) -> None:
    (here / "d").mkdir()
    with fd_of(here / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (here / "d").rmdir()
        assert os.listdir(fd) == []
        with fails(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


def test_directories_refuse_what_they_must(here: Path) -> None:
    (here / "d" / "e").mkdir(parents=True)
    with fails(errno.ENOTEMPTY):
        (here / "d").rmdir()
    with fails(errno.EISDIR):
        os.unlink(here / "d")
    with fails(errno.EEXIST):
        (here / "d").mkdir()
    assert (here / "d").stat().st_nlink == 3


# -- special files and execution -----------------------------------------------------------------------


def test_a_fifo(here: Path) -> None:
    path = here / "fifo"
    os.mkfifo(path, 0o600)
    writer = threading.Thread(target=path.write_bytes, args=(b"through the pipe",))
    writer.start()
    assert path.read_bytes() == b"through the pipe"
    writer.join()


def test_a_unix_socket(here: Path) -> None:
    path = here / "socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        assert stat.S_ISSOCK(path.stat().st_mode)
        listener.listen()
        client.connect(str(path))
        served, _ = listener.accept()
        with served:
            client.sendall(b"hello")
            assert served.recv(10) == b"hello"


def test_device_nodes(here: Path) -> None:
    os.mknod(here / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(here / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    assert (here / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK((here / "disk").stat().st_mode)
    assert (here / "disk").stat().st_rdev == os.makedev(259, 70_000)


def test_scripts_and_binaries_run(any_here: Path) -> None:
    script = any_here / "script"
    script.write_text("#!/bin/sh\necho from the mount\n")
    with fails(errno.EACCES):
        subprocess.run([script], check=True)
    script.chmod(0o755)
    assert subprocess.run([script], capture_output=True, check=True).stdout == b"from the mount\n"
    program = shutil.which("echo")
    assert program is not None
    shutil.copy(program, any_here / "binary")
    assert subprocess.run([any_here / "binary", "x"], capture_output=True, check=True).stdout == b"x\n"


def test_symlinks_are_followed(here: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "f").write_bytes(b"content")
    (here / "s").symlink_to("d")
    assert (here / "s" / "f").read_bytes() == b"content"
    (here / "loop").symlink_to("loop")
    with fails(errno.ELOOP):
        (here / "loop").read_bytes()


# -- locks ---------------------------------------------------------------------------------------------


def test_flock(here: Path) -> None:
    (here / "f").touch()
    with fd_of(here / "f", os.O_RDWR) as one, fd_of(here / "f", os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fcntl_locks_of_ranges(here: Path) -> None:
    path = here / "f"
    path.write_bytes(bytes(100))
    attempt = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "try: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[2]))\n"
        "except OSError: sys.exit(3)\n"
    )

    def another_process(start: int) -> int:
        return subprocess.run([sys.executable, "-c", attempt, path, str(start)], check=False).returncode

    with fd_of(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
        assert another_process(5) == 3
        assert another_process(10) == 0
    assert another_process(5) == 0


# -- permissions ---------------------------------------------------------------------------------------


def owned(path: Path, uid: int, mode: int) -> Path:
    os.chown(path, uid, GROUP)
    path.chmod(mode)
    return path


def test_permissions_hold_for_other_users(here: Path) -> None:
    (here / "f").write_bytes(b"content")
    owned(here / "f", 0, 0o600)
    with fails(errno.EACCES):
        as_user(NOBODY, NOBODY, (here / "f").read_bytes)
    owned(here / "f", 0, 0o640)
    with fails(errno.EACCES):
        as_user(NOBODY, NOBODY, (here / "f").read_bytes)
    assert as_user(NOBODY, GROUP, (here / "f").read_bytes) == b"content"
    with fails(errno.EACCES):
        as_user(NOBODY, GROUP, lambda: (here / "f").write_bytes(b""))
    with fails(errno.EACCES):
        as_user(NOBODY, NOBODY, (here / "new").touch)
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, lambda: (here / "f").chmod(0o777))
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, lambda: os.chown(here / "f", NOBODY, NOBODY))
    with fails(errno.EACCES):
        as_user(NOBODY, NOBODY, (here / "f").unlink)
    assert (here / "f").read_bytes() == b"content"


def test_files_belong_to_who_makes_them(here: Path) -> None:
    here.chmod(0o777)
    as_user(NOBODY, GROUP, lambda: (here / "f").write_bytes(b"x"))
    as_user(NOBODY, GROUP, (here / "d").mkdir)
    for name in ("f", "d"):
        status = (here / name).stat()
        assert (status.st_uid, status.st_gid) == (NOBODY, GROUP)


def test_access(here: Path) -> None:
    (here / "f").touch()
    owned(here / "f", NOBODY, 0o640)

    def may(uid: int, gid: int, mask: int) -> bool:
        return as_user(uid, gid, lambda: os.access(here / "f", mask, effective_ids=True))

    assert may(NOBODY, NOBODY, os.R_OK | os.W_OK)
    assert not may(NOBODY, NOBODY, os.X_OK)
    assert may(4321, GROUP, os.R_OK)
    assert not may(4321, GROUP, os.W_OK)
    assert not may(4321, 4321, os.R_OK)
    assert os.access(here / "f", os.R_OK | os.W_OK)
    assert not os.access(here / "f", os.X_OK)
    assert not os.access(here / "missing", os.F_OK)


def test_a_sticky_directory(here: Path) -> None:
    here.chmod(0o1777)
    (here / "f").write_bytes(b"content")
    owned(here / "f", 0, 0o666)
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, (here / "f").unlink)
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, lambda: os.rename(here / "f", here / "g"))
    as_user(NOBODY, NOBODY, (here / "mine").touch)
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, lambda: os.rename(here / "mine", here / "f"))
    as_user(NOBODY, NOBODY, (here / "mine").unlink)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _write(path: Path, flags: int = os.O_WRONLY) -> None:
    with fd_of(path, flags) as fd:
        os.write(fd, b"C")


CHANGES: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 3),
    "truncate to the same size": lambda path: os.truncate(path, 7),
    "O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_write_drops_set_id_bits(here: Path, change: Callable[[Path], None]) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    for mode, left in ((0o6777, 0o777), (0o6767, 0o2767)):  # without execution by the group it means locking
        owned(path, 0, mode)
        assert mode_of(path) == mode
        as_user(NOBODY, NOBODY, lambda: change(path))
        assert mode_of(path) == left
        path.write_bytes(b"content")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_root_may_keep_set_id_bits(here: Path, change: Callable[[Path], None]) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    owned(path, 0, 0o6777)
    change(path)
    assert mode_of(path) == 0o6777


def test_many_writes_after_the_bits_are_gone(here: Path) -> None:
    path = here / "f"
    path.touch()
    owned(path, NOBODY, 0o6777)

    def write() -> None:
        with fd_of(path, os.O_WRONLY) as fd:
            for _ in range(3):
                os.write(fd, b"C")
            assert mode_of(path) == 0o777
            path.chmod(0o4777)
            os.write(fd, b"C")

    as_user(NOBODY, GROUP, write)
    assert mode_of(path) == 0o777
    assert path.read_bytes() == b"CCCC"


def test_chown_drops_set_id_bits(here: Path) -> None:
    path = here / "f"
    path.touch()
    for uid, gid in ((NOBODY, GROUP), (NOBODY, -1), (-1, GROUP), (-1, -1)):
        path.chmod(0o6755)
        os.chown(path, uid, gid)
        assert mode_of(path) == 0o755
    (here / "d").mkdir()
    (here / "d").chmod(0o6755)
    os.chown(here / "d", NOBODY, GROUP)
    assert mode_of(here / "d") == 0o6755  # of directories they stay


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_drops_file_capabilities(here: Path, change: Callable[[Path], None]) -> None:
    """Also when root makes it."""
    path = here / "f"
    path.write_bytes(b"content")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    os.setxattr(path, "security.capability", capability)
    os.setxattr(path, "user.other", b"stays")
    change(path)
    with fails(errno.ENODATA):
        os.getxattr(path, "security.capability")
    assert os.listxattr(path) == ["user.other"]
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))  # without any


def test_the_owner_sets_modes_as_far_as_allowed(here: Path) -> None:
    (here / "f").touch()
    owned(here / "f", NOBODY, 0o644)
    as_user(NOBODY, NOBODY, lambda: (here / "f").chmod(0o6755))
    assert mode_of(here / "f") == 0o4755  # not in the file's group: no set-group-ID


def test_set_gid_directories(here: Path) -> None:
    (here / "d").mkdir()
    owned(here / "d", 0, 0o2777)
    as_user(NOBODY, NOBODY, (here / "d" / "f").touch)
    as_user(NOBODY, NOBODY, (here / "d" / "e").mkdir)
    assert (here / "d" / "f").stat().st_gid == GROUP
    assert (here / "d" / "e").stat().st_gid == GROUP
    assert mode_of(here / "d" / "e") & stat.S_ISGID


def test_the_umask_is_heeded(here: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "d", 0o777)
    finally:
        os.umask(before)
    assert mode_of(here / "f") == 0o640
    assert mode_of(here / "d") == 0o750


# -- times ---------------------------------------------------------------------------------------------


def test_utime_in_nanoseconds(any_volume: MountedVolume, any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_000_000_001)
    any_volume.remount()
    assert path.stat().st_mtime_ns == 987_654_321_000_000_001
    os.symlink("x", any_here / "s")
    os.utime(any_here / "s", ns=(1, 2), follow_symlinks=False)
    assert (any_here / "s").lstat().st_mtime_ns == 2


def test_utime_belongs_to_the_owner(here: Path) -> None:
    (here / "f").touch()
    owned(here / "f", 0, 0o666)
    with fails(errno.EPERM):
        as_user(NOBODY, NOBODY, lambda: os.utime(here / "f", ns=(1, 2)))
    as_user(NOBODY, NOBODY, lambda: os.utime(here / "f"))  # to now, for who may write


def test_mtime_of_writes(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    os.utime(path, ns=(1, 2))
    before = time.time_ns()
    with fd_of(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"C", 0)
        during = os.fstat(fd).st_mtime_ns
    after = path.stat()
    assert before - 20_000_000 <= during <= after.st_mtime_ns <= time.time_ns() + 20_000_000
    assert after.st_ctime_ns >= during


def test_atime_is_relative(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"content")
    os.utime(path, ns=(1, 2))
    path.read_bytes()
    os.stat(path)
    with fd_of(path, os.O_RDONLY) as fd:
        os.fsync(fd)
    assert path.stat().st_ctime_ns > 2


# -- xattrs --------------------------------------------------------------------------------------------


def test_xattrs(any_volume: MountedVolume, any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "trusted.two", bytes(range(256)))
    with fails(errno.EEXIST):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.three", b"3", os.XATTR_REPLACE)
    os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
    os.setxattr(path, "user.four", b"4", os.XATTR_CREATE)
    os.removexattr(path, "user.four")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.four")
    any_volume.remount()
    assert sorted(os.listxattr(path)) == ["trusted.two", "user.one"]
    assert os.getxattr(path, "user.one") == b"2"
    assert os.getxattr(path, "trusted.two") == bytes(range(256))
    with fails(errno.E2BIG):
        os.setxattr(path, "user.big", bytes(65_537))


def test_our_xattrs(any_here: Path) -> None:
    path = any_here / "f"
    path.write_bytes(b"content")
    assert ours(path, "state") == "stored"
    assert ours(path, "store") == "default"
    assert ours(path, "digest") == "9a0364b9e99bb480dd25e1f0284c8555"
    assert len(ours(path, "sha256")) == 64
    assert ours(path, "key")
    assert os.listxattr(path) == []
    with fails(errno.EPERM):
        os.setxattr(path, "user.s3blobfs.state", b"x")
    with fails(errno.EPERM):
        os.removexattr(path, "user.s3blobfs.state")
    shutil.copy2(path, any_here / "g")  # copies the attributes that are listed
    assert os.listxattr(any_here / "g") == []


# -- what there is not ---------------------------------------------------------------------------------


def test_o_tmpfile_is_refused(here: Path) -> None:
    with fails(errno.EOPNOTSUPP):
        os.open(here, os.O_TMPFILE | os.O_RDWR)


def test_statvfs_tells_real_numbers(volume: MountedVolume, here: Path) -> None:
    before = os.statvfs(here)
    assert before.f_namemax == 255
    (here / "f").write_bytes(bytes(40_960))
    after = os.statvfs(here)
    assert (after.f_files - after.f_ffree) - (before.f_files - before.f_ffree) == 1
    used = (after.f_blocks - after.f_bfree) * after.f_frsize
    assert used - (before.f_blocks - before.f_bfree) * before.f_frsize == 40_960
    assert after.f_bavail * after.f_frsize > 2**40
