"""The disk of the cache directory becomes read-only, as the kernel makes it after an error, or is so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import unique_bucket_name
from tests.local.kit import OnDisk, errno_of, overwrite
from tests.mount.conftest import KINDS
from tests.mount.conftest import pytestmark as needs_fuse
from tests.support.faultydisk import FaultyDisk
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server

pytestmark = needs_fuse

OLD, NEW = b"old" * 1000, b"new" * 1000


class _Tmpfs(FaultyDisk):
    """A disk that can really be remounted."""

    def __enter__(self) -> _Tmpfs:
        self._mount("-t", "tmpfs", "-o", "size=1g,mode=700", "tmpfs")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def remount(self, how: str) -> None:
        self._mount("-o", f"remount,{how}")

    def _mount(self, *options: str) -> None:
        result = subprocess.run(
            ["mount", *options, str(self.path)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {result.stderr.strip()}")


@contextmanager
def on_tmpfs(server: S3Server, kind: str, directory: Path) -> Iterator[tuple[OnDisk, _Tmpfs]]:
    with _Tmpfs(directory) as disk:
        volume = MountedVolume(
            server,
            unique_bucket_name(),
            directory,
            mkfs_options=KINDS[kind],
            mount_options=["--cache-dir", str(disk.path / "tier")],
            expected_logs=["is read past the cache"],
        )
        with mounted(volume):
            yield OnDisk(volume, disk), disk


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")
@pytest.mark.parametrize("kind", ["versioned-cached", "digest-uncached"])
def test_under_a_mount(weed_server: S3Server, kind: str, tmp_path: Path) -> None:
    with on_tmpfs(weed_server, kind, tmp_path) as (it, disk):
        (it.root / "cached").write_bytes(OLD)
        (it.root / "gone").write_bytes(NEW)
        it.forget_pages()
        for path in (disk.path / "tier" / "cache").rglob("*@*"):
            if path.read_bytes() == NEW:
                it.volume.umount()
                path.unlink()
                it.volume.mount()
        disk.remount("ro")
        assert overwrite(it.root / "cached", NEW) == "EROFS"
        assert overwrite(it.root / "new", NEW) == "EROFS"
        assert (it.root / "cached").read_bytes() == OLD
        assert (it.root / "gone").read_bytes() == NEW  # from S3, and not into the cache
        (it.root / "cached").chmod(0o600)
        (it.root / "directory").mkdir()
        tier = it.status()["tier"]
        assert tier["read_only"] is True
        assert "Read-only file system" in tier["last_error"]
        disk.remount("rw")
        assert it.status()["tier"]["read_only"] is False
        assert overwrite(it.root / "new", NEW) == ""
        assert overwrite(it.root / "cached", NEW) == ""
        it.forget_pages()
        for name in ("new", "cached", "gone"):
            assert (it.root / name).read_bytes() == NEW


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")
def test_at_the_mount(weed_server: S3Server, tmp_path: Path) -> None:
    with on_tmpfs(weed_server, "versioned-cached", tmp_path) as (it, disk):
        (it.root / "a").write_bytes(OLD)
        it.volume.umount()
        disk.remount("ro")
        with pytest.raises(AssertionError, match="Read-only file system") as refused:
            it.volume.mount()
        assert str(refused.value).count("s3blobfs: ") == 1, "not one line"
        disk.remount("rw")
        it.volume.mount()
        assert (it.root / "a").read_bytes() == OLD
        assert errno_of((it.root / "a").read_bytes) == ""
