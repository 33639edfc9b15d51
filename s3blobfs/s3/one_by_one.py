"""``get_each`` of a client that has no cheaper way than to GET each object by itself."""

from __future__ import annotations

from collections.abc import Iterable

from s3blobfs.errors import S3BlobFSError
from s3blobfs.s3.protocol import ObjectClient, TakeAnswer, WholeObject


async def get_one_by_one(client: ObjectClient, wanted: Iterable[tuple[WholeObject, TakeAnswer]]) -> None:
    """See :meth:`~s3blobfs.s3.protocol.ObjectClient.get_each`."""
    for target, take in wanted:
        try:
            answer = await client.get(target.key, version_id=target.version_id, if_match=target.if_match)
        except S3BlobFSError as error:
            take(error)
        else:
            take(answer)
