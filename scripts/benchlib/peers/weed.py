"""SeaweedFS's own mount, which does not speak S3 but the server's inner protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchlib.peers.peer import Peer
from benchlib.peers.tools import WEED

_CACHE_MIB = 10 * 1024


class WeedMount(Peer):
    """As shipped, with a larger cache: its 128 MiB would hold nothing of what is measured.

    The mount is of the directory that is the bucket, so that its files are objects for S3. close(2) returns
    when chunks and entry are at the server."""

    def command(self) -> Sequence[str | Path]:
        return [
            *(WEED.path, "mount", f"-filer={self.server.filer}", f"-filer.path=/buckets/{self.bucket.name}"),
            *(f"-dir={self.directory}", f"-cacheDir={self.cache}", f"-cacheCapacityMB={_CACHE_MIB}"),
            f"-localSocket={self.base / 'socket'}",
        ]
