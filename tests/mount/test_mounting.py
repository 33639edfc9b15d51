"""A mount's end, by crash and in order, and the ways to mount."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fs.calls import pattern
from tests.mount.conftest import NewVolume, remount_cold
from tests.mount.test_semantics import eventually, fails, fd_of, ours


@pytest.mark.parametrize("durability", ["s3", "disk"])
@pytest.mark.parametrize("kind", ["digest-uncached", "versioned-cached"])
def test_what_was_acknowledged_survives_a_kill(own_volume: NewVolume, kind: str, durability: str) -> None:
    with own_volume(kind, mkfs=["--durability", durability]) as volume:
        root = volume.mountpoint
        (root / "d").mkdir()
        for number in range(15):
            (root / "d" / str(number)).write_bytes(pattern(50_000, number + 1))
        (root / "d" / "0").write_bytes(b"again")
        (root / "d" / "1").unlink()
        os.rename(root / "d" / "2", root / "renamed")
        synced = os.open(root / "synced", os.O_CREAT | os.O_RDWR)
        os.write(synced, b"synced")
        os.fsync(synced)
        unfinished = os.open(root / "unfinished", os.O_CREAT | os.O_RDWR)
        os.write(unfinished, b"never closed")
        with fd_of(root, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
        volume.kill()
        for fd in (synced, unfinished):
            with suppress(OSError):
                os.close(fd)
        volume.check()
        volume.mount()
        assert (root / "d" / "0").read_bytes() == b"again"
        assert not (root / "d" / "1").exists()
        assert (root / "renamed").read_bytes() == pattern(50_000, 3)
        for number in range(3, 15):
            assert (root / "d" / str(number)).read_bytes() == pattern(50_000, number + 1)
        assert (root / "synced").read_bytes() == b"synced"
        assert (root / "unfinished").read_bytes() in (b"", b"never closed")
        remount_cold(volume)
        assert (root / "d" / "14").read_bytes() == pattern(50_000, 15)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_unmounts_in_order(own_volume: NewVolume, number: signal.Signals) -> None:
    with own_volume("digest-cached", mkfs=["--durability", "disk"]) as volume:
        (volume.mountpoint / "f").write_bytes(b"content")
        pid = volume.pid
        os.kill(pid, number)
        eventually(lambda: not volume.is_mounted, "it stays mounted")
        eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), "the process stays")
        assert os.listdir(volume.mountpoint) == []
        volume.check()
        volume.mount()
        assert (volume.mountpoint / "f").read_bytes() == b"content"
        assert ours(volume.mountpoint / "f", "state") == "stored"


@pytest.mark.parametrize("kind", ["digest-uncached", "versioned-cached"])
def test_a_read_only_mount(own_volume: NewVolume, kind: str) -> None:
    with own_volume(kind) as volume:
        root = volume.mountpoint
        (root / "f").write_bytes(b"content")
        (root / "d").mkdir()
        os.setxattr(root / "f", "user.x", b"y")
        volume.remount("--read-only")
        assert (root / "f").read_bytes() == b"content"
        assert sorted(os.listdir(root)) == ["d", "f"]
        assert os.getxattr(root / "f", "user.x") == b"y"
        for call in (
            lambda: (root / "f").write_bytes(b""),
            lambda: os.open(root / "f", os.O_RDWR),
            lambda: (root / "g").touch(),
            lambda: (root / "e").mkdir(),
            lambda: (root / "f").unlink(),
            lambda: (root / "d").rmdir(),
            lambda: (root / "f").chmod(0o600),
            lambda: os.utime(root / "f"),
            lambda: os.truncate(root / "f", 0),
            lambda: os.rename(root / "f", root / "g"),
            lambda: os.link(root / "f", root / "g"),
            lambda: os.symlink("f", root / "g"),
            lambda: os.setxattr(root / "f", "user.x", b"z"),
            lambda: os.removexattr(root / "f", "user.x"),
        ):
            with fails(errno.EROFS):
                call()
        assert not os.access(root / "f", os.W_OK)
        volume.remount()
        assert (root / "f").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["digest-uncached", "versioned-cached"])
def test_a_full_cache_is_enospc_and_loses_nothing(own_volume: NewVolume, kind: str) -> None:
    with own_volume(kind, mount=["--cache-size", "6M"]) as volume:
        root = volume.mountpoint
        for number in range(10):  # more than it holds, one after the other
            (root / str(number)).write_bytes(pattern(1_000_000, number + 1))
        with fd_of(root / "large", os.O_CREAT | os.O_RDWR) as fd:
            written = 0
            with fails(errno.ENOSPC):
                while written < 64_000_000:
                    written += os.write(fd, pattern(500_000))
            assert written >= 4_000_000
            kept = os.fstat(fd).st_size
            assert kept >= written
            os.ftruncate(fd, 1_000_000)
        for number in range(10):
            assert (root / str(number)).read_bytes() == pattern(1_000_000, number + 1)
        data = (root / "large").read_bytes()
        assert data == (pattern(500_000) * 2)[:1_000_000]
        volume.remount()
        assert (root / "large").read_bytes() == data


def test_the_cache_serves_what_s3_cannot(own_volume: NewVolume) -> None:
    """A cached file is read without S3, also by a later mount."""
    with own_volume("versioned-cached") as volume:
        (volume.mountpoint / "f").write_bytes(pattern(300_000))
        volume.remount()
        before = volume.command("status", volume.mountpoint, "--json").stdout
        assert (volume.mountpoint / "f").read_bytes() == pattern(300_000)
        after = volume.command("status", volume.mountpoint, "--json").stdout
        assert _gets(before) == _gets(after)


def _gets(status: str) -> object:
    return json.loads(status)["counts"].get("s3.get", 0)


@pytest.mark.parametrize("kind", ["digest-uncached", "versioned-uncached"])
def test_an_uncached_volume_leaves_nothing_on_disk(own_volume: NewVolume, kind: str) -> None:
    with own_volume(kind) as volume:
        path = volume.mountpoint / "f"
        path.write_bytes(pattern(5_000_000))
        remount_cold(volume)
        assert path.read_bytes() == pattern(5_000_000)
        left = [
            each
            for each in volume.directory.rglob("*")
            if not each.is_relative_to(volume.mountpoint)
            and each.is_file()
            and each.stat().st_size > 4_000_000
        ]
        assert left == []


def test_a_second_mount_of_a_volume_is_refused(own_volume: NewVolume) -> None:
    with own_volume("digest-cached") as volume:
        second = volume.directory / "second"
        second.mkdir()
        endpoint = ["--endpoint-url", volume.server.endpoint_url]
        done = volume.command("mount", volume.uri, second, "--index", volume.index, *endpoint, check=False)
        assert done.returncode != 0
        assert str(volume.pid) in done.stderr
        assert str(volume.mountpoint) in done.stderr
        assert os.listdir(second) == []
        shutil.rmtree(second)
