"""Removing segments and snapshots that no recovery asks for any more.

Kept is the newest snapshot that is old enough, and everything since: from there every later moment can be
reached. The segment behind which it is stays, so that there always is one and numbers go on.
"""

from __future__ import annotations

import logging

from s3blobfs.replica import names
from s3blobfs.replica.history import History
from s3blobfs.replica.snapshot import read_header
from s3blobfs.s3.protocol import ObjectClient, ObjectId, ObjectInfo

logger = logging.getLogger(__name__)

BATCH = 1000
_SNAPSHOT_EVERY_NS = 2 * 24 * 3600 * 10**9
"""While something changes there is one each day; another day for clocks that differ."""


async def tidy(client: ObjectClient, history: History, prefix: str, *, now_ns: int, retention_ns: int) -> int:
    """Remove what is older than the newest snapshot that is ``retention_ns`` old; each version by itself, so
    that nothing is left in a versioned bucket. Answers how many were removed. Raises what S3 does.

    Times of objects are S3's, ``now_ns`` is this machine's. Should its clock be years ahead, what S3 says of
    the newest snapshot keeps the history from being taken for old."""
    snapshots = await history.snapshots()
    newest_ns = max((info.last_modified_ns for _, info in snapshots), default=0)
    before_ns = min(now_ns, newest_ns + _SNAPSHOT_EVERY_NS) - retention_ns
    base = await _base(client, history, snapshots, before_ns)
    if base == 0:
        return 0
    removed = 0
    batch: list[ObjectId] = []
    async for version in client.list_versions(names.index_prefix(prefix)):
        number = names.segment_number(prefix, version.key)
        if number is None:
            number = names.snapshot_number(prefix, version.key)
        if number is not None and number < base:
            batch.append(ObjectId(version.key, version.version_id))
        if len(batch) == BATCH:
            removed += await _delete(client, batch)
            batch = []
    if batch:
        removed += await _delete(client, batch)
    return removed


async def _base(
    client: ObjectClient, history: History, snapshots: list[tuple[int, ObjectInfo]], before_ns: int
) -> int:
    """The number of the newest snapshot that is old enough and part of the history, or 0. One that is not
    was made by a mount that lost its place to another."""
    for number, info in reversed(snapshots):
        if info.last_modified_ns > before_ns:
            continue
        found = await history.find(number)
        if found is not None and found[1] == (await read_header(client, info)).digest:
            return number
    return 0


async def _delete(client: ObjectClient, targets: list[ObjectId]) -> int:
    failures = await client.delete_many(targets)
    for failure in failures[:1]:
        logger.warning("%s stays in the bucket: %s %s", failure.target.key, failure.code, failure.message)
    return len(targets) - len(failures)
