"""The tier's directories on the local disk, and the one place where a file gets its name.

    DIRECTORY/
      staging/             files being written: bin_<random>.tmp, sealed_<random>
      session.json         see :mod:`s3blobfs.tier.session`
      cache/<store id>/    whole immutable contents under their cache names; .* is unfinished or doomed

Directories have mode 0700 and files 0600. Everything is opened relative to a directory's descriptor and
without following symbolic links, so that what others put in the place of one of our names is refused, not
followed. Cache names come from S3: they are data, see :func:`entry_name`.

A directory is one mount's: it is locked (``flock(2)``) as long as the layout is open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from s3blobfs.config import MIB
from s3blobfs.errors import TierError, UsageError
from s3blobfs.process import of_local_file
from s3blobfs.tier.localio import Disposal, SharedFd, tier_error

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

NAME_SAFE_BYTES = 200
"""Longer cache names are hashed; well below NAME_MAX, which some filesystems have lower than 255."""

INLINE_FREE_BYTES = 16 * MIB
"""Giving back more blocks than this takes the disk long enough for a thread (above 1 ms)."""
NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV})
"""The disk has no (more) hard links to give."""
TEMPORARY_PREFIX = "."
"""Unfinished or doomed files; what an earlier mount left of them is removed at start."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]*")
_TEMPORARY = re.compile(r"(bin_.*\.tmp|sealed_.*|hashed_.*)")
"""Names that mean something to us: no name from outside may look like one."""


def entry_name(cache_name: str) -> str:
    """The file name under which ``cache_name`` is kept: itself when it is harmless, else a digest of it.

    Distinct cache names never share a file name (as far as SHA-256 goes): what could be taken for a hashed
    name is hashed itself. The result holds no ``/``, does not begin with a dot and is never empty."""
    if (
        _SAFE_NAME.fullmatch(cache_name)
        and len(cache_name) <= NAME_SAFE_BYTES
        and not _TEMPORARY.fullmatch(cache_name)
    ):
        return cache_name
    return "hashed_" + hashlib.sha256(cache_name.encode("utf-8", "surrogatepass")).hexdigest()


class Directory:
    """An open directory of ours. Methods raise ``OSError``; names are single components."""

    __slots__ = ("_text", "fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._text = str(path)
        self.fd = fd

    def locate(self, name: str) -> str:
        """The path of a file, for a message."""
        return f"{self._text}/{name}"

    def create(self, name: str) -> int:
        """A new file, open for reading and writing; ``FileExistsError`` when the name is taken."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, FILE_MODE, dir_fd=self.fd)
        try:
            return of_local_file(fd)
        except OSError:
            os.unlink(name, dir_fd=self.fd)
            raise

    def open(self, name: str, *, writable: bool = False) -> int:
        """An existing regular file. Anything else, symbolic links included, is ``OSError``."""
        # O_NONBLOCK: a FIFO in the place of a file must not hang the caller. Regular files ignore it.
        flags = os.O_RDWR if writable else os.O_RDONLY
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = of_local_file(os.open(name, flags, dir_fd=self.fd))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{self.path / name} is not a regular file")
        except OSError:
            os.close(fd)
            raise
        return fd

    def status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def unlink(self, name: str) -> bool:
        """False when there was no such file."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        return os.listdir(self.fd)  # noqa: PTH208 - of a descriptor, not of a path

    def close(self) -> None:
        os.close(self.fd)


class TierLayout:
    """Makes and opens the directories. :class:`~s3blobfs.errors.UsageError` when that cannot be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stores: dict[int, Directory] = {}
        self._opened: list[Directory] = []
        self._doomed = itertools.count()
        self.disposal = Disposal()
        self.last_error: str | None = None
        """What the disk refused last, in this mount."""
        self.last_error_ns: int | None = None
        try:
            for each in reversed([directory, *directory.parents]):
                # Not by mkdir(parents=True), which gives parents the mode that the umask allows.
                if not each.exists():
                    each.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            self.root = self._open_directory(directory, None)
            self._refuse_if_open_to_all(self.root)
            self._lock_root()
            self.staging = self._make("staging", self.root)
            self._cache = self._make("cache", self.root)
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise UsageError(
                f"cannot use {directory} as the local tier: {reason}; choose another directory"
            ) from error
        except UsageError:
            self.close()
            raise

    def close(self) -> None:
        """Close the directories and let another mount have them. May be called twice. Blocks until what
        is freed in the background is freed: that needs the directories open."""
        self.disposal.wait()
        for directory in self._opened:
            directory.close()
        self._opened.clear()
        self._stores.clear()

    # -- errors ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Maps ``OSError`` of the block to :class:`TierError`, and remembers it for the status; ``what`` says
        what was tried, naming the file."""
        try:
            yield
        except OSError as error:
            raise self.error(error, what) from error

    def error(self, error: OSError, what: str) -> TierError:
        """``error`` as the tier's, remembered; raise it ``from error``."""
        mapped = tier_error(error, what)
        self.last_error, self.last_error_ns = str(mapped), time.time_ns()
        return mapped

    # -- directories -----------------------------------------------------------------------------------

    def store(self, store_id: int) -> Directory:
        """The cache directory of a store, made when it is missing. Raises ``OSError``."""
        directory = self._stores.get(store_id)
        if directory is None:
            try:
                directory = self._stores[store_id] = self._make(str(store_id), self._cache)
            except UsageError as error:
                raise OSError(errno.ELOOP, str(error)) from error
        return directory

    def store_ids(self) -> list[int]:
        """The stores that have a cache directory."""
        return sorted(int(name) for name in self._cache.names() if name.isascii() and name.isdecimal())

    def _make(self, name: str, parent: Directory) -> Directory:
        # Whether what exists is a directory, and ours, shows when it is opened.
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=parent.fd)
        directory = self._open_directory(parent.path / name, parent)
        status = os.fstat(directory.fd)
        if status.st_uid != os.geteuid():
            raise UsageError(
                f"{directory.path} belongs to another user; choose another directory for the local tier"
            )
        if stat.S_IMODE(status.st_mode) != DIRECTORY_MODE:
            os.fchmod(directory.fd, DIRECTORY_MODE)
        return directory

    def _refuse_if_open_to_all(self, directory: Directory) -> None:
        """Whoever may write to it could exchange what is in it. It is the user's, so its mode is his, too."""
        status = os.fstat(directory.fd)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
            raise UsageError(
                f"{directory.path} belongs to another user, or everybody may write to it; choose another "
                "directory for the local tier"
            )

    def _open_directory(self, path: Path, parent: Directory | None) -> Directory:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags) if parent is None else os.open(path.name, flags, dir_fd=parent.fd)
        except OSError as error:
            if path.is_symlink():
                raise UsageError(
                    f"{path} is a symbolic link; give the local tier's directory by its own name"
                ) from error
            raise
        directory = Directory(path, fd)
        self._opened.append(directory)
        return directory

    def _lock_root(self) -> None:
        try:
            fcntl.flock(self.root.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{self.directory} is the local tier of another mount; unmount it or choose another directory"
            ) from error

    # -- names -----------------------------------------------------------------------------------------

    def rename(self, source: Directory, name: str, target: Directory, new_name: str) -> None:
        """Atomic; survives a crash of the process, not necessarily of the machine. Raises ``OSError``."""
        os.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)

    def rename_durably(self, source: Directory, name: str, target: Directory, new_name: str) -> None:
        """Write-fsync-rename: after a crash of the machine too the new name has the whole content, or is
        what it was before. Blocks for the disk. Raises ``OSError``."""
        fd = source.open(name)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self.rename(source, name, target, new_name)
        os.fsync(target.fd)
        if source is not target:
            os.fsync(source.fd)

    def link(self, source: Directory, name: str, target: Directory, new_name: str) -> None:
        """A second name for the same file. Raises ``OSError``."""
        os.link(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)

    def unlink(self, directory: Directory, name: str, size_bytes: int = 0) -> bool:
        """False when there was no such file. The name is free at once; the blocks of a large file (give
        its size) are freed in the background. Raises ``OSError``."""
        if size_bytes <= INLINE_FREE_BYTES:
            return directory.unlink(name)
        doomed = f"{TEMPORARY_PREFIX}gone_{next(self._doomed)}"
        try:
            self.rename(directory, name, directory, doomed)
        except FileNotFoundError:
            return False
        self.disposal.add(partial(directory.unlink, doomed))
        return True

    def release(self, file: SharedFd, size_bytes: int) -> None:
        """Close a file whose name is gone: its blocks are freed by that."""
        if size_bytes <= INLINE_FREE_BYTES:
            file.release()
        else:
            self.disposal.add(file.release)
