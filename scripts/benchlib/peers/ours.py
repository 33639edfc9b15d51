"""s3blobfs, as one of the systems that are compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchlib.aside import put_aside
from benchlib.content import drop_pages
from benchlib.peers.bucket import Bucket
from benchlib.peers.peer import drop_cached_pages, end_tree
from benchlib.peers.system import Server, System
from benchlib.volume import Mode, Volume
from s3blobfs.types import Durability

_KEY_ATTRIBUTE = "user.s3blobfs.key"


class OurVolume(Volume, System):
    """With ``--durability s3`` close(2) says that a file is in S3, with ``disk`` the barrier ``sync``."""

    def __init__(self, name: str, mode: Mode, directory: Path, server: Server, bucket: str) -> None:
        super().__init__(mode, directory, server.endpoint_url, bucket)
        self.name = name
        self.base = directory
        self._bucket = Bucket(bucket, server)

    def kill(self) -> None:
        if self._process is not None:
            end_tree(self._process.pid)

    def remove(self) -> None:
        self._bucket.remove()
        put_aside(self.base)

    def wait_until_stored(self) -> None:
        if self.mode.durability is Durability.DISK:
            self.sync()

    def shows(self, paths: Sequence[Path]) -> bool:
        """Each file's object, which the file's attribute names."""
        return self._bucket.has(
            {os.getxattr(path, _KEY_ATTRIBUTE).decode(): path.stat().st_size for path in paths}
        )

    def forget_in_kernel(self, paths: Iterable[Path]) -> None:
        """The cached files' pages, too: the disk is what is read."""
        drop_pages(paths)
        drop_cached_pages(self._cache)
