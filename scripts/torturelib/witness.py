"""Another client of the bucket: whether what a call promised to be in S3 is there."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from botocore.exceptions import ClientError

from tests.support.bucket import bucket_client
from tests.support.mounted import MountedVolume


class Witness:
    """Thread-safe. Asks the server itself, so that no fault meets its requests."""

    def __init__(self, volume: MountedVolume) -> None:
        self._bucket = volume.bucket
        self._client = bucket_client(volume)
        self._lock = threading.Lock()
        self.asked = 0

    def close(self) -> None:
        self._client.close()

    def missing(self, path: Path, size_bytes: int) -> str | None:
        """What is wrong with the object of a file that nobody changes meanwhile. ``OSError`` of the mount."""
        state = os.getxattr(path, "user.s3blobfs.state")
        if state != b"stored":
            return f"is {state.decode()}, not stored"
        key = os.getxattr(path, "user.s3blobfs.key").decode()
        version_id = _version_id(path)
        with self._lock:
            self.asked += 1
        try:
            if version_id is None:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
            else:
                found = self._client.head_object(Bucket=self._bucket, Key=key, VersionId=version_id)
        except ClientError as error:
            return f"{key} {version_id}: {error}"
        if found["ContentLength"] != size_bytes:
            return f"{key} {version_id} has {found['ContentLength']} bytes, not {size_bytes}"
        return None


def _version_id(path: Path) -> str | None:
    try:
        return os.getxattr(path, "user.s3blobfs.version_id").decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None  # a digest store's
