"""The disk of the cache directory answers with errors, under a mount in use."""

from __future__ import annotations

import errno
import os

import pytest

from tests.local.kit import errno_of, on_disk, overwrite
from tests.mount.conftest import pytestmark as needs_fuse
from tests.support.faultydisk import Fault
from tests.support.servers import S3Server

pytestmark = needs_fuse

OLD = b"old" * 40_000
NEW = b"new" * 40_000
UNSYNCED = "the newest cached files may be dropped"
"""syncfs(2) tells of the error as well."""
KINDS = pytest.mark.parametrize("kind", ["digest-cached", "versioned-uncached"])
DURABILITIES = pytest.mark.parametrize("durability", ["s3", "disk"])


@pytest.mark.parametrize(
    ("kind", "operation", "code"),
    [
        ("digest-cached", "write", errno.EIO),
        ("digest-cached", "write", errno.ENOSPC),
        ("digest-cached", "create", errno.EROFS),
        ("versioned-uncached", "write", errno.EIO),
        ("versioned-uncached", "create", errno.EIO),
    ],
)
def test_a_write_that_fails_leaves_the_old_content(
    weed_server: S3Server, kind: str, operation: str, code: int
) -> None:
    with on_disk(weed_server, kind) as it:
        (it.root / "a").write_bytes(OLD)
        it.disk.fail(Fault(operation, code))
        assert overwrite(it.root / "a", NEW) == errno.errorcode[code]
        assert overwrite(it.root / "new", NEW) == errno.errorcode[code]
        assert (it.root / "a").read_bytes() == OLD
        assert os.strerror(code) in it.status()["tier"]["last_error"]
        it.disk.heal()
        assert overwrite(it.root / "b", NEW) == ""
        it.forget_pages()
        assert (it.root / "a").read_bytes() == OLD
        assert (it.root / "b").read_bytes() == NEW
        assert (it.root / "new").read_bytes() == b""
        assert it.status()["tier"]["last_error"] is None


@DURABILITIES
def test_a_file_that_cannot_get_its_second_name(weed_server: S3Server, durability: str) -> None:
    logs = ["stays staged after its last close"]
    with on_disk(weed_server, "versioned-cached", durability=durability, expected_logs=logs) as it:
        it.disk.fail(Fault("rename", errno.EIO))
        assert overwrite(it.root / "a", NEW) == "EIO"
        it.disk.heal()
        it.volume.command("sync", it.root)
        it.forget_pages()
        assert (it.root / "a").read_bytes() == NEW


def test_a_cached_file_that_cannot_be_read(weed_server: S3Server) -> None:
    logs = ["cannot be used and is dropped"]
    with on_disk(weed_server, "versioned-cached", expected_logs=logs) as it:
        (it.root / "a").write_bytes(OLD)
        it.forget_pages()
        assert it.status()["tier"]["cached_files"] == 1
        it.disk.fail(Fault("read", errno.EIO))
        assert (it.root / "a").read_bytes() == OLD
        assert it.status()["tier"]["cached_files"] == 0
        assert "Input/output error" in it.status()["tier"]["last_error"]
        it.disk.heal()
        it.forget_pages()
        assert (it.root / "a").read_bytes() == OLD
        assert it.status()["tier"]["cached_files"] == 1


def test_a_cached_file_that_cannot_be_read_is_overwritten_in_part(weed_server: S3Server) -> None:
    """Its content is copied first; from S3, then."""
    with on_disk(weed_server, "versioned-cached", expected_logs=["cannot be used and is dropped"]) as it:
        (it.root / "a").write_bytes(OLD)
        it.forget_pages()
        it.disk.fail(Fault("read", errno.EIO, "*@*"))
        assert overwrite(it.root / "a", b"new") == ""
        it.disk.heal()
        it.forget_pages()
        assert (it.root / "a").read_bytes() == b"new" + OLD[3:]


# --- the kernel forgets what could not be written -------------------------------------------------------


def _append(fd: int, data: bytes) -> None:
    assert os.write(fd, data) == len(data)


@KINDS
def test_after_a_failed_fsync_nothing_is_acknowledged(weed_server: S3Server, kind: str) -> None:
    """The second fsync succeeds on the disk: the kernel has dropped, or cleaned, the pages of the first."""
    logs = ["is given up", UNSYNCED]
    with on_disk(weed_server, kind, durability="disk", writeback=True, expected_logs=logs) as it:
        (it.root / "a").write_bytes(OLD)
        it.volume.command("sync", it.root)
        fd = os.open(it.root / "a", os.O_WRONLY | os.O_TRUNC)
        _append(fd, NEW)
        it.disk.fail(Fault("write", errno.EIO))
        assert errno_of(lambda: os.fsync(fd)) == "EIO"
        it.disk.heal()
        assert errno_of(lambda: os.fsync(fd)) == "EIO"
        assert errno_of(lambda: os.pwrite(fd, b"x", 0)) == "EIO"
        assert errno_of(lambda: (it.root / "a").read_bytes()) == "EIO"
        assert errno_of(lambda: os.close(fd)) == "EIO"
        assert (it.root / "a").read_bytes() == OLD
        assert it.status()["filesystem"]["dirty_files"] == 0
        it.forget_pages()
        assert (it.root / "a").read_bytes() == OLD


@KINDS
def test_what_the_kernel_could_not_write_by_itself_is_not_stored(weed_server: S3Server, kind: str) -> None:
    """With durability s3 nobody calls fsync on the local disk; a page that is lost before the content is
    hashed would be stored as if it had been written so."""
    with on_disk(weed_server, kind, writeback=True, expected_logs=["is given up", UNSYNCED]) as it:
        (it.root / "a").write_bytes(OLD)
        fd = os.open(it.root / "a", os.O_WRONLY | os.O_TRUNC)
        _append(fd, NEW)
        it.disk.fail(Fault("write", errno.EIO))
        it.write_back()
        it.disk.heal()
        assert errno_of(lambda: os.close(fd)) == "EIO"
        assert (it.root / "a").read_bytes() == OLD
        it.forget_pages()
        assert (it.root / "a").read_bytes() == OLD


def test_emptying_a_file_begins_anew(weed_server: S3Server) -> None:
    with on_disk(
        weed_server, "digest-cached", durability="disk", writeback=True, expected_logs=[UNSYNCED]
    ) as it:
        fd = os.open(it.root / "a", os.O_WRONLY | os.O_CREAT)
        _append(fd, OLD)
        it.disk.fail(Fault("write", errno.EIO))
        assert errno_of(lambda: os.fsync(fd)) == "EIO"
        it.disk.heal()
        os.ftruncate(fd, 0)
        assert os.pwrite(fd, NEW, 0) == len(NEW)
        os.fsync(fd)
        os.close(fd)
        it.forget_pages()
        assert (it.root / "a").read_bytes() == NEW


def test_what_an_earlier_fsync_acknowledged_is_kept(weed_server: S3Server) -> None:
    logs = ["stays staged until the next mount", "cannot be sealed", UNSYNCED]
    with on_disk(weed_server, "digest-cached", durability="disk", writeback=True, expected_logs=logs) as it:
        fd = os.open(it.root / "a", os.O_WRONLY | os.O_CREAT)
        _append(fd, OLD)
        os.fsync(fd)
        _append(fd, NEW)
        it.disk.fail(Fault("write", errno.EIO))
        assert errno_of(lambda: os.fsync(fd)) == "EIO"
        it.disk.heal()
        assert errno_of(lambda: os.close(fd)) == "EIO"
        assert errno_of(lambda: (it.root / "a").read_bytes()) == "EIO"
        result = it.volume.command("umount", it.root, check=False)
        assert result.returncode != 0 and "could not be brought to the disk" in result.stderr
        it.volume.mount()
        assert (it.root / "a").read_bytes()[: len(OLD)] == OLD
