"""Becoming a user who may do nothing but what everybody may, in a process that has begun as root.

The process gets a mount namespace of its own first, which ends with it: there everybody may open
``/dev/fuse``, as on machines with udev, and enter the directories that this Python and this package are in,
though one above them (``/root``) is closed to others.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

import s3blobfs

NOBODY = 65534
DEVICE = Path("/dev/fuse")

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def can_become_nobody() -> bool:
    """Root can, unless programs like fusermount3 get no rights here (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    return os.geteuid() == 0 and "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()


def become_nobody(directory: Path) -> None:
    """For good, with all that this process starts. ``directory``, which is empty and everybody may enter, is
    theirs from now on. ``OSError`` where the kernel refuses a step."""
    _call("unshare", _CLONE_NEWNS)
    _mount(None, Path("/"), None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", directory, "tmpfs", 0)
    _open_device(directory)
    _open_directories(directory)
    directory.chmod(0o755)
    os.chown(directory, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _open_device(directory: Path) -> None:
    node = directory / "fuse"
    os.mknod(node, stat.S_IFCHR, DEVICE.stat().st_rdev)
    node.chmod(0o666)
    _mount(str(node), DEVICE, None, _MS_BIND)


def _open_directories(directory: Path) -> None:
    """What is needed stays where it is; what is beside it below a closed directory is not there any more."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, filter(None, sys.path))}
    needed |= {Path(s3blobfs.__file__).parents[1], Path(__file__).parents[2]}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(path.resolve() for path in needed if path.is_dir()):
        above = next((each for each in reversed(path.parents) if not each.stat().st_mode & 0o001), None)
        if above is not None and not any(path.is_relative_to(each) for each in closed.get(above, [])):
            closed.setdefault(above, []).append(path)
    kept = [path for paths in closed.values() for path in paths]
    for number, path in enumerate(kept):
        aside = directory / str(number)
        aside.mkdir()
        _mount(str(path), aside, None, _MS_BIND | _MS_REC)
    for above in closed:
        _mount("tmpfs", above, "tmpfs", 0)
    for number, path in enumerate(kept):
        path.mkdir(parents=True)
        _mount(str(directory / str(number)), path, None, _MS_BIND | _MS_REC)


def _mount(source: str | None, target: Path, kind: str | None, flags: int) -> None:
    _call(
        "mount",
        None if source is None else source.encode(),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None,
    )


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")
