"""What the kernel is told of changes that it did not ask for."""

from __future__ import annotations

import contextlib
import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyfuse3
import pytest
import trio

from s3blobfs.control.client import MountedVolume as Control
from s3blobfs.fuse.notify import KernelNotifier
from tests.conftest import AllowLogs
from tests.support.mounted import MountedVolume, mounted
from tests.support.servers import S3Server


class Kernel:
    """Takes notices in place of the real one."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes | None]] = []
        self.refusal: int | None = None

    def invalidate_inode(self, inode: int) -> None:
        self._hear(inode, None)

    def invalidate_entry(self, inode: int, name: bytes) -> None:
        self._hear(inode, name)

    def _hear(self, inode: int, name: bytes | None) -> None:
        if self.refusal is not None:
            raise OSError(self.refusal, "refused")
        self.heard.append((inode, name))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", kernel.invalidate_inode)
    monkeypatch.setattr(pyfuse3, "invalidate_entry", kernel.invalidate_entry)
    return kernel


async def test_notices_are_delivered_in_order_however_many(kernel: Kernel, nursery: trio.Nursery) -> None:
    notifier = KernelNotifier()
    for number in range(3000):
        notifier.entry_changed(1, b"%d" % number)
    notifier.inode_changed(7)
    nursery.start_soon(notifier.run)
    await notifier.delivered()
    assert kernel.heard == [*((1, b"%d" % number) for number in range(3000)), (7, None)]


@pytest.mark.parametrize("refusal", [errno.ENOENT, errno.ENOTCONN])
async def test_what_the_kernel_does_not_know_needs_no_notice(
    kernel: Kernel, nursery: trio.Nursery, refusal: int
) -> None:
    kernel.refusal = refusal
    notifier = KernelNotifier()
    nursery.start_soon(notifier.run)
    notifier.inode_changed(7)
    await notifier.delivered()


async def test_another_refusal_is_logged(
    kernel: Kernel, nursery: trio.Nursery, allow_logs: AllowLogs
) -> None:
    allow_logs("refuses a notice about inode 7")
    kernel.refusal = errno.EPERM
    notifier = KernelNotifier()
    nursery.start_soon(notifier.run)
    notifier.inode_changed(7)
    await notifier.delivered()


async def test_nobody_waits_for_a_kernel_that_has_unmounted(kernel: Kernel) -> None:
    notifier = KernelNotifier()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.delivered)
        nursery.start_soon(_run_for_no_time, notifier)
    with trio.fail_after(5):
        await notifier.delivered()
    notifier.inode_changed(7)
    assert kernel.heard == []


async def _run_for_no_time(notifier: KernelNotifier) -> None:
    with trio.move_on_after(0):
        await notifier.run()


def test_a_copy_is_there_when_its_command_returns(moto_server: S3Server, tmp_path: Path) -> None:
    """Also under names that were looked for just before, whose absence the kernel remembers."""
    with mounted(MountedVolume(moto_server, "notices", tmp_path)) as volume:
        source = volume.mountpoint / "source"
        source.write_bytes(b"content")
        control = Control.of(volume.mountpoint)
        parent, inode = volume.mountpoint.stat().st_ino, source.stat().st_ino

        def copy(number: int) -> None:
            target = volume.mountpoint / f"copy-{number}"
            with contextlib.suppress(FileNotFoundError):
                target.stat()
            control.call("copy", source=inode, parent=parent, name=target.name, replace=False)
            assert target.read_bytes() == b"content"

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, range(200)))
