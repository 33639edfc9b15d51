"""Which volume a tier directory belongs to. Staged files in it may be the only copy of somebody's data, so a
mount that looks for them in the wrong place has to notice."""

from __future__ import annotations

import os
from pathlib import Path

from s3blobfs.errors import UsageError, VolumeMismatch
from s3blobfs.volume.paths import PRIVATE_FILE_MODE

MARK = "volume"
"""Name of the file in the tier directory that holds the volume's id."""


def claim_tier(directory: Path, volume_id: str, staged_files: int) -> None:
    """Make the tier directory this volume's. ``staged_files``: how many the index expects to be there.

    :class:`VolumeMismatch` when it is another volume's; :class:`UsageError` when the index expects staged
    files and the directory has never been this volume's, or when it cannot be written."""
    mark = directory / MARK
    try:
        found = mark.read_text().strip() if mark.exists() else None
        if found is not None and found != volume_id:
            raise VolumeMismatch(
                f"{directory} is the cache directory of volume {found}; choose another one with --cache-dir"
            )
        if found is None and staged_files:
            raise UsageError(
                f"{staged_files} files are staged and not in S3 yet, but not in {directory}: mount with the"
                " --cache-dir that was used before"
            )
        if found is None:
            fd = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE_MODE)
            with os.fdopen(fd, "w") as file:
                file.write(f"{volume_id}\n")
    except OSError as error:
        raise UsageError(f"cannot use the cache directory {directory}: {error.strerror}") from error
