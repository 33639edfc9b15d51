"""Reading an object's stamp, wherever it is: in the metadata, or partly in a tag."""

from __future__ import annotations

import logging

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.metadata import Stamp
from s3blobfs.errors import AccessDenied, BucketNotFound, ObjectNotFound, PermanentS3Error
from s3blobfs.s3.protocol import ObjectClient, ObjectId, ObjectInfo

logger = logging.getLogger(__name__)


async def read_stamp(client: ObjectClient, info: ObjectInfo) -> Stamp:
    """Of an object that HEAD told of: one request more if it was begun before its content was complete.
    Without digests where there is no tag, or the server has none. Raises what else S3 says:
    :class:`~s3blobfs.errors.ObjectNotFound` when it is gone meanwhile."""
    stamp = metadata.decode(info.metadata)
    if not stamp.in_tag:
        return stamp
    try:
        tags = await client.get_tags(ObjectId(info.key, info.version_id))
    except (ObjectNotFound, BucketNotFound, AccessDenied):
        raise
    except PermanentS3Error as error:
        logger.info("the tags of %s in bucket %s cannot be read: %s", info.key, client.bucket, error)
        return stamp
    return metadata.complete(stamp, tags)
