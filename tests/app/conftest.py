"""Volumes on SeaweedFS, handled by commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.commands import CommandLine, command_line
from tests.conftest import MakeBucket
from tests.support.servers import S3Server


@pytest.fixture
def volume(tmp_path: Path, weed_server: S3Server, make_bucket: MakeBucket) -> Iterator[CommandLine]:
    """A bucket with versioning; mkfs is up to the test."""
    bucket = make_bucket(weed_server, versioning=True)
    with command_line(tmp_path / "volume", weed_server, f"s3://{bucket}/files") as volume:
        yield volume


@pytest.fixture
def mounted(volume: CommandLine) -> CommandLine:
    """A digest volume, cached, mounted."""
    volume.mkfs()
    volume.mount()
    return volume
