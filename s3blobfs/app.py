"""The composition root: makes volumes and runs mounts. The only place that names concrete classes.

Who owns what in a mount, and in which order it ends:

    lock                       until everything below is closed
    └── control socket         takes requests until the lock is given back; those who asked for the unmount
        │                      are answered after that
        └── clients, index, local tier           opened in this order, closed in the opposite one
            └── what runs in the background: index, tier, uploader, reaper, signals
                └── the FUSE session, then the barrier to S3
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial

import trio

from s3blobfs import __version__, failpoints, process
from s3blobfs.background import Background
from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import MountOptions, S3Options, VolumeSettings
from s3blobfs.control.maintenance import MaintenanceRequests
from s3blobfs.control.messages import Json
from s3blobfs.control.requests import MountRequests, UnmountWatch
from s3blobfs.control.server import ControlServer, Handler
from s3blobfs.control.stores import StoreRequests
from s3blobfs.control.tracefile import TraceRecorder
from s3blobfs.errors import S3BlobFSError, UsageError
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fuse.extension.session import Extension
from s3blobfs.fuse.mount import serve, terminate
from s3blobfs.index import settings, stores, uploads
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.target import Target
from s3blobfs.replica.opening import open_shipper
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.client import S3ClientFactory, make_client_factory
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from s3blobfs.types import Durability, StoreConfig
from s3blobfs.volume.clients import BucketClients
from s3blobfs.volume.descriptor import (
    VolumeDescriptor,
    compare,
    get_descriptor,
    replace_descriptor,
    store_to_json,
)
from s3blobfs.volume.lock import LockHolder, VolumeLock
from s3blobfs.volume.making import MadeVolume, NewVolume, make_volume_in
from s3blobfs.volume.paths import VolumePaths
from s3blobfs.volume.tier_mark import claim_tier
from s3blobfs.writeback.early import UNAWAITED_AFTER_S, EarlyLimits
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.recovery import recover
from s3blobfs.writeback.uploader import Limits, Uploader

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FAREWELL_TIMEOUT_S = 10.0
"""For requests to be answered when the mount has ended."""
BARRIER_REPORT_S = 0.5
BARRIER_LOG_S = 10.0
UNEXPECTED_END = "the mount ended unexpectedly; its log has the details"


async def make_volume(new: NewVolume) -> MadeVolume:
    """Make a volume; see :func:`~s3blobfs.volume.making.make_volume_in`. Raises, besides, what reaching S3
    without credentials raises."""
    tracer = Tracer()
    factory = await trio.to_thread.run_sync(make_client_factory, new.s3, tracer)
    try:
        return await make_volume_in(factory(new.bucket), new, tracer)
    finally:
        await factory.aclose()


async def find_volume(bucket: str, prefix: str, s3: S3Options) -> VolumeDescriptor:
    """What the bucket says about the volume at a prefix.

    Raises :class:`~s3blobfs.errors.VolumeMismatch` where there is none, and what S3 raises."""
    factory = await trio.to_thread.run_sync(make_client_factory, s3, Tracer())
    try:
        return await get_descriptor(factory(bucket), prefix)
    finally:
        await factory.aclose()


async def run_mount(
    descriptor: VolumeDescriptor, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    """Mount the volume that ``descriptor`` (as the bucket has it) describes, call ``on_ready``, and serve it
    until it is unmounted or a signal asks for that. Returns when everything is in S3 and closed.

    Raises :class:`S3BlobFSError` of any kind for what made it end otherwise; the lock is free and nothing is
    mounted then, too. What is staged is kept for the next mount."""
    failpoints.arm_from(os.environ)
    process.keep_memory_private()
    process.raise_descriptor_limit()
    process.share_heaps()
    process.look_for_garbage_seldom()
    await _Mount(descriptor, options, on_ready).run()


class _Stage(enum.Enum):
    OPENING = enum.auto()
    SERVING = enum.auto()
    STORING = enum.auto()


class _Mount:
    """One mount, from its lock to its end."""

    def __init__(
        self, descriptor: VolumeDescriptor, options: MountOptions, on_ready: Callable[[], None]
    ) -> None:
        self._descriptor = descriptor
        self._options = options
        self._on_ready = on_ready
        self._paths = VolumePaths(options.index_path)
        self._tracer = Tracer(options.trace_client)
        self._extension = Extension(
            options.fuse_extension, passthrough=options.passthrough_min_bytes is not None
        )
        self._watch = UnmountWatch()
        self._control: ControlServer | None = None
        self._stage = _Stage.OPENING
        self._storing = trio.CancelScope()
        self._since_ns = time.time_ns()
        self._filesystem: Filesystem | None = None
        self._background = Background(self._paths.log, self._refuse_changes)

    async def run(self) -> None:
        failure: S3BlobFSError | None = None
        ended: str | None = UNEXPECTED_END
        with VolumeLock(self._paths.lock, LockHolder.this_process("mount", self._options.mountpoint)) as lock:
            async with trio.open_nursery() as nursery:
                try:
                    await self._run_locked(nursery)
                    ended = None
                except* S3BlobFSError as group:
                    failure = _leading(group)
                    ended = str(failure)
                except* Exception:
                    logger.exception("the mount ended by a bug")
                    raise
                finally:
                    if self._control is not None:
                        self._control.stop_listening()
                    lock.release()
                    self._watch.end(ended)
                    nursery.cancel_scope.deadline = trio.current_time() + FAREWELL_TIMEOUT_S
        if failure is not None:
            raise failure

    async def _run_locked(self, nursery: trio.Nursery) -> None:
        options, tracer = self._options, self._tracer
        async with AsyncExitStack() as stack:
            factory = await trio.to_thread.run_sync(make_client_factory, options.s3, tracer)
            stack.push_async_callback(factory.aclose)
            clients = BucketClients(factory)
            stack.push_async_callback(clients.aclose)
            db = Database.open(
                options.index_path,
                tracer=tracer,
                commit_delay_s=options.commit_delay_s,
                read_only=options.read_only,
            )
            stack.push_async_callback(db.aclose)
            volume = await self._agree(db, clients)
            configs = await db.read(stores.every)
            shipper = None if options.read_only else await self._open_shipper(db, factory, volume, configs)
            tier = Tier(options.tier, options.read, tracer)
            stack.push_async_callback(tier.aclose)
            await tier.start()
            await self._claim_tier(db, volume)
            blob_stores = {
                config.id: open_store(config, clients.of(config.bucket), tracer) for config in configs
            }
            reaper = Reaper(
                db,
                tier,
                blob_stores,
                garbage_grace_s=volume.garbage_grace_s,
                shipped=shipper.shipped if shipper else trio.lowlevel.checkpoint,
            )
            durability = options.durability or volume.durability
            limits = _limits(options, patient=durability is Durability.DISK)
            filesystem = Filesystem(
                db=db,
                tier=tier,
                stores=blob_stores,
                make_uploader=partial(Uploader, db, tier, blob_stores, reaper, limits=limits),
                reaper=reaper,
                tracer=tracer,
                durability=durability,
                read_only=options.read_only,
                index_copy=shipper,
                index_sync=options.index_copy.sync,
                access_times=options.access_times,
                control_path=str(self._paths.control_socket),
            )
            self._filesystem = filesystem
            recorder = TraceRecorder(tracer, Local.of(configs[0].cached))
            stack.callback(recorder.stop)
            if options.trace_file is not None:
                recorder.start(options.trace_file)
            parts = _Parts(volume, db, tier, blob_stores, clients, filesystem, recorder, shipper)
            async with trio.open_nursery() as background:
                await background.start(self._heed_signals)
                await background.start(db.run)
                await background.start(tier.run)
                if shipper is not None:
                    await background.start(self._background.run, "the copy of the index", shipper.run)
                    report = await recover(db, tier, blob_stores, filesystem.uploader, reaper)
                    await filesystem.resume(report.contents)
                    # Only now: an upload that ended before would find its content not shown yet.
                    await background.start(self._background.run_writer, "uploads", filesystem.uploader.run)
                    await background.start(self._background.run_writer, "the deletion of objects", reaper.run)
                self._control = ControlServer(self._paths.control_socket, self._handlers(parts))
                await nursery.start(self._control.run)
                await self._serve(parts)
                background.cancel_scope.cancel()

    async def _open_shipper(
        self, db: Database, factory: S3ClientFactory, volume: VolumeSettings, configs: Sequence[StoreConfig]
    ) -> Shipper:
        return await open_shipper(
            db,
            factory.beside(volume.bucket),
            volume,
            options=self._options.index_copy,
            conditional=configs[0].conditional_put,
            directory=self._paths.index_copy,
            on_fenced=self._background.give_up,
        )

    def _refuse_changes(self) -> None:
        if self._filesystem is not None:
            self._filesystem.refuse_changes()

    async def _claim_tier(self, db: Database, volume: VolumeSettings) -> None:
        """See to it that what the index says is staged can be there."""
        staged = await db.read(uploads.pending)
        if staged.files and self._options.read_only:
            raise UsageError(
                f"{staged.files} files are not in S3 yet, and a read-only mount cannot bring them there: "
                "mount without --read-only once"
            )
        claim_tier(self._options.tier.directory, volume.volume_id, staged.files)

    async def _agree(self, db: Database, clients: BucketClients) -> VolumeSettings:
        """Check that index and bucket are of the same volume."""

        def read(tx: Transaction) -> VolumeDescriptor:
            return VolumeDescriptor(settings.load(tx), tuple(stores.every(tx)))

        in_index = await db.read(read)
        if not compare(self._descriptor, in_index) and not self._options.read_only:
            logger.info("the volume's description in the bucket is behind the index, and is replaced")
            await replace_descriptor(clients.of(in_index.settings.bucket), in_index)
        return in_index.settings

    # -- serving ---------------------------------------------------------------------------------------

    async def _serve(self, parts: _Parts) -> None:
        process.touch_heap()  # now, when what makes up the mount has its memory
        await serve(parts.filesystem, self._options, parts.volume.uri, self._extension, self._ready)
        self._stage = _Stage.STORING
        logger.info("unmounted from %s", self._options.mountpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_left, parts.filesystem.uploader)
            with self._storing:
                await parts.filesystem.close(detach=self._watch.detach)
            nursery.cancel_scope.cancel()
        left, directory = parts.filesystem.uploader.pending(), self._options.tier.directory
        if self._background.given_up is not None:
            raise UsageError(f"{left.files} files stay in {directory}: {self._background.given_up}")
        if self._storing.cancelled_caught:
            raise UsageError(
                f"given up: {left.files} files are not in S3 yet and stay in {directory}; they go there when "
                "the volume is mounted again"
            )
        if left.files:
            self._watch.detached(left.files, left.bytes)
            logger.info("detached: %d files go to S3 when the volume is mounted again", left.files)
        else:
            logger.info("everything is in S3")

    def _ready(self) -> None:
        """Only from now on is there a session that could be told to end."""
        self._stage = _Stage.SERVING
        self._on_ready()

    async def _report_left(self, uploader: Uploader) -> None:
        """Tell the log, and those who wait for the unmount, how much is left and what holds it up."""
        log_at = trio.current_time()
        while True:
            left = uploader.pending()
            self._watch.report(left.files, left.bytes, left.last_error)
            if left.files and trio.current_time() >= log_at:
                held_up = f"; the last error: {left.last_error}" if left.last_error else ""
                logger.info("%d files, %d bytes are still to be stored%s", left.files, left.bytes, held_up)
                log_at = trio.current_time() + BARRIER_LOG_S
            await trio.sleep(BARRIER_REPORT_S)

    async def _heed_signals(self, task_status: trio.TaskStatus[None]) -> None:
        """The first signal unmounts; one during the barrier gives that up."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                logger.info("%s: %s", signal.Signals(number).name, self._stage.name.lower())
                if self._stage is _Stage.OPENING:
                    raise UsageError("interrupted before the mount was usable")
                if self._stage is _Stage.SERVING:
                    terminate()
                else:
                    self._storing.cancel()

    # -- the control socket ----------------------------------------------------------------------------

    def _handlers(self, parts: _Parts) -> Mapping[str, Handler]:
        mount = MountRequests(
            parts.filesystem,
            parts.tier,
            self._tracer,
            parts.recorder,
            parts.clients,
            lambda: self._describe(parts),
        )
        of_stores = StoreRequests(
            parts.filesystem, parts.db, parts.clients, parts.blob_stores, parts.volume, self._tracer
        )
        maintenance = MaintenanceRequests(
            Target(
                settings=parts.volume,
                db=parts.db,
                tier=parts.tier,
                stores=parts.blob_stores,
                clients=parts.clients,
                reaper=parts.filesystem.reaper,
                mounted=True,
                read_only=self._options.read_only,
                blob_changed=parts.filesystem.blob_changed,
                sent_early=parts.filesystem.uploader.early.names,
                shipped=parts.shipper.shipped if parts.shipper else trio.lowlevel.checkpoint,
                index_copy=parts.shipper,
            )
        )
        return {
            **mount.handlers(),
            **of_stores.handlers(),
            **maintenance.handlers(),
            "unmount": self._watch.wait,
        }

    def _describe(self, parts: _Parts) -> Json:
        options, volume, tier = self._options, parts.volume, parts.tier.status()
        uploader = parts.filesystem.uploader
        return {
            "volume": {"id": volume.volume_id, "uri": volume.uri, "created_ns": volume.created_ns},
            "mount": {
                "mountpoint": str(options.mountpoint),
                "pid": os.getpid(),
                "since_ns": self._since_ns,
                "version": __version__,
                "durability": (options.durability or volume.durability).value,
                "read_only": options.read_only,
                "given_up": self._background.given_up,
                "fuse_extension": self._extension.status,
                "passthrough": self._extension.passthrough_status,
                "index": str(self._paths.index),
                "log": str(self._paths.log),
                "trace": str(parts.recorder.path) if parts.recorder.path else None,
            },
            "stores": [store_to_json(store.config) for store in parts.filesystem.stores.values()],
            "filesystem": asdict(parts.filesystem.status()),
            "uploads": {**asdict(uploader.pending()), **asdict(uploader.admission.status())},
            "tier": {**asdict(tier), "directory": str(tier.directory)},
            "index_copy": asdict(parts.shipper.status()) if parts.shipper else {},
            "counts": dict(sorted((what.value, count) for what, count in self._tracer.counts.items())),
        }


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is open while the volume is served."""

    volume: VolumeSettings
    db: Database
    tier: Tier
    blob_stores: dict[int, BlobStore]
    clients: BucketClients
    filesystem: Filesystem
    recorder: TraceRecorder
    shipper: Shipper | None


def _limits(options: MountOptions, *, patient: bool) -> Limits:
    files = EarlyLimits().files if options.early_upload else 0
    # A quarter of the requests: what somebody waits for must not wait for these.
    parts = max(1, min(EarlyLimits().parts, options.s3.max_threads // 4))
    early = EarlyLimits(files, parts, after_s=UNAWAITED_AFTER_S if patient else 0.0)
    return Limits(queue=options.queue, patient=patient, early=early)


def _leading(group: BaseExceptionGroup[S3BlobFSError]) -> S3BlobFSError:
    """The first error in it; the others are logged."""
    first, *others = _leaves(group)
    for other in others:
        logger.error("and: %s", other)
    return first


def _leaves(group: BaseExceptionGroup[S3BlobFSError]) -> list[S3BlobFSError]:
    leaves = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
