"""The driver that calls the filesystem's operations with no mount in the loop.

It does what the kernel does before it asks: walks paths, follows no symbolic links, keeps the offset of
appends. The filesystem runs in a thread of its own, since the machine is not async.
"""

from __future__ import annotations

import errno
import os
import queue
import shutil
import stat
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import trio

from s3blobfs.errors import FilesystemError, S3BlobFSError
from s3blobfs.fs.attributes import AttributeChanges, Attributes, Caller
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fs.handles import FileHandle
from s3blobfs.fuse.errno_table import errno_of
from tests.model.driver import Status, Where
from tests.support.rig import ROOT, Rig, Setup, open_rig

T = TypeVar("T")

SUPERUSER = Caller(uid=0, gid=0)
XATTR_CREATE, XATTR_REPLACE = 1, 2
END = 2**62
"""Beyond the end of any file: where the kernel, which knows the size, would have an append go."""


class RigThread:
    """A rig served by a trio loop in another thread; ``call`` runs one async function there."""

    def __init__(self, setup: Setup) -> None:
        self._started: queue.Queue[Rig | BaseException] = queue.Queue()
        self._stop: trio.Event
        self._token: trio.lowlevel.TrioToken
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(setup,), daemon=True)
        self._thread.start()
        started = self._started.get(timeout=60)
        if isinstance(started, BaseException):
            raise started
        self.rig = started

    def _run(self, setup: Setup) -> None:
        async def main() -> None:
            self._stop = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            async with open_rig(setup) as rig:
                self._started.put(rig)
                await self._stop.wait()

        try:
            trio.run(main)
        except BaseException as error:
            self._failure = error
            self._started.put(error)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def stop(self) -> None:
        """Close in order; raises what went wrong in there, a failed check of the index above all."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(timeout=120)
        assert not self._thread.is_alive(), "the filesystem hangs while it closes"
        if self._failure is not None:
            raise self._failure


class DirectDriver:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._thread = RigThread(setup)
        self._files: dict[int, int] = {}
        self._inodes: dict[int, int] = {}

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        try:
            return self._thread.call(function, *args)
        except S3BlobFSError as error:
            raise OSError(errno_of(error), str(error)) from error

    # -- what the kernel does --------------------------------------------------------------------------

    async def _walk(self, path: bytes, *, follow: bool = False) -> Attributes:
        """The inode at the end of a path. The machine's symbolic links point nowhere: to follow one is
        ENOENT."""
        fs = self._thread.rig.fs
        found = await fs.getattr(ROOT)
        for name in filter(None, path.split(b"/")):
            parent = found
            if stat.S_ISLNK(parent.mode):
                raise FilesystemError(errno.ENOENT)
            if not parent.is_directory:
                raise FilesystemError(errno.ENOTDIR)
            entry = await fs.lookup(parent.inode_id, name)
            if entry is None:
                raise FilesystemError(errno.ENOENT)
            found = entry
            await fs.forget([(entry.inode_id, 1)])
        if follow and stat.S_ISLNK(found.mode):
            raise FilesystemError(errno.ENOENT)
        return found

    async def _parent(self, path: bytes) -> tuple[int, bytes]:
        directory, name = os.path.split(path)
        parent = await self._walk(directory, follow=True)
        if not parent.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        return parent.inode_id, name

    @property
    def _fs(self) -> Filesystem:
        return self._thread.rig.fs

    # -- names -----------------------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int) -> None:
        async def do() -> None:
            parent, name = await self._parent(path)
            made = await self._fs.mkdir(parent, name, mode & 0o1777 & ~UMASK, SUPERUSER)
            await self._fs.forget([(made.inode_id, 1)])

        self._call(do)

    def rmdir(self, path: bytes) -> None:
        async def do() -> None:
            await self._fs.rmdir(*await self._parent(path))

        self._call(do)

    def mkfifo(self, path: bytes, mode: int) -> None:
        async def do() -> None:
            parent, name = await self._parent(path)
            made = await self._fs.mknod(parent, name, stat.S_IFIFO | mode & ~UMASK, 0, SUPERUSER)
            await self._fs.forget([(made.inode_id, 1)])

        self._call(do)

    def symlink(self, target: bytes, path: bytes) -> None:
        async def do() -> None:
            parent, name = await self._parent(path)
            made = await self._fs.symlink(parent, name, target, SUPERUSER)
            await self._fs.forget([(made.inode_id, 1)])

        self._call(do)

    def readlink(self, path: bytes) -> bytes:
        async def do() -> bytes:
            return await self._fs.readlink((await self._walk(path)).inode_id)

        return self._call(do)

    def link(self, source: bytes, path: bytes) -> None:
        async def do() -> None:
            found = await self._walk(source)
            parent, name = await self._parent(path)
            # The kernel finds an existing name before it asks for a link to a directory.
            if await self._exists(parent, name):
                raise FilesystemError(errno.EEXIST)
            made = await self._fs.link(found.inode_id, parent, name)
            await self._fs.forget([(made.inode_id, 1)])

        self._call(do)

    async def _exists(self, parent: int, name: bytes) -> bool:
        entry = await self._fs.lookup(parent, name)
        if entry is not None:
            await self._fs.forget([(entry.inode_id, 1)])
        return entry is not None

    def unlink(self, path: bytes) -> None:
        async def do() -> None:
            await self._fs.unlink(*await self._parent(path))

        self._call(do)

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        async def do() -> None:
            old_parent, old_name = await self._parent(source)
            new_parent, new_name = await self._parent(target)
            old_entry = await self._walk_entry(old_parent, old_name)
            if old_entry is None:
                raise FilesystemError(errno.ENOENT)
            new_entry = await self._walk_entry(new_parent, new_name)
            if flags & 1 and new_entry is not None:
                raise FilesystemError(errno.EEXIST)
            if flags & 2 and new_entry is None:
                raise FilesystemError(errno.ENOENT)
            # lock_rename(): neither may be an ancestor of the other one's directory.
            if old_entry.is_directory and await self._is_above(old_entry.inode_id, target):
                raise FilesystemError(errno.EINVAL)
            if new_entry is not None and await self._is_above(new_entry.inode_id, source):
                raise FilesystemError(errno.EINVAL if flags & 2 else errno.ENOTEMPTY)
            await self._fs.rename(old_parent, old_name, new_parent, new_name, flags)

        self._call(do)

    async def _walk_entry(self, parent: int, name: bytes) -> Attributes | None:
        entry = await self._fs.lookup(parent, name)
        if entry is not None:
            await self._fs.forget([(entry.inode_id, 1)])
        return entry

    async def _is_above(self, inode_id: int, path: bytes) -> bool:
        """Whether the directory that holds ``path`` is or lies below the inode."""
        parts = os.path.dirname(path).split(b"/")
        for length in range(1, len(parts) + 1):
            if (await self._walk(b"/".join(parts[:length]))).inode_id == inode_id:
                return True
        return False

    # -- attributes ------------------------------------------------------------------------------------

    def stat(self, path: bytes) -> Status:
        async def do() -> Attributes:
            return await self._walk(path)

        return _status(self._call(do))

    def listdir(self, path: bytes) -> list[bytes]:
        async def do() -> list[bytes]:
            handle = await self._fs.opendir((await self._walk(path)).inode_id)
            names: list[bytes] = []
            after = 0
            while page := await self._fs.readdir(handle, after):
                names += [entry.name for entry in page]
                after = page[-1].cookie
            await self._fs.releasedir(handle)
            return sorted(name for name in names if name not in (b".", b".."))

        return self._call(do)

    def chmod(self, path: bytes, mode: int) -> None:
        self._setattr(path, AttributeChanges(mode=mode))

    def utime(self, path: bytes, mtime_ns: int) -> int:
        changes = AttributeChanges(atime_ns=mtime_ns, mtime_ns=mtime_ns)
        return self._setattr(path, changes).mtime_ns

    def truncate(self, path: bytes, size: int) -> None:
        self._setattr(path, AttributeChanges(size_bytes=size))

    def _setattr(self, path: bytes, changes: AttributeChanges) -> Attributes:
        async def do() -> Attributes:
            found = await self._walk(path)
            return await self._fs.setattr(found.inode_id, changes)

        return self._call(do)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        async def do() -> None:
            inode_id = (await self._walk(path)).inode_id
            if not await self._may_have_xattr(inode_id, name):
                raise FilesystemError(errno.EPERM)
            if flags:
                exists = name in await self._fs.listxattr(inode_id)
                if exists and flags & XATTR_CREATE:
                    raise FilesystemError(errno.EEXIST)
                if not exists and flags & XATTR_REPLACE:
                    raise FilesystemError(errno.ENODATA)
            await self._fs.setxattr(inode_id, name, value, SUPERUSER)

        self._call(do)

    async def _may_have_xattr(self, inode_id: int, name: bytes) -> bool:
        """xattr_permission() of the kernel: user.* is for files and directories."""
        mode = (await self._fs.getattr(inode_id)).mode
        return not name.startswith(b"user.") or stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        async def do() -> bytes:
            inode_id = (await self._walk(path)).inode_id
            if not await self._may_have_xattr(inode_id, name):
                raise FilesystemError(errno.ENODATA)
            return await self._fs.getxattr(inode_id, name)

        return self._call(do)

    def removexattr(self, path: bytes, name: bytes) -> None:
        async def do() -> None:
            inode_id = (await self._walk(path)).inode_id
            if not await self._may_have_xattr(inode_id, name):
                raise FilesystemError(errno.EPERM)
            await self._fs.removexattr(inode_id, name)

        self._call(do)

    def listxattr(self, path: bytes) -> list[bytes]:
        async def do() -> list[bytes]:
            return sorted(await self._fs.listxattr((await self._walk(path)).inode_id))

        return self._call(do)

    # -- bytes -----------------------------------------------------------------------------------------

    def open(self, number: int, path: bytes, flags: int, mode: int) -> None:
        async def do() -> tuple[int, int]:
            parent, name = await self._parent(path)
            found = await self._walk_entry(parent, name)
            if found is not None and stat.S_ISLNK(found.mode):
                exclusive = flags & os.O_CREAT and flags & os.O_EXCL
                raise FilesystemError(errno.EEXIST if exclusive else errno.ELOOP)
            if found is not None and flags & os.O_CREAT and flags & os.O_EXCL:
                raise FilesystemError(errno.EEXIST)
            if found is None and not flags & os.O_CREAT:
                raise FilesystemError(errno.ENOENT)
            if found is None:
                opened, made = await self._fs.create(parent, name, mode & ~UMASK, flags, SUPERUSER)
                await self._fs.forget([(made.inode_id, 1)])
                return opened.handle, made.inode_id
            opened = await self._fs.open(found.inode_id, flags & ~(os.O_CREAT | os.O_EXCL))
            return opened.handle, found.inode_id

        self._files[number], self._inodes[number] = self._call(do)

    def close(self, number: int) -> None:
        handle = self._files.pop(number)
        self._inodes.pop(number)

        async def do() -> None:
            try:
                await self._fs.flush(handle)
            finally:
                await self._fs.release(handle)

        self._call(do)

    def pread(self, number: int, offset: int, size: int) -> bytes:
        return bytes(self._call(self._fs.read, self._files[number], offset, size))

    def pwrite(self, number: int, offset: int, data: bytes) -> int:
        if not data:
            return self._empty_write(number)
        return self._call(self._fs.write, self._files[number], offset, data)

    def append(self, number: int, data: bytes) -> int:
        return self.pwrite(number, END, data)

    def _empty_write(self, number: int) -> int:
        """The kernel answers these without asking."""
        if not self._handle(number).writable:
            raise OSError(errno.EBADF, "not open for writing")
        return 0

    def ftruncate(self, number: int, size: int) -> None:
        async def do() -> None:
            if not self._handle(number).writable:
                raise FilesystemError(errno.EINVAL)
            await self._fs.setattr(self._inodes[number], AttributeChanges(size_bytes=size))

        self._call(do)

    def fsync(self, number: int) -> None:
        self._call(self._fs.fsync, self._files[number])

    def fstat(self, number: int) -> Status:
        return _status(self._call(self._fs.getattr, self._inodes[number]))

    def mapped_write(self, number: int, offset: int, data: bytes) -> None:
        self._call(self._fs.write, self._files[number], offset, data)  # so the kernel tells, sooner or later

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        if length <= 0:
            raise OSError(errno.EINVAL, "there is nothing to be allocated")
        if not self._handle(number).writable:
            raise OSError(errno.EBADF, "not open for writing")
        self._call(self._fs.fallocate, self._files[number], mode, offset, length)

    def copy_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int:
        """generic_copy_file_checks() of the kernel, and what it then asks for."""
        readable, writable = self._handle(source), self._handle(target)
        if not readable.readable or not writable.writable or writable.appends:
            raise OSError(errno.EBADF, "not open for that")
        length = max(0, min(length, readable.inode.size_bytes - offset))
        if readable.inode is writable.inode and abs(offset - target_offset) < length:
            raise OSError(errno.EINVAL, "the ranges overlap")
        if length == 0:
            return 0
        files = self._files
        return self._call(
            self._fs.copy_file_range, files[source], offset, files[target], target_offset, length
        )

    def append_at_once(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        async def do() -> None:
            async with trio.open_nursery() as nursery:
                for number, data in pieces:
                    nursery.start_soon(self._fs.write, self._files[number], END, data)

        self._call(do)

    def _handle(self, number: int) -> FileHandle:
        return self._fs._core.handles.file(self._files[number])

    def remount(self, where: Where) -> None:
        """Another machine is not for this driver, whose volume has no copy of its index."""
        self._thread.stop()
        if where is Where.EMPTY_CACHE:
            shutil.rmtree(self._setup.directory / "tier")
        self._thread = RigThread(self._setup)

    def stop(self) -> None:
        self._thread.stop()


UMASK = os.umask(0)
os.umask(UMASK)


def _status(attributes: Attributes) -> Status:
    sized = stat.S_ISREG(attributes.mode) or stat.S_ISLNK(attributes.mode)
    return Status(
        kind=stat.S_IFMT(attributes.mode),
        permissions=stat.S_IMODE(attributes.mode),
        nlink=attributes.nlink,
        size_bytes=attributes.size_bytes if sized else None,
        rdev=attributes.rdev,
    )
