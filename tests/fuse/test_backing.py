"""Showing the kernel files that it reads by itself: what it takes, and what is said where it does not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileInfo, FlagT, InodeT, RequestContext

from s3blobfs.config import FuseExtension
from s3blobfs.fuse.extension import protocol
from s3blobfs.fuse.extension.backing import KernelFiles, answer_to_open
from s3blobfs.fuse.extension.handshake import ALWAYS, reply_to
from s3blobfs.fuse.extension.protocol import InitFlag, OpenFlag
from s3blobfs.fuse.extension.session import Extension
from tests.fuse.kit import served
from tests.fuse.test_extension import flags_in, request
from tests.fuse.test_hooks import FileOperations

CONTENT = b"bytes of the file that is shown" * 1000


class Shown(FileOperations):
    """Its file is read by the kernel from another one."""

    def __init__(self, extension: Extension, path: Path) -> None:
        super().__init__(extension)
        self._extension = extension
        self.fd = os.open(path, os.O_RDWR)
        self.number = 0
        self.reads = 0

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        files = self._extension.kernel_files
        assert files is not None
        self.number = self.number or files.register(self.fd)
        handle = FileHandleT(7)
        reads_only = flags & os.O_ACCMODE == os.O_RDONLY
        self._extension.answer_open(handle, self.number, only_mappings=not reads_only, reads_only=reads_only)
        return FileInfo(fh=handle)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.reads += 1
        return b"from here"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "shown"
    found.write_bytes(CONTENT)
    return found


async def test_the_kernel_reads_by_itself(tmp_path: Path, path: Path) -> None:
    extension = Extension(FuseExtension.AUTO)
    operations = Shown(extension, path)

    def act() -> None:
        reader = os.open(tmp_path / "mnt" / "file", os.O_RDONLY)
        assert os.pread(reader, 2 * len(CONTENT), 0) == CONTENT
        assert operations.reads == 0
        writer = os.open(tmp_path / "mnt" / "file", os.O_RDWR)
        assert os.pread(writer, 9, 0) == b"from here"
        os.close(reader)
        os.close(writer)

    async with served(operations, extension, tmp_path / "mnt", operations):
        if extension.kernel_files is None:
            pytest.skip(f"passthrough is {extension.passthrough_status}")
        assert extension.passthrough_status == "on"
        await trio.to_thread.run_sync(act)
        files = extension.kernel_files
        files.forget(operations.number)
        assert [each for each in operations.asked if each == "flush"] == ["flush"]  # of the writer alone
        with pytest.raises(OSError, match="directory"):
            files.register(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    os.close(operations.fd)
    files.forget(4711)  # to no effect: the connection is no more
    with pytest.raises(OSError, match="not connected"):
        files.register(0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EPERM, "CAP_SYS_ADMIN"), (errno.ENOTTY, "has no passthrough"), (errno.EIO, "Input/output error")],
)
async def test_a_refusal_is_told_and_changes_nothing_else(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("s3blobfs.fuse.extension.backing.fcntl.ioctl", refuse)
    extension = Extension(FuseExtension.AUTO)
    operations = FileOperations(extension)
    async with served(operations, extension, tmp_path / "mnt", operations):
        assert extension.kernel_files is None
        assert reason in extension.passthrough_status
        assert extension.status == "full"
        await trio.to_thread.run_sync(os.stat, tmp_path / "mnt" / "file")
    assert fcntl.ioctl is refuse


@pytest.mark.parametrize(
    ("wanted", "passthrough", "said"),
    [
        (FuseExtension.AUTO, False, "off (it is not wanted)"),
        (FuseExtension.INIT, True, "off (it takes all of the extension)"),
        (FuseExtension.OFF, True, "off (it takes all of the extension)"),
    ],
)
async def test_what_is_not_wanted_is_not_asked_for(
    tmp_path: Path, wanted: FuseExtension, passthrough: bool, said: str
) -> None:
    extension = Extension(wanted, passthrough=passthrough)
    operations = FileOperations(extension)
    async with served(operations, extension, tmp_path / "mnt", operations):
        assert extension.kernel_files is None
        assert extension.passthrough_status == said


def test_the_greeting_says_how_deep_filesystems_may_lie_on_each_other() -> None:
    everything = InitFlag(~0 & 0xFFFF_FFFF_FFFF)
    for offered, depth in ((everything, 1), (everything & ~InitFlag.PASSTHROUGH, 0)):
        reply = reply_to(request(offered), ALWAYS | InitFlag.PASSTHROUGH)
        assert bool(flags_in(reply) & InitFlag.PASSTHROUGH) == bool(depth)
        assert protocol.INIT_OUT.unpack_from(reply, protocol.OUT_HEADER.size)[11] == depth


def test_the_answer_to_open() -> None:
    def flags(**how: bool) -> OpenFlag:
        answer = answer_to_open(7, 3, **how)
        handle, flags, number = protocol.OPEN_OUT.unpack(answer)
        assert (handle, number) == (7, 3)
        return OpenFlag(flags)

    assert flags(only_mappings=False, reads_only=True) == OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH
    assert flags(only_mappings=True, reads_only=False) == OpenFlag.PASSTHROUGH | OpenFlag.DIRECT_IO


def test_a_connection_that_is_closed_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = KernelFiles(None)  # type: ignore[arg-type]
    files.close()
    files.forget(1)
    assert pyfuse3.trio_token is None
