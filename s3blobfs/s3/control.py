"""Everything of one bucket that is not a small PUT, a GET or a HEAD, by boto3. Blocking; one call is one
request, of which :mod:`s3blobfs.s3.client` and :mod:`s3blobfs.s3.multipart` make operations.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from s3blobfs.errors import ObjectNotFound, PermanentS3Error
from s3blobfs.s3.connection import DEFAULT_REGION, S3Connection
from s3blobfs.s3.dataplane import bare_etag, plausible_size, real_version, time_ns
from s3blobfs.s3.error_map import RequestContext, mapped_errors
from s3blobfs.s3.limits import LIST_PAGE_MAX
from s3blobfs.s3.protocol import (
    DeleteFailure,
    ObjectId,
    ObjectInfo,
    ObjectVersionInfo,
    PutReceipt,
    UploadInfo,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, TagTypeDef

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class CopySource:
    """What is copied: a key or a version of a bucket, perhaps only while it has the ETag ``if_match``."""

    bucket: str
    target: ObjectId
    if_match: str | None

    def parameters(self) -> dict[str, Any]:
        source = {"Bucket": self.bucket, "Key": self.target.key}
        if self.target.version_id is not None:
            source["VersionId"] = self.target.version_id
        condition = {} if self.if_match is None else {"CopySourceIfMatch": f'"{self.if_match}"'}
        return {"CopySource": source, **condition}


@dataclass(frozen=True, slots=True)
class Page(Generic[Entry]):
    """One page of a listing; ``next_page`` are the parameters of the following, ``None`` after the last."""

    entries: list[Entry]
    next_page: dict[str, Any] | None


class ControlPlane:
    def __init__(self, connection: S3Connection, bucket: str) -> None:
        self._boto = connection.boto
        self._bucket = bucket
        self._region = connection.region
        self._endpoint_url = connection.endpoint_url
        self._storing_headers = connection.storing_headers()

    # -- multipart uploads -----------------------------------------------------------------------------

    def create_upload(self, key: str, metadata: Mapping[str, str]) -> str:
        """Answers the upload id."""
        with self._errors(key):
            return self._boto.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=metadata, **self._storing_headers
            )["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, part: IO[bytes], crc: int | None) -> str:
        """Answers the part's ETag. ``number`` counts from 1. The server checks the CRC-32 ``crc``; where it
        is not known, boto3 reads the part to add one."""
        checksum: dict[str, Any] = {}
        if crc is not None:
            checksum["ChecksumCRC32"] = base64.b64encode(crc.to_bytes(4, "big")).decode()
        with self._errors(key):
            answer = self._boto.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=part, **checksum
            )
            return answer["ETag"]

    def copy_part(
        self, key: str, upload_id: str, number: int, source: CopySource, first: int, last: int
    ) -> str:
        """UploadPartCopy of the bytes ``first`` to ``last`` inclusive."""
        with self._errors(key):
            answer = self._boto.upload_part_copy(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                CopySourceRange=f"bytes={first}-{last}",
                **source.parameters(),
            )
        return answer["CopyPartResult"]["ETag"]

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], if_none_match: bool
    ) -> PutReceipt:
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)
        ]
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_none_match else {}
        with self._errors(key, creating=if_none_match):
            answer = self._boto.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                **condition,
            )
            return PutReceipt(bare_etag(answer["ETag"]), real_version(answer.get("VersionId")))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """An upload that is gone already is success."""
        with self._errors(key):
            try:
                self._boto.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
            except self._boto.exceptions.NoSuchUpload:
                return

    def list_uploads(self, prefix: str, page: dict[str, Any]) -> Page[UploadInfo]:
        with self._errors(""):
            answer = self._boto.list_multipart_uploads(
                Bucket=self._bucket, Prefix=prefix, MaxUploads=LIST_PAGE_MAX, **page
            )
            entries = [
                UploadInfo(
                    key=entry["Key"], upload_id=entry["UploadId"], initiated_ns=time_ns(entry["Initiated"])
                )
                for entry in answer.get("Uploads", [])
            ]
            if not answer.get("IsTruncated"):
                return Page(entries, None)
            following = {"KeyMarker": answer["NextKeyMarker"]}
            if upload_marker := answer.get("NextUploadIdMarker"):
                following["UploadIdMarker"] = upload_marker
            return Page(entries, following)

    # -- tags ------------------------------------------------------------------------------------------

    def put_tags(self, target: ObjectId, tags: Mapping[str, str]) -> None:
        tag_set: list[TagTypeDef] = [{"Key": name, "Value": value} for name, value in tags.items()]
        with self._errors(target.key):
            self._boto.put_object_tagging(
                Bucket=self._bucket, Key=target.key, Tagging={"TagSet": tag_set}, **_version(target)
            )

    def get_tags(self, target: ObjectId) -> dict[str, str]:
        with self._errors(target.key):
            answer = self._boto.get_object_tagging(Bucket=self._bucket, Key=target.key, **_version(target))
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    # -- objects ---------------------------------------------------------------------------------------

    def copy(self, source: CopySource, key: str, metadata: Mapping[str, str] | None) -> PutReceipt:
        """CopyObject. botocore makes an error of a 200 answer with an error in its body."""
        replacing: dict[str, Any] = (
            {} if metadata is None else {"MetadataDirective": "REPLACE", "Metadata": metadata}
        )
        with self._errors(source.target.key):
            answer = self._boto.copy_object(
                Bucket=self._bucket, Key=key, **source.parameters(), **replacing, **self._storing_headers
            )
            return PutReceipt(
                bare_etag(answer["CopyObjectResult"].get("ETag")), real_version(answer.get("VersionId"))
            )

    def head(self, bucket: str, target: ObjectId) -> ObjectInfo:
        """HEAD in any bucket: of a copy's source."""
        with mapped_errors(RequestContext(self._endpoint_url, bucket, target.key)):
            answer = self._boto.head_object(Bucket=bucket, Key=target.key, **_version(target))
            return ObjectInfo(
                key=target.key,
                size_bytes=plausible_size(answer["ContentLength"]),
                etag=bare_etag(answer["ETag"]),
                version_id=real_version(answer.get("VersionId")),
                last_modified_ns=time_ns(answer["LastModified"]),
                metadata=answer["Metadata"],
            )

    def delete(self, target: ObjectId) -> None:
        with self._errors(target.key), contextlib.suppress(self._boto.exceptions.NoSuchKey):
            self._boto.delete_object(Bucket=self._bucket, Key=target.key, **_version(target))

    def delete_many(self, targets: Sequence[ObjectId]) -> list[DeleteFailure]:
        objects: list[Any] = [
            {"Key": target.key}
            if target.version_id is None
            else {"Key": target.key, "VersionId": target.version_id}
            for target in targets
        ]
        with self._errors(""):
            answer = self._boto.delete_objects(
                Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
            )
            return [
                DeleteFailure(
                    ObjectId(error["Key"], error.get("VersionId") or None),
                    error.get("Code", ""),
                    error.get("Message", ""),
                )
                for error in answer.get("Errors", [])
                if error.get("Code") not in ("NoSuchKey", "NoSuchVersion")
            ]

    # -- listings --------------------------------------------------------------------------------------

    def list_objects(self, prefix: str, page: dict[str, Any]) -> Page[ObjectInfo]:
        with self._errors(""):
            answer = self._boto.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=LIST_PAGE_MAX, **page
            )
            entries = [
                ObjectInfo(
                    key=entry["Key"],
                    size_bytes=plausible_size(entry["Size"]),
                    etag=bare_etag(entry.get("ETag")),
                    version_id=None,
                    last_modified_ns=time_ns(entry["LastModified"]),
                )
                for entry in answer.get("Contents", [])
            ]
            more = answer.get("IsTruncated") and {"ContinuationToken": answer["NextContinuationToken"]}
            return Page(entries, more or None)

    def list_versions(self, prefix: str, page: dict[str, Any]) -> Page[ObjectVersionInfo]:
        with self._errors(""):
            answer = self._boto.list_object_versions(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=LIST_PAGE_MAX, **page
            )
            entries = [
                ObjectVersionInfo(
                    key=entry["Key"],
                    version_id=real_version(entry.get("VersionId")),
                    is_delete_marker=False,
                    is_latest=entry["IsLatest"],
                    size_bytes=plausible_size(entry["Size"]),
                    etag=bare_etag(entry.get("ETag")),
                    last_modified_ns=time_ns(entry["LastModified"]),
                )
                for entry in answer.get("Versions", [])
            ] + [
                ObjectVersionInfo(
                    key=marker["Key"],
                    version_id=real_version(marker.get("VersionId")),
                    is_delete_marker=True,
                    is_latest=marker["IsLatest"],
                    size_bytes=0,
                    etag="",
                    last_modified_ns=time_ns(marker["LastModified"]),
                )
                for marker in answer.get("DeleteMarkers", [])
            ]
            # S3's one sequence comes as two lists; the times are of whole seconds, hence the flag.
            entries.sort(key=lambda entry: (entry.key, not entry.is_latest, -entry.last_modified_ns))
            if not answer.get("IsTruncated"):
                return Page(entries, None)
            following = {"KeyMarker": answer["NextKeyMarker"]}
            if version_marker := answer.get("NextVersionIdMarker"):
                following["VersionIdMarker"] = version_marker
            return Page(entries, following)

    # -- bucket ----------------------------------------------------------------------------------------

    def bucket_exists(self) -> bool:
        try:
            with self._errors(""):
                self._boto.head_bucket(Bucket=self._bucket)
        except ObjectNotFound:  # what a 404 without a body becomes
            return False
        return True

    def create_bucket(self) -> None:
        # AWS refuses to be told its default region, and wants to be told any other.
        where: dict[str, Any] = (
            {}
            if self._region == DEFAULT_REGION
            else {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        )
        try:
            with self._errors(""):
                self._boto.create_bucket(Bucket=self._bucket, **where)
        except PermanentS3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def versioning_enabled(self) -> bool:
        with self._errors(""):
            return self._boto.get_bucket_versioning(Bucket=self._bucket).get("Status") == "Enabled"

    def enable_versioning(self) -> None:
        with self._errors(""):
            self._boto.put_bucket_versioning(
                Bucket=self._bucket, VersioningConfiguration={"Status": "Enabled"}
            )

    def _errors(self, key: str, *, creating: bool = False) -> contextlib.AbstractContextManager[None]:
        return mapped_errors(RequestContext(self._endpoint_url, self._bucket, key, creating))


def _version(target: ObjectId) -> dict[str, Any]:
    return {} if target.version_id is None else {"VersionId": target.version_id}
