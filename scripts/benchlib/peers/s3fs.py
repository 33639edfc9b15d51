"""s3fs: files are objects by their paths, written when they are closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchlib.peers.peer import Peer
from benchlib.peers.tools import S3FS


class S3fs(Peer):
    """As shipped, with a local cache, which it has on request. close(2) returns when the object is stored."""

    def make(self) -> None:
        super().make()
        self._passwords.touch(mode=0o600)
        self._passwords.write_text(f"{self.server.access_key_id}:{self.server.secret_access_key}\n")

    def command(self) -> Sequence[str | Path]:
        options = {
            "url": self.server.endpoint_url,
            "passwd_file": self._passwords,
            "use_cache": self.cache,
            "tmpdir": self.base,
        }
        return [
            *(S3FS.path, self.bucket.name, self.directory, "-f", "-o", "use_path_request_style"),
            *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        ]

    @property
    def _passwords(self) -> Path:
        return self.base / "passwords"
