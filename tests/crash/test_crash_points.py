"""The mount is killed between any two steps: the acknowledged is there, the rest is whole, old or absent.

By default each failpoint is tried in two kinds of volume, which differ in everything; those on the way of a
change that comes before the earlier content is in S3, where close does not wait for that. With
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
CACHED_BEHIND = "versioned-cached/disk"
ALL_PLACES = tuple(f"{kind}/{durability}" for kind in KINDS for durability in ("s3", "disk"))

IN_PARTS = frozenset({Failpoint.PART_SENT, Failpoint.PART_COPIED})
EXTENDING = frozenset({Failpoint.SHARED, Failpoint.EXTENDED, Failpoint.PARTED})
"""On the way of a change that comes before the earlier content is in S3."""
EARLY = frozenset({Failpoint.EARLY_SENT, Failpoint.EARLY_COMPLETED, Failpoint.EARLY_TAGGED})
ONCE = IN_PARTS | {Failpoint.MARKED, Failpoint.DELETED, Failpoint.FORGOTTEN}
"""Not reached a second time by the workload below."""
LARGE_BYTES = 33 * 1024 * 1024
"""Goes to S3 in parts."""
EARLY_BYTES = 48 * 1024 * 1024
"""Some of its parts go there before it is closed."""
LOG_BYTES = 12 * 1024 * 1024

pytestmark = [
    pytest.mark.skipif(
        not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
    ),
    pytest.mark.timeout(300),
]

fresh = itertools.count(1)
"""Every content is another one."""


@pytest.fixture(scope="module")
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


def early_workload(victim: Victim) -> None:
    """Passes what happens to a file that is sent while it is written, and to one that is written anew."""
    victim.write_until_sent("large", pattern(EARLY_BYTES, next(fresh)))
    victim.write_until_sent("large", pattern(EARLY_BYTES, next(fresh)))


def workload(victim: Victim, *, large: bool, extending: bool) -> None:
    """Passes every other failpoint, the first ones several times."""
    if large:
        victim.write("large", pattern(LARGE_BYTES, next(fresh)))
        victim.sync()
        victim.append("large", pattern(5_000, next(fresh)))
        victim.sync()
    if extending:
        # Each upload takes longer than the append that follows it; were one once quicker, then the next.
        for _ in range(3):
            victim.write("log", pattern(LOG_BYTES, next(fresh)))
            victim.append("log", pattern(5_000, next(fresh)))
            victim.append("log", pattern(5_000, next(fresh)), header=pattern(100, next(fresh)))
            victim.append("log", pattern(5_000, next(fresh)))
    victim.write("a", pattern(60_000, next(fresh)))
    victim.write("a", pattern(70_000, next(fresh)))
    victim.write("b", pattern(200_000, next(fresh)))
    victim.sync()
    victim.copy("a", "copy")
    victim.copy("a", f"{OTHER}/first")
    victim.copy("b", f"{OTHER}/second")
    victim.unlink("b")
    victim.sync()


def places_of(point: Failpoint) -> tuple[str, ...]:
    places = ALL_PLACES if FULL else (*PLACES, CACHED_BEHIND)
    if point in EXTENDING:
        # Where each close waits until the content is in S3, nothing is extended before.
        return tuple(place for place in places if place.endswith("/disk"))
    if point in EARLY:
        return tuple(place for place in places if place.startswith("versioned"))
    return ALL_PLACES if FULL else PLACES


CASES = [
    (place, point, nth)
    for point in Failpoint
    for place in places_of(point)
    for nth in ((1, 2) if FULL and point not in ONCE else (1,))
]


@pytest.mark.parametrize(
    ("victim", "point", "nth"),
    CASES,
    indirect=["victim"],
    ids=lambda value: getattr(value, "value", str(value)),
)
def test_killed_at(victim: Victim, point: Failpoint, nth: int) -> None:
    with victim.killed_at(f"{point.value}:{nth}"):
        if point in EARLY:
            early_workload(victim)
        else:
            workload(victim, large=point in IN_PARTS, extending=point in EXTENDING)
    # What S3 copied has no journal row: until it is committed, only gc can find it.
    victim.compare(strays=int(point is Failpoint.COPIED))
