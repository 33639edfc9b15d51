"""The mount is killed between any two steps: the acknowledged is there, the rest is whole, old or absent.

By default each failpoint is tried in two kinds of volume, which differ in everything. With
``S3BLOBFS_CRASH_GRID=full`` it is every kind, and the points are also killed at when they are reached later.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3blobfs.failpoints import Failpoint
from tests.conftest import unique_bucket_name
from tests.crash.kit import OTHER, Victim, keep_no_garbage
from tests.fs.calls import pattern
from tests.mount.conftest import KINDS
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server

FULL = os.environ.get("S3BLOBFS_CRASH_GRID") == "full"
PLACES = ("versioned-cached/s3", "digest-uncached/disk")
ALL_PLACES = tuple(f"{kind}/{durability}" for kind in KINDS for durability in ("s3", "disk"))

IN_PARTS = frozenset({Failpoint.PART_SENT, Failpoint.PART_COPIED})
ONCE = IN_PARTS | {Failpoint.MARKED, Failpoint.DELETED, Failpoint.FORGOTTEN}
"""Not reached a second time by the workload below."""
LARGE_BYTES = 33 * 1024 * 1024
"""Goes to S3 in parts."""

pytestmark = [
    pytest.mark.skipif(
        not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
    ),
    pytest.mark.timeout(300),
]

fresh = itertools.count(1)
"""Every content is another one."""


@pytest.fixture(scope="module", params=ALL_PLACES if FULL else PLACES)
def victim(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[Victim]:
    """One volume for all failpoints: each finds what the kills before it have left."""
    kind, _, durability = request.param.partition("/")
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-crash-"))
    volume = MountedVolume(
        weed_server,
        unique_bucket_name(),
        directory,
        mkfs_options=[*KINDS[kind], "--durability", durability],
        expected_logs=["this process will kill itself"],
    )
    try:
        volume.mkfs()
        keep_no_garbage(volume)
        volume.mount()
        (volume.mountpoint / OTHER).mkdir()
        other = volume.mountpoint / OTHER
        volume.command(
            "store", "add", volume.mountpoint, OTHER, f"{volume.uri}/{OTHER}", *KINDS[kind], "--at", other
        )
        volume.umount()
        yield Victim(volume)
        volume.finish()
    except BaseException:
        print(volume.log_path.read_text() if volume.log_path.exists() else "no log")
        raise
    finally:
        volume.abandon()
        shutil.rmtree(directory)


def workload(victim: Victim, large: bool) -> None:
    """Passes every failpoint, the early ones several times."""
    if large:
        victim.write("large", pattern(LARGE_BYTES, next(fresh)))
        victim.sync()
        victim.append("large", pattern(5_000, next(fresh)))
        victim.sync()
    victim.write("a", pattern(60_000, next(fresh)))
    victim.write("a", pattern(70_000, next(fresh)))
    victim.write("b", pattern(200_000, next(fresh)))
    victim.sync()
    victim.copy("a", "copy")
    victim.copy("a", f"{OTHER}/first")
    victim.copy("b", f"{OTHER}/second")
    victim.unlink("b")
    victim.sync()


CASES = [(point, nth) for point in Failpoint for nth in ((1, 2) if FULL and point not in ONCE else (1,))]


@pytest.mark.parametrize(("point", "nth"), CASES, ids=lambda value: getattr(value, "value", str(value)))
def test_killed_at(victim: Victim, point: Failpoint, nth: int) -> None:
    with victim.killed_at(f"{point.value}:{nth}"):
        workload(victim, large=point in IN_PARTS)
    # What S3 copied has no journal row: until it is committed, only gc can find it.
    victim.compare(strays=int(point is Failpoint.COPIED))
