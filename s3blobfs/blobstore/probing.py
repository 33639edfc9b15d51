"""Probe objects: what a store asks its server to find out what it can do. Nothing of them is left.

Their keys lie below ``.s3blobfs/`` of the store's prefix, where gc knows them.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator

import trio

from s3blobfs.config import VOLUME_OBJECTS_PREFIX
from s3blobfs.errors import ObjectStoreError
from s3blobfs.s3.protocol import ObjectClient, ObjectId

logger = logging.getLogger(__name__)

PROBE_CLEANUP_TIMEOUT_S = 30.0
"""For removing the probe after the command was interrupted."""


@contextlib.asynccontextmanager
async def probe_key(client: ObjectClient, prefix: str) -> AsyncIterator[str]:
    """A key for one probe, which is removed at the end."""
    key = f"{prefix}{VOLUME_OBJECTS_PREFIX}probe-{uuid.uuid4().hex}"
    try:
        yield key
    except BaseException:
        try:
            await _remove(client, key)
        except ObjectStoreError as error:
            logger.warning("the probe object %s in bucket %s may be left: %s", key, client.bucket, error)
        raise
    await _remove(client, key)


async def _remove(client: ObjectClient, key: str) -> None:
    """With all its versions: a retried PUT may have made several. Not given up when interrupted, or
    whoever tries again would leave a growing heap of probes."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + PROBE_CLEANUP_TIMEOUT_S):
        for version in [version async for version in client.list_versions(key)]:
            await client.delete(ObjectId(version.key, version.version_id))
