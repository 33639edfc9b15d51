"""The functions that pyfuse3 imports: found, replaced for a session, and put back."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FlagT, FUSEError, InodeT, RequestContext

from s3blobfs.config import FuseExtension
from s3blobfs.fuse.extension import hooks, imports
from s3blobfs.fuse.extension.hooks import CannotHook, Hooks
from s3blobfs.fuse.extension.imports import NoSuchImport, import_table
from s3blobfs.fuse.extension.libfuse import LSEEK, OpenBit
from s3blobfs.fuse.extension.libfuse import FileInfo as CFileInfo
from s3blobfs.fuse.extension.session import Extension, Level
from tests.conftest import AllowLogs
from tests.fuse.kit import FILE, TinyOperations, served

SIZE = 1000


def slots() -> dict[str, int | None]:
    """What is where pyfuse3 looks for the functions that are replaced."""
    table = import_table(ctypes.PyDLL(pyfuse3.__file__))
    names = [name for name in table if name.startswith("fuse_session_new") or name == "fuse_reply_open"]
    assert len(names) == 2
    return {name: ctypes.c_void_p.from_address(table[name]).value for name in names}


class FileOperations(TinyOperations):
    """A file that can be opened; counts what it is asked."""

    def __init__(self, extension: Extension) -> None:
        super().__init__(extension)
        self.asked: list[str] = []
        self.listed = 0

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = await super().getattr(inode, ctx)
        entry.st_size = SIZE
        return entry

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        handle = FileHandleT(7)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self._extension.add_to_answer(handle, OpenBit.NOFLUSH)
        return FileInfo(fh=handle)

    async def flush(self, fh: FileHandleT) -> None:
        self.asked.append("flush")

    async def release(self, fh: FileHandleT) -> None:
        self.asked.append("release")

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = FileHandleT(8)
        self._extension.add_to_answer(handle, OpenBit.CACHE_READDIR | OpenBit.KEEP_CACHE)
        return handle

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self.listed += 1
        if start_id == 0:
            entry = await TinyOperations.getattr(self, InodeT(FILE), None)  # type: ignore[arg-type]
            pyfuse3.readdir_reply(token, b"file", entry, 1)

    async def releasedir(self, fh: FileHandleT) -> None:
        pass

    async def ioctl(self, inode: int, command: int, data: bytes, answer_max_bytes: int) -> bytes:
        raise FUSEError(errno.ENOTTY)

    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        self.asked.append(f"fallocate {fh} {mode} {offset} {length}")
        if mode:
            raise ValueError("a bug")

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        self.asked.append(f"copy {fh_in} {offset_in} {fh_out} {offset_out} {length}")
        return length - 1

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        return offset + 1 if whence == os.SEEK_DATA else SIZE


def use(mountpoint: Path) -> None:
    """The calls of a program."""
    fd = os.open(mountpoint / "file", os.O_RDWR)
    assert os.lseek(fd, 10, os.SEEK_DATA) == 11
    assert os.lseek(fd, 10, os.SEEK_HOLE) == SIZE
    os.posix_fallocate(fd, 1, 2)
    assert os.copy_file_range(fd, fd, 100, 1, 500) == 99
    os.close(fd)
    os.close(os.open(mountpoint / "file", os.O_RDONLY))


async def test_operations_and_answers_go_through(tmp_path: Path) -> None:
    before = slots()
    mountpoint = tmp_path / "mnt"
    for _ in range(3):  # again and again in one process
        extension = Extension(FuseExtension.AUTO)
        operations = FileOperations(extension)
        async with served(operations, extension, mountpoint, operations):
            assert extension.status == "full"
            assert slots() != before
            await trio.to_thread.run_sync(use, mountpoint)
            for _ in range(3):
                assert await trio.to_thread.run_sync(os.listdir, mountpoint) == ["file"]
        expected = ["fallocate 7 0 1 2", "copy 7 1 7 500 100", "flush"]
        assert [each for each in operations.asked if each != "release"] == expected
        assert operations.listed == 2  # once to the end: the kernel kept it
        assert slots() == before


async def test_a_bug_in_a_handler_is_eio_and_logged(tmp_path: Path, allow_logs: AllowLogs) -> None:
    allow_logs("a request of the kernel failed")
    mountpoint = tmp_path / "mnt"
    extension = Extension(FuseExtension.AUTO)
    operations = FileOperations(extension)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

    def act() -> None:
        fd = os.open(mountpoint / "file", os.O_RDWR)
        assert libc.fallocate(fd, 1, 0, 10) == -1
        assert ctypes.get_errno() == errno.EIO
        os.close(fd)

    async with served(operations, extension, mountpoint, operations):
        await trio.to_thread.run_sync(act)
        assert stat.S_ISDIR((await trio.to_thread.run_sync(os.stat, mountpoint)).st_mode)


class Stalled(FileOperations):
    """Never answers."""

    def __init__(self, extension: Extension) -> None:
        super().__init__(extension)
        self.reached = trio.Event()
        self.ended = False

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        self.reached.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended = True
        raise AssertionError


async def test_an_unmount_ends_what_is_under_way(tmp_path: Path) -> None:
    """And before libfuse's session, to which it would answer, is gone. The program is another process: one
    that waits for a filesystem of its own cannot be ended."""
    mountpoint = tmp_path / "mnt"
    extension = Extension(FuseExtension.AUTO)
    operations = Stalled(extension)
    code = f"import os; os.lseek(os.open({str(mountpoint / 'file')!r}, os.O_RDWR), 0, os.SEEK_DATA)"
    async with served(operations, extension, mountpoint, operations):
        program = await trio.lowlevel.open_process([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        with trio.fail_after(30):
            await operations.reached.wait()
    assert operations.ended
    with trio.fail_after(30):
        assert await program.wait() != 0


@pytest.mark.parametrize("missing", ["fuse_session_new", "fuse_reply_open"])
async def test_nothing_is_changed_when_something_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    before = slots()
    real = import_table

    def table(library: ctypes.CDLL) -> dict[str, int]:
        return {name: slot for name, slot in real(library).items() if not name.startswith(missing)}

    monkeypatch.setattr(hooks, "import_table", table)
    mountpoint = tmp_path / "mnt"
    extension = Extension(FuseExtension.AUTO)
    operations = FileOperations(extension)
    async with served(operations, extension, mountpoint, operations):
        assert extension.level is Level.INIT
        assert extension.status.startswith("init only (pyfuse3's imports are not found")
        assert slots() == before
        await trio.to_thread.run_sync(os.listdir, mountpoint)


async def test_nothing_is_changed_when_the_table_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = slots()

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(hooks, "replace_imports", refuse)
    with pytest.raises(CannotHook, match="cannot be changed: Permission denied"):
        Hooks({})
    assert slots() == before


def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    with pytest.raises(CannotHook, match="only known on 64-bit Linux"):
        Hooks({})


def test_a_library_without_imports_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_dynamic_section", lambda address: {})
    with pytest.raises(NoSuchImport):
        import_table(ctypes.PyDLL(pyfuse3.__file__))


async def test_a_pyfuse3_that_binds_them_itself_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had: one of the places is taken."""
    taken = LSEEK._replace(place=0)  # that of ``init``
    monkeypatch.setattr("s3blobfs.fuse.extension.unbound.LSEEK", taken)
    mountpoint = tmp_path / "mnt"
    extension = Extension(FuseExtension.AUTO)
    operations = FileOperations(extension)
    async with served(operations, extension, mountpoint, operations):
        assert extension.status == "init only (pyfuse3 binds by itself what was to be added)"
        await trio.to_thread.run_sync(os.listdir, mountpoint)


def test_the_layout_of_what_is_handed_over() -> None:
    """struct fuse_file_info: fh is behind two words of flags and two of padding."""
    assert CFileInfo.fh.offset == 16
    assert CFileInfo.bits.offset == 4
