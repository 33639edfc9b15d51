"""The process runs out of file descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from tests.local.kit import errno_of
from tests.mount.conftest import NewVolume
from tests.mount.conftest import own_volume as own_volume
from tests.mount.conftest import pytestmark as needs_fuse

pytestmark = needs_fuse

LIMIT = 240
FILES = 400


def test_the_limit_is_raised_at_the_start() -> None:
    code = (
        "import resource; from s3blobfs.process import raise_descriptor_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 512));"
        "print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["512", "512", "512"]


def test_many_files_open_at_once(own_volume: NewVolume) -> None:
    """Callers are told; whoever can do without local files, and what keeps the mount going, goes on."""
    with own_volume("versioned-cached") as volume:
        volume.expected_logs.append("is read past the cache")
        root = volume.mountpoint
        (root / "cached").write_bytes(b"cached")
        volume.remount()
        pid = volume.pid
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= LIMIT
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, hard))
        opened: dict[int, bool] = {}
        try:
            for number in range(FILES):
                fd = os.open(root / f"f{number}", os.O_WRONLY | os.O_CREAT)
                failed = errno_of(lambda fd=fd, number=number: os.pwrite(fd, b"%d" % number, 0))  # type: ignore[misc]
                assert failed in ("", "ENFILE")
                opened[fd] = not failed
            written = [number for number, ok in enumerate(opened.values()) if ok]
            assert 0 < len(written) < LIMIT
            assert (root / "cached").read_bytes() == b"cached"
            assert volume.pid == pid
            (root / "directory").mkdir()
        finally:
            for fd in opened:
                os.close(fd)
        assert errno_of(lambda: (root / "later").write_bytes(b"later")) == ""
        volume.remount()
        for number in range(FILES):
            expected = b"%d" % number if number in written else b""
            assert (root / f"f{number}").read_bytes() == expected
        assert (root / "later").read_bytes() == b"later"
