"""``s3blobfs mount``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from s3blobfs.cli import daemon
from s3blobfs.cli.fstab import parse_options
from s3blobfs.cli.params import (
    DURABILITY,
    PATH,
    duration,
    s3_options,
    s3_uri,
    size,
    size_or_off,
    take_s3_options,
)
from s3blobfs.config import (
    DAY_S,
    AccessTimes,
    FuseExtension,
    IndexCopyOptions,
    MountOptions,
    QueueOptions,
    ReadOptions,
    S3Options,
    TierOptions,
)
from s3blobfs.errors import UsageError
from s3blobfs.types import Durability
from s3blobfs.volume.descriptor import VolumeDescriptor
from s3blobfs.volume.mountpoint import check_vacant, resolve
from s3blobfs.volume.paths import VolumePaths

_ARGUMENTS = "s3blobfs.cli.mount.arguments"
_KERNEL_OPTIONS = "s3blobfs.cli.mount.kernel_options"


class _MountCommand(click.Command):
    """Keeps its arguments as they came, for the process in the background."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def _take_options(ctx: click.Context, _: click.Parameter, texts: tuple[str, ...]) -> None:
    """Handled before all other options, whose defaults these become."""
    parameters = {name: each for each in ctx.command.params if (name := each.name) and name in _FSTAB_NAMES}
    values, for_kernel = parse_options(",".join(texts), parameters)
    ctx.default_map = {**(ctx.default_map or {}), **values}
    ctx.meta[_KERNEL_OPTIONS] = for_kernel


_FSTAB_NAMES = frozenset(
    {
        *("index", "cache_dir", "cache_size", "durability", "read_only", "allow_other", "trace"),
        *("trace_client", "endpoint_url", "region", "profile", "path_style", "ca_bundle", "sse_s3"),
        *("queue_size", "queue_files", "queue_age", "index_sync", "index_lag", "index_retention"),
        *("noatime", "nodiratime", "fuse_extension", "passthrough", "no_early_upload"),
        *("sse_kms_key_id", "storage_class", "request_timeout", "total_timeout"),
    }
)


@click.command(cls=_MountCommand)
@click.argument("uri", type=s3_uri, metavar="s3://BUCKET[/PREFIX]")
@click.argument("mountpoint", type=PATH)
@click.option("--index", type=PATH, help="The volume's index; in the state directory if not given.")
@click.option(
    "--cache-dir", type=PATH, help="Directory of staged files and the cache; beside the index if not given."
)
@click.option(
    "--cache-size",
    type=size,
    metavar="SIZE",
    default="10G",
    show_default=True,
    help="The most that directory may hold.",
)
@click.option(
    "--durability", type=DURABILITY, help="What close() waits for; the volume's setting if not given."
)
@click.option(
    "--queue-size", type=size, metavar="SIZE", default="4G", show_default=True,
    help="With --durability disk: how much may wait for its upload. Writers are slowed from half of it on, "
    "wait at it, and get ENOSPC if uploads fail.",
)  # fmt: skip
@click.option(
    "--queue-files", type=click.IntRange(1), metavar="N", default=10_000, show_default=True,
    help="The same, for how many files.",
)  # fmt: skip
@click.option(
    "--queue-age", type=duration, metavar="AGE", default="1h", show_default=True,
    help="With --durability disk: writers are slowed, too, while a file waits for its upload for longer.",
)  # fmt: skip
@click.option(
    "--prefetch-files", type=click.IntRange(0), metavar="N", default=ReadOptions().siblings,
    show_default=True,
    help="How many small files are fetched into the cache ahead of who reads a directory's files in the "
    "order of its listing; 0 turns that off.",
)  # fmt: skip
@click.option(
    "--no-early-upload", is_flag=True,
    help="Send large files when they are closed only. Else those of stores with versioned keys are sent "
    "while they are written, and what the objects are is in a tag of theirs.",
)  # fmt: skip
@click.option("--read-only", is_flag=True, help="Refuse all changes.")
@click.option("--noatime", is_flag=True, help="Reads leave access times as they are.")
@click.option("--nodiratime", is_flag=True, help="Listings leave those of directories as they are.")
@click.option("--allow-other", is_flag=True, help="Let other users in, by the files' permissions.")
@click.option(
    "--trace", type=PATH, metavar="FILE", help="Draw what happens as a sequence diagram (PlantUML)."
)
@click.option(
    "--trace-client", default="client", show_default=True, metavar="NAME", help="Name of the client there."
)
@click.option(
    "--index-sync", is_flag=True,
    help="With --durability s3, close() and fsync() wait until the index's copy in the bucket has it, too.",
)  # fmt: skip
@click.option(
    "--index-lag", type=click.FloatRange(0.05, 3600), default=1.0, show_default=True, metavar="SECONDS",
    help="How far that copy may be behind while S3 answers.",
)  # fmt: skip
@click.option(
    "--index-retention", type=click.FloatRange(0.25, 3650), default=7.0, show_default=True, metavar="DAYS",
    help="How far back 's3blobfs recover --at' reaches.",
)  # fmt: skip
@click.option(
    "--take-over", is_flag=True,
    help="Go on from this index although the bucket has a later state, which is left behind.",
)  # fmt: skip
@click.option(
    "--fuse-extension", type=click.Choice([each.value for each in FuseExtension]), default="auto",
    show_default=True, help="What to use of FUSE beyond the library pyfuse3: all, nothing that patches a "
    "loaded library, or nothing.",
)  # fmt: skip
@click.option(
    "--passthrough", type=size_or_off, metavar="SIZE|off", default="1M", show_default=True,
    help="Let the kernel read files of the cache from this size on by itself, if it can (Linux 6.9, root).",
)  # fmt: skip
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option(
    "-o", "options", multiple=True, expose_value=False, is_eager=True, callback=_take_options,
    metavar="OPTION,…", help="Options as in fstab(5): ro, noatime, allow_other, noexec, nosuid, nodev, and "
    "those above as cache_size=5G.",
)  # fmt: skip
@click.option("-n", "-s", "-v", "_", is_flag=True, hidden=True, expose_value=False)  # of mount(8)
@click.option("--ready-fd", type=int, hidden=True)
@s3_options
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    uri: tuple[str, str],
    mountpoint: Path,
    foreground: bool,
    ready_fd: int | None,
    **values: Any,
) -> None:
    """Mount a volume at MOUNTPOINT, an empty directory.

    Returns when the mount is usable, or says in one line why it is not. Everything that was closed is in S3
    (with --durability s3, the default); 's3blobfs umount' waits for the rest.

    \b
    Examples:
        s3blobfs mount s3://my-bucket /mnt/files
        s3blobfs mount s3://my-bucket/projects ~/projects --cache-size 50G
        s3blobfs mount s3://test /mnt/test --endpoint-url http://127.0.0.1:8333 -f

    \b
    In /etc/fstab, with the command linked into /usr/local/bin:
        s3://my-bucket  /mnt/files  fuse.s3blobfs  _netdev,allow_other,cache_size=50G  0  0
    """
    mountpoint = resolve(mountpoint)
    check_vacant(mountpoint)
    s3 = take_s3_options(values)
    kernel_options: tuple[str, ...] = ctx.meta[_KERNEL_OPTIONS]
    if not foreground:
        debug = ["--debug"] if ctx.find_root().params.get("debug") else []
        given: list[str] = ctx.meta[_ARGUMENTS]
        log = daemon.start(lambda fd: [*debug, "mount", "--foreground", f"--ready-fd={fd}", *given])
        click.echo(f"mounted at {mountpoint}; its log is {log}")
        return
    _log_for_a_daemon()
    # Not for the process that only starts the one in the background: the S3 libraries take half a second.
    import trio

    from s3blobfs.app import find_volume, run_mount

    if ready_fd is None:
        descriptor = trio.run(find_volume, *uri, s3)
        options = _options(descriptor, mountpoint, s3, kernel_options, values)
        trio.run(run_mount, descriptor, options, lambda: None)
        return
    with daemon.ReadyPipe(ready_fd) as pipe:
        descriptor = trio.run(find_volume, *uri, s3)
        options = _options(descriptor, mountpoint, s3, kernel_options, values)
        log_path = VolumePaths(options.index_path).log
        daemon.redirect_output(log_path)
        trio.run(run_mount, descriptor, options, lambda: pipe.ready(str(log_path)))


def _log_for_a_daemon() -> None:
    """With times, and also what went well."""
    root = logging.getLogger()
    logging.getLogger("s3blobfs").setLevel(min(logging.INFO, root.level))
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s"))


def _options(
    descriptor: VolumeDescriptor,
    mountpoint: Path,
    s3: S3Options,
    kernel_options: tuple[str, ...],
    values: dict[str, Any],
) -> MountOptions:
    """Paths are made absolute: the process in the background leaves the directory it was started in."""
    index: Path | None = values["index"]
    paths = VolumePaths(index.absolute()) if index else VolumePaths.default(descriptor.settings.volume_id)
    if not paths.index.exists():
        raise UsageError(
            f"the index of {descriptor.title} is not at {paths.index}; give it with --index, or bring it "
            f"back from the bucket: s3blobfs recover {descriptor.settings.uri}"
        )
    cache_dir: Path = values["cache_dir"] or paths.tier
    trace_file: Path | None = values["trace"]
    return MountOptions(
        mountpoint=mountpoint,
        index_path=paths.index,
        tier=TierOptions(directory=cache_dir.absolute(), size_limit_bytes=values["cache_size"]),
        read=ReadOptions(siblings=values["prefetch_files"]),
        s3=s3,
        durability=Durability(values["durability"]) if values["durability"] else None,
        read_only=values["read_only"],
        allow_other=values["allow_other"],
        access_times=AccessTimes(
            files=not values["noatime"], directories=not (values["noatime"] or values["nodiratime"])
        ),
        trace_file=trace_file.absolute() if trace_file else None,
        trace_client=values["trace_client"],
        index_copy=IndexCopyOptions(
            lag_s=values["index_lag"],
            sync=values["index_sync"],
            retention_s=values["index_retention"] * DAY_S,
            take_over=values["take_over"],
        ),
        queue=QueueOptions(
            size_bytes=values["queue_size"], files=values["queue_files"], age_s=values["queue_age"]
        ),
        early_upload=not values["no_early_upload"],
        fuse_extension=FuseExtension(values["fuse_extension"]),
        passthrough_min_bytes=values["passthrough"],
        fuse_options=kernel_options,
    )
