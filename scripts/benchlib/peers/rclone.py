"""rclone mount: files are objects by their paths; what is written is queued in a cache of whole files."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.peers.peer import Peer, files_below
from benchlib.peers.system import Server
from benchlib.peers.tools import RCLONE
from benchlib.volume import CommandFailed
from benchlib.waiting import wait_until

_STORED_TIMEOUT_S = 300.0
_CALL_TIMEOUT_S = 30.0


class Rclone(Peer):
    """With ``--vfs-cache-mode full``, without which files cannot be changed.

    close(2) queues; the remote control tells how long the queue is. It is empty for a moment after a close,
    too, as the kernel tells of it later: a look into the bucket has to confirm it."""

    def __init__(self, name: str, directory: Path, server: Server, bucket: str, *, behind: bool) -> None:
        super().__init__(name, directory, server, bucket)
        self._behind = behind
        self._control = directory / "control"

    def environment(self) -> dict[str, str]:
        return {
            "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_BENCH_ENDPOINT": self.server.endpoint_url,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": self.server.access_key_id,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": self.server.secret_access_key,
        }

    def command(self) -> Sequence[str | Path]:
        return [
            *(RCLONE.path, "mount", f"--config={self.base / 'rclone.conf'}", f"--cache-dir={self.cache}"),
            *("--vfs-cache-mode=full", *([] if self._behind else ["--vfs-write-back=0s"])),
            *("--rc", f"--rc-addr=unix://{self._control}", "--rc-no-auth"),
            *(f"bench:{self.bucket.name}", self.directory),
        ]

    def wait_until_stored(self) -> None:
        """Until its queue is empty."""
        if not wait_until(self._queue_is_empty, _STORED_TIMEOUT_S):
            raise CommandFailed(f"{self.name}: its queue is not empty after {_STORED_TIMEOUT_S:.0f} s")

    def settle(self) -> None:
        """Until it notes of no file that it has still to be uploaded, queued or not."""
        if not wait_until(self._nothing_is_dirty, _STORED_TIMEOUT_S):
            raise CommandFailed(f"{self.name}: files are dirty after {_STORED_TIMEOUT_S:.0f} s")

    def _nothing_is_dirty(self) -> bool:
        self.wait_until_stored()
        return not any(_is_dirty(note) for note in files_below(self.cache / "vfsMeta"))

    def _queue_is_empty(self) -> bool:
        cache = self._call("vfs/stats")["diskCache"]
        return bool(cache["uploadsInProgress"] == cache["uploadsQueued"] == 0)

    def _call(self, method: str) -> dict[str, Any]:
        connection = _UnixConnection(self._control)
        try:
            connection.request("POST", f"/{method}", body="{}", headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            body: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise CommandFailed(f"{self.name}: {method}: {body}")
        return body


def _is_dirty(note: Path) -> bool:
    try:
        return bool(json.loads(note.read_text())["Dirty"])
    except (FileNotFoundError, json.JSONDecodeError):
        return True  # it is being written: look again


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_CALL_TIMEOUT_S)
        self.sock.connect(str(self._path))
