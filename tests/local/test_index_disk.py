"""The disk of the index answers with errors, under a mount in use."""

from __future__ import annotations

import errno
import os

import pytest

from s3blobfs.cli.failure import line_of
from s3blobfs.errors import IndexUnavailable
from tests.local.kit import errno_of, on_disk, overwrite
from tests.mount.conftest import pytestmark as needs_fuse
from tests.support.faultydisk import Fault
from tests.support.mounted import is_running
from tests.support.servers import S3Server

pytestmark = needs_fuse

OLD, NEW = b"old" * 1000, b"new" * 1000
LOGS = (
    "unmount and mount again",
    "nothing is uploaded any more",
    "cannot note in the index that",
    "index is not copied to the bucket any more",
    "no more objects are deleted in this mount",
    "stays staged after its last close",
    "cannot be sealed",
    "uploading .* failed",
    "cannot be copied into it",
)


@pytest.mark.parametrize(
    ("durability", "operation", "code"),
    [("s3", "write", errno.EIO), ("disk", "write", errno.ENOSPC), ("disk", "fsync", errno.EIO)],
)
def test_nothing_is_acknowledged_that_the_index_does_not_have(
    weed_server: S3Server, durability: str, operation: str, code: int
) -> None:
    with on_disk(weed_server, "digest-cached", index=True, durability=durability, expected_logs=LOGS) as it:
        (it.root / "a").write_bytes(OLD)
        it.volume.command("sync", it.root)
        pid = it.volume.pid
        it.disk.fail(Fault(operation, code, "index.db*"))
        if durability == "disk" and operation == "fsync":
            fd = os.open(it.root / "a", os.O_WRONLY)
            os.pwrite(fd, NEW, 0)
            assert errno_of(lambda: os.fsync(fd)) == "EIO"
            errno_of(lambda: os.close(fd))
        else:
            assert overwrite(it.root / "a", NEW) == "EIO"
        assert is_running(pid)
        assert errno_of((it.root / "new").mkdir) == "EIO"
        assert errno_of(lambda: (it.root / "b").write_bytes(NEW)) == "EIO"
        assert it.status()["mount"]["pid"] == pid
        it.disk.heal()
        # What was refused once stays refused: nobody knows what of it is on the disk.
        assert errno_of((it.root / "new").mkdir) == "EIO"
        result = it.volume.command("umount", it.root, check=False)
        assert result.returncode != 0 and "unmount and mount again" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        it.volume.mount()
        assert (it.root / "a").read_bytes() in (OLD, NEW)
        assert not (it.root / "new").exists()
        assert overwrite(it.root / "c", NEW) == ""


def test_the_error_says_what_to_do() -> None:
    assert "mount again" in line_of(
        IndexUnavailable("the index cannot be committed; unmount and mount again")
    )
