"""The mounts of ``tests/mount``, and a plain directory to compare with."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import any_here, any_volume, here, own_volume, volume

__all__ = ["any_here", "any_volume", "here", "own_volume", "volume"]


@pytest.fixture
def plain() -> Iterator[Path]:
    """An empty directory that other users may enter, on the machine's own filesystem."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-plain-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
