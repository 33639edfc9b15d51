"""The greeting: what the kernel is asked for, and what comes of it."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, InodeT, RequestContext

from s3blobfs.config import FuseExtension
from s3blobfs.errors import UsageError
from s3blobfs.fuse.extension import handshake, protocol
from s3blobfs.fuse.extension.handshake import ADDED, ALWAYS, HandshakeFailed, open_devices, reply_to
from s3blobfs.fuse.extension.protocol import InitFlag
from s3blobfs.fuse.extension.session import Extension, Level
from tests.fuse.kit import TinyOperations, served
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server

UNIQUE = 4711


def request(
    offered: InitFlag, *, opcode: int = protocol.OPCODE_INIT, minor: int = 45, old: bool = False
) -> bytes:
    """FUSE_INIT, as kernels before and since 5.17 send it."""
    body = protocol.INIT_IN.pack(7, minor, 131_072, int(offered) & 0xFFFF_FFFF)
    if not old:
        body += protocol.INIT_IN_FLAGS2.pack(int(offered) >> 32) + bytes(44)
    size = protocol.IN_HEADER.size + len(body)
    return protocol.IN_HEADER.pack(size, opcode, UNIQUE, 0, 0, 0, 1, 0, 0) + body


def flags_in(reply: bytes) -> InitFlag:
    assert protocol.OUT_HEADER.unpack_from(reply) == (len(reply), 0, UNIQUE)
    fields = protocol.INIT_OUT.unpack_from(reply, protocol.OUT_HEADER.size)
    return InitFlag(fields[3] | fields[10] << 32)


def test_what_the_kernel_offers_is_asked_for() -> None:
    everything = ALWAYS | ADDED
    assert flags_in(reply_to(request(InitFlag(~0 & 0xFFFF_FFFF_FFFF)), everything)) == everything


def test_what_it_does_not_offer_is_not() -> None:
    offered = (ALWAYS | ADDED) & ~InitFlag.HANDLE_KILLPRIV_V2
    assert flags_in(reply_to(request(offered), ALWAYS | ADDED)) == offered


def test_a_kernel_without_a_second_word_of_flags() -> None:
    offered = ALWAYS & ~InitFlag.INIT_EXT
    reply = reply_to(request(offered, minor=31, old=True), ALWAYS | ADDED)
    assert flags_in(reply) == offered
    assert protocol.INIT_OUT.unpack_from(reply, protocol.OUT_HEADER.size)[1] == 31


def test_the_reply_has_the_length_the_kernel_wants() -> None:
    assert protocol.INIT_OUT.size == 64
    assert protocol.OPEN_OUT.size == 16


def test_another_first_request_is_refused() -> None:
    with pytest.raises(HandshakeFailed, match="not FUSE_INIT"):
        reply_to(request(ALWAYS, opcode=1), ALWAYS)


class Meeting(TinyOperations):
    """No LOOKUP is answered before another one has come."""

    def __init__(self, extension: Extension) -> None:
        super().__init__(extension)
        self._inside = 0
        self._met = trio.Event()

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._inside += 1
        if self._inside == 2:
            self._met.set()
        await self._met.wait()
        return await super().lookup(parent_inode, name, ctx)


async def test_names_of_one_directory_are_looked_up_at_the_same_time(tmp_path: Path) -> None:
    extension = Extension(FuseExtension.AUTO)
    mountpoint = tmp_path / "mnt"
    async with served(Meeting(extension), extension, mountpoint):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for name in ("one", "other"):
                    nursery.start_soon(trio.to_thread.run_sync, partial(os.stat, mountpoint / name))


@pytest.mark.parametrize("wanted", [FuseExtension.INIT, FuseExtension.OFF])
async def test_mounting_again_and_again_leaves_nothing_open(tmp_path: Path, wanted: FuseExtension) -> None:
    before = open_devices()
    for _ in range(3):
        extension = Extension(wanted)
        async with served(TinyOperations(extension), extension, tmp_path / "mnt"):
            assert extension.level is (Level.OFF if wanted is FuseExtension.OFF else Level.INIT)
            with pytest.raises(FileNotFoundError):
                await trio.to_thread.run_sync(os.stat, tmp_path / "mnt" / "missing")
            assert len(open_devices() - before) == 1
        assert open_devices() == before


async def test_without_proc_it_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "OPEN_FILES", tmp_path / "no-proc")
    extension = Extension(FuseExtension.AUTO)
    async with served(TinyOperations(extension), extension, tmp_path / "mnt"):
        await trio.to_thread.run_sync(os.stat, tmp_path / "mnt" / "file")
    assert extension.status == "off (what is open cannot be listed: No such file or directory)"


async def test_a_device_that_is_not_found_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "DEVICE", Path("/dev/something"))
    extension = Extension(FuseExtension.AUTO)
    async with served(TinyOperations(extension), extension, tmp_path / "mnt"):
        await trio.to_thread.run_sync(os.stat, tmp_path / "mnt" / "file")
    assert extension.level is Level.OFF
    assert "0 descriptors" in extension.reason


def test_a_greeting_that_cannot_be_answered_names_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = Extension(FuseExtension.AUTO)
    extension.prepare()

    def fail(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(handshake.Handshake, "answer", fail)
    with pytest.raises(UsageError, match="--fuse-extension off"):
        extension.negotiate(TinyOperations(extension))
    extension.close()
    assert pyfuse3.trio_token is None


@pytest.mark.parametrize(
    ("option", "shown"), [("auto", "full"), ("init", "init only"), ("off", r"off \(no more is wanted\)")]
)
def test_status_tells_what_is_used(moto_server: S3Server, tmp_path: Path, option: str, shown: str) -> None:
    volume = MountedVolume(
        moto_server, f"extension-{option}", tmp_path, mount_options=["-o", f"fuse_extension={option}"]
    )
    with mounted(volume):
        (volume.mountpoint / "f").write_bytes(b"content")
        assert (volume.mountpoint / "f").read_bytes() == b"content"
        text = volume.command("status", volume.mountpoint).stdout
        assert re.search(rf"fuse extension +({shown})", text), text
