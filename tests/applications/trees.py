"""Trees of files: made, and described so that two can be compared."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from pathlib import Path

FULL_SIZE = os.environ.get("S3BLOBFS_APPLICATIONS") == "full"
"""As large as people's own work is, which takes a quarter of an hour; otherwise a tenth of it."""

Described = dict[bytes, tuple[object, ...]]


def run(*command: str | Path, cwd: Path, timeout: float = 300, **environment: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, (command, done.stdout[-4000:], done.stderr[-4000:])
    return done.stdout


def make_tree(root: Path, files: int, *, seed: int = 1, per_directory: int = 100) -> None:
    """Small files of random sizes (up to 8 KiB, and some of 300 KB), in directories of ``per_directory``."""
    randomness = random.Random(seed)
    for number in range(files):
        if number % per_directory == 0:
            directory = root / f"d{number // per_directory // 10}" / f"d{number // per_directory}"
            directory.mkdir(parents=True)
        size = 300_000 if number % 500 == 499 else randomness.randrange(8192)
        (directory / f"file{number}").write_bytes(randomness.randbytes(size))


def seen(root: Path) -> Described:
    """What is below a directory: for each path its type, mode, owner, links, time and content."""
    described: Described = {}
    top = os.fsencode(root)
    for directory, _, names in os.walk(top):
        described[os.path.relpath(directory, top)] = _describe(directory)
        for name in names:
            path = os.path.join(directory, name)
            described[os.path.relpath(path, top)] = _describe(path)
    return described


def _describe(path: bytes) -> tuple[object, ...]:
    status = os.lstat(path)
    content: object = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, content
