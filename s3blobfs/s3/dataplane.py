"""Small PUTs, GETs and HEADs of one bucket, by obstore. Blocking; one call is one request.

obstore costs a tenth of boto3's CPU per request and releases the GIL. What it cannot do well (per-part
retries, UploadPartCopy, versions in deletes and listings) is in :mod:`s3blobfs.s3.control`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING

import obstore

from s3blobfs.errors import DamagedContent, TransientS3Error
from s3blobfs.s3.connection import S3Connection
from s3blobfs.s3.error_map import RequestContext, mapped_errors
from s3blobfs.s3.protocol import ObjectData, ObjectInfo, PutReceipt

if TYPE_CHECKING:  # these exist in its stubs only
    from obstore import Attributes, GetOptions, GetResult

_SIZE_MAX_BYTES = 2**63 - 1
_EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)
_HEADER_ATTRIBUTES = frozenset(
    {
        "Cache-Control",
        "Content-Disposition",
        "Content-Encoding",
        "Content-Language",
        "Content-Type",
        "Storage-Class",
    }
)
"""What obstore tells beside user metadata."""


class DataPlane:
    def __init__(self, connection: S3Connection, bucket: str) -> None:
        self._store = connection.obstore(bucket)
        self._bucket = bucket
        self._endpoint_url = connection.endpoint_url
        self._storage_class = connection.options.storage_class

    def put(self, key: str, data: bytes, metadata: Mapping[str, str], if_none_match: bool) -> PutReceipt:
        attributes: Attributes = dict(metadata)
        if self._storage_class is not None:
            attributes["Storage-Class"] = self._storage_class
        with mapped_errors(self._context(key, creating=if_none_match)):
            result = obstore.put(
                self._store,
                key,
                data,
                attributes=attributes,
                mode="create" if if_none_match else "overwrite",
                use_multipart=False,
            )
        return PutReceipt(bare_etag(result["e_tag"]), real_version(result["version"]))

    def get(
        self, key: str, version_id: str | None, offset: int, length: int | None, if_match: str | None
    ) -> ObjectData:
        options: GetOptions = {}
        if version_id is not None:
            options["version"] = version_id
        if if_match is not None:
            options["if_match"] = f'"{if_match}"'
        if length is not None:
            options["range"] = (offset, offset + length)
        elif offset:
            options["range"] = {"offset": offset}
        with mapped_errors(self._context(key)):
            result = obstore.get(self._store, key, options=options)
            data = memoryview(result.bytes())
            info = _info(key, result)
        end = info.size_bytes if length is None else offset + length
        if end > info.size_bytes:
            raise DamagedContent(f"key {key}: bytes {offset} to {end} asked for, it has {info.size_bytes}")
        if len(data) != end - offset:
            raise TransientS3Error(f"{len(data)} of {end - offset} bytes arrived", key=key)
        return ObjectData(data, info)

    def head(self, key: str, version_id: str | None) -> ObjectInfo:
        # Not obstore.head: it tells no user metadata and takes no version.
        options: GetOptions = {"head": True}
        if version_id is not None:
            options["version"] = version_id
        with mapped_errors(self._context(key)):
            return _info(key, obstore.get(self._store, key, options=options))

    def _context(self, key: str, *, creating: bool = False) -> RequestContext:
        return RequestContext(self._endpoint_url, self._bucket, key, creating)


def bare_etag(etag: str | None) -> str:
    return (etag or "").strip('"')


def real_version(version_id: str | None) -> str | None:
    """``None`` for S3's ``null``, the version of objects stored while versioning was off."""
    return None if version_id in (None, "", "null") else version_id


def plausible_size(size_bytes: int) -> int:
    """``size_bytes``; ``ValueError`` for one that no object has, nor a column of the index takes."""
    if not 0 <= size_bytes <= _SIZE_MAX_BYTES:
        raise ValueError(f"an object of {size_bytes} bytes")
    return size_bytes


def time_ns(moment: datetime.datetime) -> int:
    """Nanoseconds since 1970, in whole microseconds and without a float's rounding."""
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1) * 1000


def _info(key: str, result: GetResult) -> ObjectInfo:
    meta = result.meta
    return ObjectInfo(
        key=key,
        size_bytes=plausible_size(meta["size"]),
        etag=bare_etag(meta["e_tag"]),
        version_id=real_version(meta["version"]),
        last_modified_ns=time_ns(meta["last_modified"]),
        metadata={
            name.lower(): value for name, value in result.attributes.items() if name not in _HEADER_ATTRIBUTES
        },
    )
