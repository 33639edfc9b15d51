"""The opposite of a promotion: a cached file becomes a staged one, so that a change of a large file copies
nothing.

ext4 has no shared extents, so a copy costs as much as the file is long. But a file that is being changed has
hardly any use for the entry of the content that the change replaces: the entry's own file is what is written
to. What is lost if nothing comes of it is a copy of what S3 has.

Only where nobody else uses the entry: it is not pinned, and has no other name. Whether another inode refers
to the same content is the caller's to know.
"""

from __future__ import annotations

from s3blobfs.config import MIB
from s3blobfs.tier.cache import Cache
from s3blobfs.tier.staging import StagedFile, Staging
from s3blobfs.trace import Arrow, Local
from s3blobfs.types import ContentDigests

DEMOTED_LEAST_BYTES = 16 * MIB
"""Smaller ones are copied in milliseconds, and stay in the cache."""


def demote(
    cache: Cache, staging: Staging, local: Local, store_id: int, cache_name: str, digests: ContentDigests
) -> StagedFile | None:
    """The staged file made of an entry; ``None`` when there is no such entry, or it has to stay.
    :class:`TierUnavailable`."""
    if digests.size_bytes < DEMOTED_LEAST_BYTES:
        return None
    entry = cache.get(store_id, cache_name, digests.size_bytes)
    if entry is None:
        return None
    record = entry.record
    entry.unpin()
    file = cache.open_for_change(record)
    if file is None:
        return None

    def move(name: str) -> int:
        return cache.move_out(record, staging.layout.staging, name)

    try:
        staged = staging.take_over(local, file, digests.size_bytes, digests, move)
    except BaseException:
        file.release()
        raise
    staging.tracer.step(Local.CACHE, Arrow.TO_DASHED, Local.CACHE, "rename", staged.name)
    return staged
