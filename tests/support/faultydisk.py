"""A disk that fails on request: a FUSE filesystem that passes everything on to another directory, in a
process of its own, and answers chosen operations with an error instead.

::

    with FaultyDisk(directory) as disk:
        ...                                        # files below disk.path
        disk.fail(Fault("write", errno.EIO))       # from the next request on
        ...
        disk.heal()

With ``writeback`` the kernel keeps what is written, as it does for an ordinary disk, and a write that fails
is heard of later: by fsync(2), or by whoever waits for the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ModeT, RequestContext

START_TIMEOUT_S = 20.0

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """Requests that are answered with an error."""

    operation: str
    """``open``, ``create``, ``read``, ``write``, ``fsync``, ``rename``, ``unlink``, ``mkdir``, ``setattr``;
    or ``*``: each of these that changes something."""
    code: int
    name: str = "*"
    """Pattern of the file's own name."""


CHANGING = frozenset({"create", "write", "fsync", "rename", "unlink", "mkdir", "setattr", "link"})


class FaultyDisk:
    """A context manager. ``backing`` is where files really are; ``path`` is where they are to be used."""

    def __init__(self, directory: Path, *, writeback: bool = False) -> None:
        self.path = directory / "disk"
        self.backing = directory / "backing"
        self._faults = directory / "faults.json"
        self._writeback = writeback
        self._process: subprocess.Popen[bytes] | None = None
        for each in (self.path, self.backing):
            each.mkdir(mode=0o700)

    def fail(self, *faults: Fault) -> None:
        """These from now on, and no others."""
        new = self._faults.with_suffix(".new")
        new.write_text(json.dumps([asdict(fault) for fault in faults]))
        new.replace(self._faults)

    def heal(self) -> None:
        self.fail()

    def __enter__(self) -> Self:
        self.heal()
        command = [sys.executable, "-m", "tests.support.faultydisk"]
        command += [str(self.backing), str(self.path), str(self._faults)]
        if self._writeback:
            command.append("--writeback")
        self._process = subprocess.Popen(command, cwd=_ROOT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.path.is_mount():
            assert self._process.poll() is None, "the faulty disk's process has ended"
            assert time.monotonic() < deadline, "the faulty disk is not there"
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self._process.kill()
        self._process.wait()


# --- the filesystem --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _passed_on() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from None


class _Operations(pyfuse3.Operations):
    """An inode is known by the number that it has in the backing directory."""

    supports_dot_lookup = False

    def __init__(self, backing: Path, faults: Path, *, writeback: bool) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback
        self._faults_path = faults
        self._paths: dict[int, set[str]] = defaultdict(set)
        self._paths[pyfuse3.ROOT_INODE].add(str(backing))
        self._root = backing.stat().st_ino
        self._open: dict[int, tuple[int, str]] = {}
        self._by_inode: dict[int, set[int]] = defaultdict(set)
        self._last: dict[int, os.stat_result] = {}
        self._ctimes: dict[int, int] = {}

    # -- faults ----------------------------------------------------------------------------------------

    def _meet_fault(self, operation: str, name: str) -> None:
        for fault in json.loads(self._faults_path.read_text()):
            fits = fault["operation"] == operation or (fault["operation"] == "*" and operation in CHANGING)
            if fits and fnmatchcase(name, fault["name"]):
                raise FUSEError(fault["code"])

    # -- names -----------------------------------------------------------------------------------------

    def _path(self, inode: int) -> str:
        paths = self._paths[inode]
        if not paths:
            raise FUSEError(errno.ESTALE)
        return next(iter(paths))

    def _below(self, parent: int, name: bytes) -> str:
        return f"{self._path(parent)}/{os.fsdecode(name)}"

    def _number(self, status: os.stat_result) -> int:
        return pyfuse3.ROOT_INODE if status.st_ino == self._root else status.st_ino

    def _entry(self, status: os.stat_result) -> EntryAttributes:
        entry = EntryAttributes()
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_atime_ns"):
            setattr(entry, name, getattr(status, name))
        entry.st_ino = InodeT(self._number(status))
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = self._ctimes.get(status.st_ino, status.st_ctime_ns)
        entry.st_blksize, entry.st_blocks = 4096, status.st_blocks
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _stat(self, inode: int) -> os.stat_result:
        with _passed_on():
            if self._paths[inode]:
                self._last[inode] = os.lstat(self._path(inode))
            elif self._by_inode[inode]:
                self._last[inode] = os.fstat(next(iter(self._by_inode[inode])))
        # The kernel may ask once more for one that is gone: to bring its times to the disk.
        return self._last[inode]

    async def lookup(self, parent_inode: InodeT, name: Any, ctx: RequestContext) -> EntryAttributes:
        path = self._below(parent_inode, name)
        with _passed_on():
            status = os.lstat(path)
        self._paths[self._number(status)].add(path)
        return self._entry(status)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Paths are few, and kept."""

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        return self._entry(self._stat(inode))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        target = next((each for each in (fh, *self._by_inode[inode], *self._paths[inode]) if each), None)
        if target is None:
            return self._entry(self._stat(inode))
        self._meet_fault("setattr", os.path.basename(str(next(iter(self._paths[inode]), ""))))
        if fields.update_ctime:
            # A kernel that keeps pages keeps this time as well, and brings it here before it forgets the
            # inode, be it for want of memory. The backing file's own is that of what was done to it.
            self._ctimes[inode] = attr.st_ctime_ns
        with _passed_on():
            if fields.update_size:
                os.truncate(target, attr.st_size)
            if fields.update_mode:
                os.chmod(target, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                os.chown(target, uid, attr.st_gid if fields.update_gid else -1)
            if fields.update_atime or fields.update_mtime:
                status = self._stat(inode)
                atime = attr.st_atime_ns if fields.update_atime else status.st_atime_ns
                os.utime(target, ns=(atime, attr.st_mtime_ns if fields.update_mtime else status.st_mtime_ns))
        return self._entry(self._stat(inode))

    async def mknod(
        self, parent_inode: InodeT, name: Any, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        path = self._below(parent_inode, name)
        with _passed_on():
            os.mknod(path, mode, rdev)
            os.chmod(path, stat.S_IMODE(mode))
        return await self.lookup(parent_inode, name, ctx)

    async def mkdir(
        self, parent_inode: InodeT, name: Any, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        self._meet_fault("mkdir", os.fsdecode(name))
        path = self._below(parent_inode, name)
        with _passed_on():
            os.mkdir(path, stat.S_IMODE(mode))
        return await self.lookup(parent_inode, name, ctx)

    async def unlink(self, parent_inode: InodeT, name: Any, ctx: RequestContext) -> None:
        self._meet_fault("unlink", os.fsdecode(name))
        path = self._below(parent_inode, name)
        with _passed_on():
            number = os.lstat(path).st_ino
            os.unlink(path)
        self._paths[number].discard(path)

    async def rmdir(self, parent_inode: InodeT, name: Any, ctx: RequestContext) -> None:
        path = self._below(parent_inode, name)
        with _passed_on():
            number = os.lstat(path).st_ino
            os.rmdir(path)
        self._paths[number].discard(path)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: Any,
        parent_inode_new: InodeT,
        name_new: Any,
        flags: pyfuse3.FlagT,
        ctx: RequestContext,
    ) -> None:
        self._meet_fault("rename", os.fsdecode(name_old))
        old, new = self._below(parent_inode_old, name_old), self._below(parent_inode_new, name_new)
        with _passed_on():
            number = os.lstat(old).st_ino
            with contextlib.suppress(FileNotFoundError):
                self._paths[os.lstat(new).st_ino].discard(new)
            os.rename(old, new)
        self._paths[number].discard(old)
        self._paths[number].add(new)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: Any, ctx: RequestContext
    ) -> EntryAttributes:
        self._meet_fault("link", os.fsdecode(new_name))
        with _passed_on():
            os.link(self._path(inode), self._below(new_parent_inode, new_name))
        return await self.lookup(new_parent_inode, new_name, ctx)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._path(fh)
        for number, name in enumerate(sorted(os.listdir(directory))[start_id:], start_id + 1):
            with _passed_on():
                status = os.lstat(f"{directory}/{name}")
            self._paths[self._number(status)].add(f"{directory}/{name}")
            entry = self._entry(status)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(os.fsencode(name)), entry, number):
                return

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = os.statvfs(self._path(pyfuse3.ROOT_INODE))
        data = pyfuse3.StatvfsData()
        for name in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
        ):
            setattr(data, name, getattr(found, name))
        return data

    # -- files -----------------------------------------------------------------------------------------

    def _opened(self, path: str, flags: int) -> FileInfo:
        # The kernel reads what a program only writes, when it keeps pages.
        with _passed_on():
            fd = os.open(path, flags & ~(os.O_ACCMODE | os.O_EXCL | os.O_APPEND) | os.O_RDWR, 0o600)
        self._open[fd] = (fd, os.path.basename(path))
        self._by_inode[os.fstat(fd).st_ino].add(fd)
        return FileInfo(fh=FileHandleT(fd), keep_cache=self.enable_writeback_cache)

    async def open(self, inode: InodeT, flags: pyfuse3.FlagT, ctx: RequestContext) -> FileInfo:
        path = self._path(inode)
        self._meet_fault("open", os.path.basename(path))
        return self._opened(path, flags & ~os.O_CREAT)

    async def create(
        self, parent_inode: InodeT, name: Any, mode: ModeT, flags: pyfuse3.FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._meet_fault("create", os.fsdecode(name))
        path = self._below(parent_inode, name)
        info = self._opened(path, flags | os.O_CREAT)
        with _passed_on():
            os.chmod(path, stat.S_IMODE(mode))
            self._ctimes.pop(os.lstat(path).st_ino, None)  # of an earlier file with this number
        return info, await self.lookup(parent_inode, name, ctx)

    def _name_of(self, fh: int) -> str:
        return self._open[fh][1]

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self._meet_fault("read", self._name_of(fh))
        with _passed_on():
            return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self._meet_fault("write", self._name_of(fh))
        with _passed_on():
            return os.pwrite(fh, buf, off)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self._meet_fault("fsync", self._name_of(fh))
        with _passed_on():
            os.fdatasync(fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self._meet_fault("fsync", os.path.basename(self._path(fh)))

    async def flush(self, fh: FileHandleT) -> None:
        """Nothing is kept here."""

    async def release(self, fh: FileHandleT) -> None:
        fd, _ = self._open.pop(fh)
        self._by_inode[os.fstat(fd).st_ino].discard(fd)
        os.close(fd)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backing", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("faults", type=Path)
    parser.add_argument("--writeback", action="store_true")
    options = parser.parse_args()
    operations = _Operations(options.backing, options.faults, writeback=options.writeback)
    pyfuse3.init(operations, str(options.path), {"fsname=faultydisk", "default_permissions"})
    try:
        trio.run(cast("Any", pyfuse3.main))
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    _main()
