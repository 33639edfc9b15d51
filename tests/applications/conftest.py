"""A mount for each durability, and the comparison after a cold mount that every test here ends with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3blobfs.types import Durability
from tests.applications.trees import seen
from tests.mount.conftest import new_volume, remount_cold
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server


@pytest.fixture(scope="module", params=Durability, ids=str)
def volume(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[MountedVolume]:
    options = ("--allow-other", "--durability", request.param.value)
    with new_volume(weed_server, "digest-cached", mount=options) as made:
        yield made


@pytest.fixture
def here(volume: MountedVolume) -> Iterator[Path]:
    """An empty directory on the mount. Whatever a test leaves in it is compared with itself as it comes from
    S3, and removed."""
    directory = volume.mountpoint / uuid.uuid4().hex[:12]
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    before = seen(directory)
    remount_cold(volume)
    assert seen(directory) == before
