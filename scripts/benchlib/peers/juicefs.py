"""JuiceFS: files are cut into blocks, which are objects; names are in SQLite or Redis."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from benchlib.peers.peer import Peer
from benchlib.peers.system import Server
from benchlib.peers.tools import JUICEFS, REDIS
from benchlib.proxy import LOOPBACK
from benchlib.volume import CommandFailed
from benchlib.waiting import wait_until

_STORED_TIMEOUT_S = 300.0
_BLOCK = re.compile(r"\b\d+_\d+_(\d+)$")
"""The last part of a block's key: slice, number, size in bytes."""


class JuiceFS(Peer):
    """As shipped, without a trash, which would keep what is deleted, and without usage reports to its makers.

    Without write-back close(2) returns when the blocks are in S3 and the names point to them."""

    def __init__(
        self, name: str, directory: Path, server: Server, bucket: str, *, redis: bool, writeback: bool
    ) -> None:
        super().__init__(name, directory, server, bucket)
        self._redis = redis
        self._writeback = writeback
        self._meta = f"sqlite3://{directory / 'meta.db'}"

    def environment(self) -> dict[str, str]:
        return {"ACCESS_KEY": self.server.access_key_id, "SECRET_KEY": self.server.secret_access_key}

    def make(self) -> None:
        super().make()
        if self._redis:
            self._start_redis()
        bucket = f"{self.server.endpoint_url}/{self.bucket.name}"
        self.run(
            [
                *(JUICEFS.path, "format", "--storage=s3", f"--bucket={bucket}", "--trash-days=0"),
                *(self._meta, "bench"),
            ]
        )

    def _start_redis(self) -> None:
        """As JuiceFS's manual advises: with a log, synced each second."""
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        self._meta = f"redis://{LOOPBACK}:{port}/1"
        process = self.start(
            [
                *(REDIS.path, "--bind", LOOPBACK, "--port", str(port), "--dir", self.base),
                *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            ]
        )
        self.wait_for(lambda: _listens(port), process)

    def command(self) -> Sequence[str | Path]:
        return [
            *(JUICEFS.path, "mount", "--no-usage-report", "--no-syslog", f"--cache-dir={self.cache}"),
            *(f"--metrics={LOOPBACK}:0", *(["--writeback"] if self._writeback else [])),
            *(self._meta, self.directory),
        ]

    def wait_until_stored(self) -> None:
        """With write-back: until no block waits in the cache for its upload."""
        if self._writeback and not wait_until(lambda: self._staging_blocks() == 0, _STORED_TIMEOUT_S):
            raise CommandFailed(f"{self.name}: blocks still wait after {_STORED_TIMEOUT_S:.0f} s")

    def _staging_blocks(self) -> int:
        for line in (self.directory / ".stats").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "juicefs_staging_blocks":
                return int(float(value))
        raise CommandFailed(f"{self.name}: its statistics do not tell how many blocks wait")

    def shows(self, paths: Sequence[Path]) -> bool:
        """All blocks that the files consist of, which JuiceFS lists, are in the bucket."""
        listed = self.run([JUICEFS.path, "info", *paths])
        blocks = [word for line in listed.splitlines() for word in line.split() if _BLOCK.search(word)]
        sizes = {block: int(found[1]) for block in blocks if (found := _BLOCK.search(block))}
        if sum(sizes.values()) < sum(path.stat().st_size for path in set(paths)):
            return False
        return self.bucket.has(sizes)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
