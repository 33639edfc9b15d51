"""``-o``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from s3blobfs import app
from s3blobfs.cli import mount as mount_module
from s3blobfs.cli.main import run
from s3blobfs.config import Encryption, MountOptions
from s3blobfs.types import Durability
from s3blobfs.volume.descriptor import VolumeDescriptor
from tests.volume.test_descriptor import DESCRIPTOR


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would have been mounted."""
    seen: dict[str, Any] = {}

    async def find(bucket: str, prefix: str, s3: object) -> VolumeDescriptor:
        seen.update(bucket=bucket, prefix=prefix)
        return DESCRIPTOR

    async def mount(_: VolumeDescriptor, options: MountOptions, on_ready: object) -> None:
        seen["options"] = options

    monkeypatch.setattr(app, "find_volume", find)
    monkeypatch.setattr(app, "run_mount", mount)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "index.db").touch()
    return seen


def options_of(mounted: dict[str, Any], *arguments: str) -> MountOptions:
    assert run(["mount", "-f", "s3://bucket/p", "mnt", *arguments]) == 0
    options: MountOptions = mounted["options"]
    return options


def test_defaults(mounted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(mounted, "--index", "index.db")
    assert (mounted["bucket"], mounted["prefix"]) == ("bucket", "p/")
    assert options.mountpoint == tmp_path / "mnt"
    assert options.index_path == tmp_path / "index.db"
    assert options.tier.directory == tmp_path / "index.db.tier"
    assert options.tier.size_limit_bytes == 10 * 1024**3
    assert options.durability is None
    assert not (options.read_only or options.allow_other or options.fuse_options)
    assert options.s3.path_style is None and options.s3.encryption is Encryption.NONE


def test_every_option_on_the_command_line(mounted: dict[str, Any], tmp_path: Path) -> None:
    options = options_of(
        mounted,
        *("--index=index.db", "--cache-dir=c", "--cache-size=5G", "--durability=disk", "--read-only"),
        *("--allow-other", "--trace=t", "--trace-client=Nuxeo", "--endpoint-url=http://h:1", "--region=r"),
        *("--profile=p", "--virtual-host-style", "--ca-bundle=ca", "--sse-kms-key-id=k"),
        "--storage-class=STANDARD_IA",
    )
    check_every_option(options, tmp_path)
    assert options.s3.path_style is False


def test_every_option_of_fstab(mounted: dict[str, Any], tmp_path: Path) -> None:
    options = options_of(
        mounted,
        "-o",
        "rw,index=index.db,cache_dir=c,cache_size=5G,durability=disk,ro,allow_other,trace=t,"
        "trace_client=Nuxeo,endpoint_url=http://h:1,region=r,profile=p,path_style,ca_bundle=ca",
        "-o",
        "sse_kms_key_id=k,storage_class=STANDARD_IA,noexec,nosuid,,nodev,defaults,nofail,_netdev,"
        "x-systemd.requires=/run,comment=mine,user",
    )
    check_every_option(options, tmp_path)
    assert options.s3.path_style is True
    assert options.fuse_options == ("noexec", "nosuid", "nodev")


def check_every_option(options: MountOptions, tmp_path: Path) -> None:
    assert options.index_path == tmp_path / "index.db"
    assert options.tier.directory == tmp_path / "c"
    assert options.tier.size_limit_bytes == 5 * 1024**3
    assert options.durability is Durability.DISK
    assert options.read_only and options.allow_other
    assert (options.trace_file, options.trace_client) == (tmp_path / "t", "Nuxeo")
    s3 = options.s3
    assert (s3.endpoint_url, s3.region, s3.profile) == ("http://h:1", "r", "p")
    assert (s3.ca_bundle, s3.encryption, s3.kms_key_id) == (tmp_path / "ca", Encryption.SSE_KMS, "k")
    assert s3.storage_class == "STANDARD_IA"


def test_command_line_counts_more(mounted: dict[str, Any]) -> None:
    options = options_of(mounted, "-o", "index=index.db,cache_size=5G", "--cache-size", "6G")
    assert options.tier.size_limit_bytes == 6 * 1024**3


def test_names_in_fstab_are_options_of_the_command() -> None:
    names = {each.name for each in mount_module.mount.params if isinstance(each, click.Option)}
    assert names >= mount_module._FSTAB_NAMES
