"""What the cache's directories hold when a mount begins. Runs in a worker thread."""

from __future__ import annotations

import logging
import os
import stat
import time

from s3blobfs.tier.entry import ChangeTime, Record, is_unaltered
from s3blobfs.tier.layout import TEMPORARY_PREFIX, TierLayout
from s3blobfs.tier.session import Trust

log = logging.getLogger(__name__)

_GRAINS_NS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
"""How exactly filesystems keep times: ext4 and XFS to 1 ns, NTFS 100 ns, ext3 1 s, FAT 2 s …"""


def time_grain_ns(layout: TierLayout) -> int:
    """How exactly the cache's disk keeps mtime. Raises ``OSError``."""
    name = f"{TEMPORARY_PREFIX}grain"
    layout.root.unlink(name)
    fd = layout.root.create(name)
    try:
        wanted_ns = time.time_ns() // 2_000_000_000 * 2_000_000_000 + 1_123_456_789
        os.utime(fd, ns=(wanted_ns, wanted_ns))
        kept_ns = os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)
        layout.root.unlink(name)
    return next((grain for grain in _GRAINS_NS if wanted_ns - wanted_ns % grain == kept_ns), _GRAINS_NS[-1])


def scan(layout: TierLayout, stamp_grain_ns: int, trust: Trust) -> list[Record]:
    """The entries on the disk, least recently used first. What a mount left unfinished is removed, and so
    is, with a warning, what was altered meanwhile. Raises ``OSError``.

    Of an inode with several names every record but the first has no charge; all share their ctime."""
    found: list[Record] = []
    inodes: dict[int, ChangeTime] = {}
    distrusted = 0
    for store_id in layout.store_ids():
        directory = layout.store(store_id)
        with os.scandir(directory.fd) as names:
            for entry in names:
                if entry.name.startswith(TEMPORARY_PREFIX) and not entry.is_dir(follow_symlinks=False):
                    directory.unlink(entry.name)
                    continue
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    log.warning("%s is none of our files; remove it", directory.locate(entry.name))
                    continue
                if not trust.unaltered(status) or not is_unaltered(status, status.st_size, stamp_grain_ns):
                    log.warning("cached file %s was altered; dropped", directory.locate(entry.name))
                    directory.unlink(entry.name)
                    continue
                if not trust.whole(status):
                    directory.unlink(entry.name)
                    distrusted += 1
                    continue
                charged = 0 if status.st_ino in inodes else min(status.st_blocks * 512, status.st_size)
                changed = inodes.setdefault(status.st_ino, ChangeTime(status.st_ctime_ns))
                found.append(
                    Record(
                        (store_id, entry.name),
                        size_bytes=status.st_size,
                        charged=charged,
                        inode=status.st_ino,
                        touched_ns=status.st_atime_ns,
                        changed=changed,
                    )
                )
    if distrusted:
        log.info("the machine was not shut down in order: %d cached files dropped", distrusted)
    found.sort(key=lambda record: record.touched_ns)
    return found
