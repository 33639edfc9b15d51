"""A system's bucket, looked into past the system itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from benchlib.peers.system import Server
from s3blobfs.demo.server import REGION

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_TIMEOUT_S = 60
_FEW = 4
"""So many objects are asked for one by one; more are listed."""


class Bucket:
    """Asked of the server itself, never through a proxy."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self._client = boto3.client(
            "s3",
            endpoint_url=server.direct_url,
            region_name=REGION,
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
            config=Config(
                connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, s3={"addressing_style": "path"}
            ),
        )

    def make(self) -> None:
        self._client.create_bucket(Bucket=self.name)

    def has(self, expected: dict[str, int]) -> bool:
        """Objects of these keys with these sizes in bytes."""
        if len(expected) > _FEW:
            sizes = self.sizes()
            return all(sizes.get(key) == size for key, size in expected.items())
        return all(self._size(key) == size for key, size in expected.items())

    def sizes(self) -> dict[str, int]:
        """Of every object, in bytes."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def remove(self) -> None:
        """With all that is in it, if there is such a bucket."""
        try:
            while batch := self._some_versions():
                self._client.delete_objects(Bucket=self.name, Delete={"Objects": batch, "Quiet": True})
            self._client.delete_bucket(Bucket=self.name)
        except self._client.exceptions.NoSuchBucket:
            return

    def _some_versions(self) -> list[ObjectIdentifierTypeDef]:
        found = self._client.list_object_versions(Bucket=self.name)
        every = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
        return [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in every]

    def _size(self, key: str) -> int | None:
        try:
            return self._client.head_object(Bucket=self.name, Key=key)["ContentLength"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
                return None
            raise
