"""Where a volume's local files lie: all beside its index, named after it.

For the index ``…/index.db``: the lock ``…/index.db.lock``, the control socket ``…/index.db.sock``, the
mount's log ``…/index.db.log``, snapshots on their way to the bucket ``…/index.db.copy/`` and the local tier
``…/index.db.tier/``. Staged files that are not in S3 yet are part of the tier, which is why it is state and
not a cache that anything may empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3blobfs.config import state_home
from s3blobfs.errors import UsageError

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class VolumePaths:
    """The files of the volume whose index is ``index``."""

    index: Path

    @classmethod
    def default(cls, volume_id: str) -> VolumePaths:
        """Below the state directory, named by the volume."""
        return cls(state_home() / volume_id / "index.db")

    @property
    def lock(self) -> Path:
        return self._beside("lock")

    @property
    def control_socket(self) -> Path:
        return self._beside("sock")

    @property
    def log(self) -> Path:
        return self._beside("log")

    @property
    def tier(self) -> Path:
        return self._beside("tier")

    @property
    def index_copy(self) -> Path:
        """Directory of files of the moment: what of the index is being sent to the bucket."""
        return self._beside("copy")

    def _beside(self, suffix: str) -> Path:
        return self.index.with_name(f"{self.index.name}.{suffix}")


def make_private_directory(path: Path) -> None:
    """Create ``path`` and its missing parents, each for this user alone.

    A directory that exists is left as it is. Raises :class:`UsageError` where that cannot be."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=PRIVATE_DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the directory {path}: {error.strerror}") from error
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory")
