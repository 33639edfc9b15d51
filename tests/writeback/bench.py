"""A volume without a filesystem: index, local tier and an in-memory S3, with what works behind them."""

from __future__ import annotations

import contextlib
import stat
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.config import QueueOptions, ReadOptions, TierOptions
from s3blobfs.index import blobs, dentries, inodes, stores, uploads
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.s3.fake import FakeBucket, FakeS3
from s3blobfs.s3.faults import FaultScript, FaultyObjectClient
from s3blobfs.tier.cache import CacheEntry
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from s3blobfs.types import BlobContent, DigestAlgorithm, Keying, StoreConfig
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.recovery import RecoveryReport, recover
from s3blobfs.writeback.schedule import ScheduleLimits
from s3blobfs.writeback.uploader import Limits, Uploader, UploadTicket

EPOCH_NS = 1_700_000_000 * 10**9
GRACE_S = 60.0
FOO_MD5 = "acbd18db4cc2f85cedef654fccc4a4d8"


def now_ns() -> int:
    """The index's clock, moved by the test's."""
    return EPOCH_NS + int(trio.current_time() * 10**9)


@dataclass
class Stored:
    """What the listener was told."""

    upload_id: int
    inode: InodeRow
    blob: BlobContent
    cached: bool


@dataclass
class Sealed:
    """One content on its way."""

    upload: UploadRow
    staged: StagedFile
    ticket: UploadTicket


class Volume:
    """One mount of a volume. ``server`` and ``directory`` outlive it."""

    def __init__(self, directory: Path, server: FakeS3, db: Database, configs: list[StoreConfig]) -> None:
        self.directory = directory
        self.server = server
        self.script = FaultScript()
        self.tracer = Tracer("Nuxeo")
        self.lines: list[str] = []
        self.news: list[Stored] = []
        self.db = db
        self.tier = Tier(TierOptions(directory / "tier", min_free_bytes=0), ReadOptions(), self.tracer)
        self.stores: dict[int, BlobStore] = {
            config.id: open_store(
                config,
                FaultyObjectClient(server.client(config.bucket, self.tracer), self.script),
                self.tracer,
            )
            for config in configs
        }
        self.reaper = Reaper(
            db, self.tier, self.stores, garbage_grace_s=GRACE_S, now_ns=now_ns, jitter=lambda: 1.0
        )
        self.uploader = self.make_uploader(Limits())
        self.nursery: trio.Nursery | None = None

    def make_uploader(self, limits: Limits) -> Uploader:
        return Uploader(
            self.db,
            self.tier,
            self.stores,
            self.reaper,
            self,
            limits=limits,
            now_ns=now_ns,
            jitter=lambda: 1.0,
        )

    def limit(self, *, uploads: int = 16, queue: QueueOptions | None = None) -> None:
        """Before anything runs."""
        schedule = ScheduleLimits(uploads=uploads, small_slots=min(4, uploads - 1))
        self.uploader = self.make_uploader(Limits(queue=queue or QueueOptions(), schedule=schedule))

    async def start(self, *, reaper: bool = True) -> None:
        assert self.nursery is not None
        await self.nursery.start(self.uploader.run)
        if reaper:
            await self.nursery.start(self.reaper.run)

    async def recover(self) -> RecoveryReport:
        return await recover(self.db, self.tier, self.stores, self.uploader, self.reaper, now_ns=now_ns)

    def stored(self, upload_id: int, inode: InodeRow, blob: BlobContent, entry: CacheEntry | None) -> None:
        """The listener."""
        self.news.append(Stored(upload_id, inode, blob, entry is not None))
        if entry is not None:
            entry.unpin()

    # -- what the filesystem does ----------------------------------------------------------------------

    async def make_file(self, name: str = "file", store_id: int = 1) -> InodeRow:
        config = self.stores[store_id].config
        object_id = f"id-{name}" if config.keying is Keying.VERSIONED else None

        def transaction(tx: Transaction) -> InodeRow:
            inode = inodes.insert(
                tx,
                mode=stat.S_IFREG | 0o644,
                uid=1,
                gid=2,
                nlink=1,
                now_ns=now_ns(),
                store_id=store_id,
                object_id=object_id,
            )
            dentries.insert(tx, ROOT_INODE_ID, name.encode(), inode.id)
            return inode

        return await self.db.write(transaction)

    async def stage(self, inode: InodeRow, data: bytes) -> StagedFile:
        assert inode.store_id is not None
        config = self.stores[inode.store_id].config
        staged = await self.tier.staging.create(Local.of(config.cached))
        await staged.write(0, data)
        return staged

    async def journal(self, inode: InodeRow, data: bytes) -> tuple[UploadRow, StagedFile]:
        """Seal a content, in place of those that wait."""
        staged = await self.stage(inode, data)
        return await self.journal_staged(inode, staged), staged

    async def journal_staged(self, inode: InodeRow, staged: StagedFile) -> UploadRow:
        """The same for what is staged."""
        assert inode.store_id is not None
        store_id = inode.store_id
        digests = await staged.seal(rename=self.stores[store_id].config.cached)
        dropped = self.uploader.supersede(inode.id)

        def transaction(tx: Transaction) -> tuple[UploadRow, list[UploadRow]]:
            old = [row for row in (uploads.finish(tx, each) for each in dropped) if row is not None]
            inodes.update(tx, inode.id, size_bytes=digests.size_bytes)
            row = uploads.insert(
                tx,
                inode_id=inode.id,
                store_id=store_id,
                staged_name=staged.name,
                size_bytes=digests.size_bytes,
                digests=digests,
                write_id=uuid.uuid4().hex,
                state=UploadState.SEALED,
                now_ns=now_ns(),
            )
            return row, old

        row, old = await self.db.write(transaction)
        for each in old:
            await self.tier.staging.open(each.staged_name, staged.local, each.digests).discard()
        return row

    async def seal(self, inode: InodeRow, data: bytes) -> Sealed:
        row, staged = await self.journal(inode, data)
        return Sealed(row, staged, self.uploader.submit(row, staged, inode.object_id))

    async def write(self, inode: InodeRow, data: bytes) -> BlobContent:
        """Seal and wait until it is in S3."""
        sealed = await self.seal(inode, data)
        await sealed.ticket.wait()
        return self.news[-1].blob

    async def unlink(self, inode: InodeRow) -> None:
        """Remove the file; nobody has it open."""

        def transaction(tx: Transaction) -> None:
            row = inodes.get(tx, inode.id)
            for parent_id, name in dentries.names_of(tx, inode.id):
                dentries.remove(tx, parent_id, name)
            uploads.supersede(tx, inode.id)
            inodes.remove(tx, inode.id)
            if row.blob_id is not None:
                blobs.drop_ref(tx, row.blob_id, now_ns(), superseded=False)

        await self.db.write(transaction)
        self.uploader.forget_inode(inode.id)
        self.reaper.wake()

    # -- what tests look at ----------------------------------------------------------------------------

    def draw(self, local: Local) -> None:
        """Collect the steps from now on, in :attr:`lines`."""
        self.tracer.start_steps(self._take_line, local)
        self.lines.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what nothing announces, at most a minute of the test's time."""
        with trio.fail_after(60):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.1)

    def _take_line(self, line: str) -> None:
        self.lines.append(line)

    def bucket(self, name: str = "bucket") -> FakeBucket:
        return self.server.buckets[name]

    def keys(self) -> set[str]:
        return set(self.bucket().versions)

    def objects(self) -> int:
        """How many there are in the bucket, every version counted."""
        return sum(len(versions) for versions in self.bucket().versions.values())

    def requests(self) -> dict[str, int]:
        """What was asked of S3 since the last call, by kind."""
        counts = {
            what.value.removeprefix("s3."): number
            for what, number in self.tracer.counts.items()
            if what.value.startswith("s3.") and number
        }
        self.tracer.counts.clear()
        return counts

    async def inode(self, inode_id: int) -> InodeRow:
        return await self.db.read(lambda tx: inodes.get(tx, inode_id))

    async def blob_of(self, inode_id: int) -> BlobRow:
        blob_id = (await self.inode(inode_id)).blob_id
        assert blob_id is not None
        return await self.db.read(lambda tx: blobs.get(tx, blob_id))

    async def journal_rows(self) -> list[UploadRow]:
        return await self.db.read(uploads.every)

    async def blob_states(self) -> dict[str, BlobState]:
        """By cache name."""

        def read(tx: Transaction) -> dict[str, BlobState]:
            rows = tx.execute("SELECT cache_name, state FROM blobs").fetchall()
            return {str(name): BlobState(state) for name, state in rows}

        return await self.db.read(read)

    async def content(self, inode: InodeRow) -> bytes:
        """Read the stored content from S3."""
        blob = (await self.blob_of(inode.id)).content()
        return bytes(await self.stores[blob.store_id].open_source(blob).fetch(0, blob.size_bytes))

    async def problems(self) -> list[str]:
        """Everything that is wrong with index, journal and staged files."""
        found = [str(problem) for problem in await self.db.check(self.tier.staging.names())]
        for blob in await self.db.read(_referred):
            store = self.stores[blob.store_id]
            if (
                self.server.bucket(store.config.bucket).find(
                    blob.location.object_key, blob.location.version_id
                )
                is None
            ):
                found.append(f"blob {blob.location} is live and has no object")
        return found


def _referred(tx: Transaction) -> list[BlobRow]:
    ids = tx.execute("SELECT blob_id FROM inodes WHERE blob_id IS NOT NULL").fetchall()
    return [blobs.get(tx, int(blob_id)) for (blob_id,) in ids if isinstance(blob_id, int)]


@contextlib.asynccontextmanager
async def mounted(
    directory: Path,
    server: FakeS3,
    *,
    keying: Keying = Keying.DIGEST,
    cached: bool = False,
) -> AsyncIterator[Volume]:
    """Mount the volume in ``directory``, made when there is none: the store ``default`` at the bucket's root,
    another of the same kind below ``other/``."""
    tracer = Tracer()
    path = directory / "index"
    if path.exists():
        db = Database.open(path, tracer=tracer)
    else:
        db = Database.create(path, tracer=tracer)
        server.buckets["bucket"] = FakeBucket(versioning=keying is Keying.VERSIONED)
        await db.write(lambda tx: _make_volume(tx, keying, cached))
    configs = await db.read(stores.every)
    volume = Volume(directory, server, db, configs)
    await volume.tier.start()
    try:
        async with trio.open_nursery() as nursery:
            volume.nursery = nursery
            yield volume
            nursery.cancel_scope.cancel()
    finally:
        await volume.tier.aclose()
        await db.aclose()


def _make_volume(tx: Transaction, keying: Keying, cached: bool) -> None:
    for name, prefix in (("default", ""), ("other", "other/")):
        stores.insert(
            tx,
            name=name,
            bucket="bucket",
            prefix=prefix,
            keying=keying,
            digest_algorithm=DigestAlgorithm.MD5,
            cached=cached,
            conditional_put=True,
        )
    if inodes.find(tx, ROOT_INODE_ID) is None:
        root = inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, nlink=2, now_ns=EPOCH_NS)
        assert root.id == ROOT_INODE_ID
