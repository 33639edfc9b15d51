"""Mounting, serving and unmounting."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from s3blobfs.config import MountOptions
from s3blobfs.errors import UsageError
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fuse.extension.session import Extension
from s3blobfs.fuse.notify import KernelNotifier
from s3blobfs.fuse.operations import Operations

log = logging.getLogger(__name__)

MAX_REQUESTS = 512
"""Requests in work at once. Closes that wait for S3 occupy one each, and must not keep others out."""

DEVICE = Path("/dev/fuse")

READ_AHEAD_KIB = 512
"""How far the kernel reads ahead in a mounted file. A request costs the same whatever its size, and the
kernel's own choice of 128 KiB makes four times as many; more than this gains nothing
(docs/performance.md)."""

READ_AHEADS = Path("/sys/class/bdi")


async def serve(
    filesystem: Filesystem,
    options: MountOptions,
    source: str,
    extension: Extension,
    on_ready: Callable[[], None],
) -> None:
    """Mount, call ``on_ready``, and serve until somebody unmounts or :func:`terminate` is called.

    ``source`` is shown in the first column of mount(8). Raises :class:`UsageError` when the mount is
    refused; afterwards nothing is mounted in any case."""
    operations = Operations(
        filesystem,
        entry_timeout_s=options.entry_timeout_s,
        attr_timeout_s=options.attr_timeout_s,
        extension=extension,
    )
    extension.prepare(operations)
    try:
        await _serve_mounted(filesystem, operations, options, source, extension, on_ready)
    finally:
        extension.close()


async def _serve_mounted(
    filesystem: Filesystem,
    operations: Operations,
    options: MountOptions,
    source: str,
    extension: Extension,
    on_ready: Callable[[], None],
) -> None:
    _mount(operations, options, source)
    try:
        extension.negotiate(operations)
        _lend(filesystem, extension, options.passthrough_min_bytes)
        notifier = KernelNotifier()
        filesystem.set_notifier(notifier)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.run)
            nursery.start_soon(filesystem.watch_loans)
            nursery.start_soon(_report_ready, options.mountpoint, on_ready)
            with extension.loop(nursery):
                await pyfuse3.main(min_tasks=4, max_tasks=MAX_REQUESTS)
            nursery.cancel_scope.cancel()
    finally:
        # Also where the kernel has unmounted already: libfuse finds that out for itself.
        pyfuse3.close(unmount=True)


def _lend(filesystem: Filesystem, extension: Extension, min_bytes: int | None) -> None:
    files = extension.kernel_files
    if files is not None and min_bytes is not None:
        try:
            filesystem.lend_to(files, min_bytes)
        except OSError as error:
            extension.leave_passthrough(error.strerror or str(error))
    log.info("FUSE passthrough: %s", extension.passthrough_status)


def _mount(operations: Operations, options: MountOptions, source: str) -> None:
    if not DEVICE.exists():
        raise UsageError(
            f"{DEVICE} is missing: load the kernel module (modprobe fuse), or start the container with"
            " --device /dev/fuse"
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise UsageError(f"{DEVICE} may not be opened by this user: join its group, or mount as root")
    try:
        pyfuse3.init(operations, os.fspath(options.mountpoint), _options(options, source))
    except RuntimeError as error:
        # libfuse has said why on stderr and tells nothing here.
        raise UsageError(
            f"the kernel refuses to mount at {options.mountpoint} ({error}): is the package fuse3"
            " installed, is the directory yours, and is user_allow_other set in /etc/fuse.conf if you"
            " asked for --allow-other?"
        ) from error


def _options(options: MountOptions, source: str) -> set[str]:
    # A comma would end the option.
    chosen = {f"fsname={source.replace(',', '_')}", "subtype=s3blobfs", "default_permissions"}
    chosen.update(options.fuse_options)
    if options.read_only:
        chosen.add("ro")
    if options.allow_other:
        chosen.add("allow_other")
    return chosen


async def _report_ready(mountpoint: Path, on_ready: Callable[[], None]) -> None:
    """Ask the mounted root for its attributes, as a user would, before saying that the mount is usable."""
    status = await trio.to_thread.run_sync(os.stat, mountpoint)
    assert stat.S_ISDIR(status.st_mode)
    raise_read_ahead(status.st_dev)
    log.info("mounted at %s", mountpoint)
    on_ready()


def raise_read_ahead(device: int, read_aheads: Path = READ_AHEADS) -> None:
    """Let the kernel read ahead by :data:`READ_AHEAD_KIB` on the mount with this ``st_dev``, or further if it
    does already. Root may set that, where /sys is writable: elsewhere reading is slower, and nothing else."""
    path = read_aheads / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    try:
        if int(path.read_text()) < READ_AHEAD_KIB:
            path.write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        log.info("the kernel's read-ahead stays as it is: %s: %s", path, error.strerror)


def terminate() -> None:
    """End :func:`serve`; called on the trio thread."""
    pyfuse3.terminate()
