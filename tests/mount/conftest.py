"""Mounted volumes, one per module and kind; each test has a directory of its own in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.conftest import unique_bucket_name
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server

KINDS: dict[str, Sequence[str]] = {
    "digest-cached": ("--mode", "digest", "--cache"),
    "digest-uncached": ("--mode", "digest", "--no-cache"),
    "versioned-cached": ("--mode", "versioned", "--cache"),
    "versioned-uncached": ("--mode", "versioned", "--no-cache"),
}

PLAIN_SUFFIX = "-plain"
PLAIN = f"versioned-cached{PLAIN_SUFFIX}"

NewVolume = Callable[..., AbstractContextManager[MountedVolume]]

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
)


@contextmanager
def new_volume(
    server: S3Server, kind: str, *, mkfs: Sequence[str] = (), mount: Sequence[str] = ("--allow-other",)
) -> Iterator[MountedVolume]:
    """Made and mounted; below a directory that other users may enter, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-"))
    directory.chmod(0o711)
    try:
        volume = MountedVolume(
            server, unique_bucket_name(), directory, mkfs_options=[*KINDS[kind], *mkfs], mount_options=mount
        )
        with mounted(volume):
            volume.mountpoint.chmod(0o755)
            yield volume
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module", params=["digest-uncached", "versioned-cached", PLAIN])
def volume(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[MountedVolume]:
    """Two of the four kinds: for what hardly depends on the kind. The cached one with the kernel reading
    every file by itself, and also without the extension of FUSE."""
    kind, plain, _ = request.param.partition(PLAIN_SUFFIX)
    options = ["--allow-other", *(["--fuse-extension", "off"] if plain else ["--passthrough", "1"])]
    with new_volume(weed_server, kind, mount=options) as made:
        yield made


@pytest.fixture
def extended(volume: MountedVolume) -> bool:
    """Whether the volume's mount has the extension, all of it."""
    status = json.loads(volume.command("status", volume.mountpoint, "--json").stdout)
    return bool(status["mount"]["fuse_extension"] == "full")


@pytest.fixture(scope="module", params=KINDS)
def any_volume(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[MountedVolume]:
    """Each of the four kinds."""
    with new_volume(weed_server, request.param) as made:
        yield made


def _own_directory(volume: MountedVolume) -> Path:
    directory = volume.mountpoint / uuid.uuid4().hex[:12]
    directory.mkdir()
    directory.chmod(0o755)
    return directory


@pytest.fixture
def here(volume: MountedVolume) -> Path:
    """An empty directory on the mount."""
    return _own_directory(volume)


@pytest.fixture
def any_here(any_volume: MountedVolume) -> Path:
    """An empty directory on each kind of mount."""
    return _own_directory(any_volume)


@pytest.fixture
def own_volume(weed_server: S3Server) -> NewVolume:
    """``with own_volume("digest-cached", mount=[…]) as volume``: for tests that end the mount or change how
    it is mounted."""

    def make(kind: str, **options: Sequence[str]) -> AbstractContextManager[MountedVolume]:
        return new_volume(weed_server, kind, **options)

    return make


def remount_cold(volume: MountedVolume) -> None:
    """Unmount, and mount with an empty cache: what is read then comes from S3."""
    volume.umount()
    shutil.rmtree(next(volume.directory.glob("*.tier"), volume.directory / "tier"))
    volume.mount()
