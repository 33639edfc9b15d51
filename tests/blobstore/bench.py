"""A bench for stores: an in-memory S3, its clients, and the steps they draw."""

from __future__ import annotations

from pathlib import Path

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore, Kept, SmallPut
from s3blobfs.s3.fake import FakeBucket, FakeS3, FakeVersion
from s3blobfs.s3.faults import FaultScript, FaultyObjectClient
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.tier.digest import content_digests
from s3blobfs.trace import Count, Local, Tracer
from s3blobfs.types import (
    BlobContent,
    ContentDigests,
    DigestAlgorithm,
    Keying,
    ObjectHint,
    StoreConfig,
    StoredContent,
)

FOO = b"foo"
FOO_MD5 = "acbd18db4cc2f85cedef654fccc4a4d8"
HINT = ObjectHint(
    inode_id=7, path=b"dir/file", mode=0o100644, uid=1000, gid=100, mtime_ns=1_600_000_000 * 10**9
)


class Bench:
    """Everything a store needs, in memory. Buckets are made when they are first asked for."""

    def __init__(self, directory: Path) -> None:
        self.server = FakeS3()
        self.script = FaultScript()
        self.tracer = Tracer()
        self.lines: list[str] = []
        self._directory = directory
        self._stores = 0

    def draw(self) -> None:
        """Collect the steps from now on, in :attr:`lines`."""
        self.tracer.start_steps(self._take_line, Local.TMP)
        self.lines.clear()

    def _take_line(self, line: str) -> None:
        self.lines.append(line)

    def taken_lines(self) -> list[str]:
        taken, self.lines[:] = self.lines[:], []
        return taken

    def bucket(self, name: str = "bucket", *, versioning: bool = False) -> FakeBucket:
        return self.server.buckets.setdefault(name, FakeBucket(versioning=versioning))

    def client(self, bucket: str = "bucket") -> ObjectClient:
        return FaultyObjectClient(self.server.client(bucket, self.tracer), self.script)

    def config(
        self,
        keying: Keying,
        *,
        bucket: str = "bucket",
        prefix: str = "",
        algorithm: DigestAlgorithm = DigestAlgorithm.MD5,
        cached: bool = False,
        conditional_put: bool = True,
    ) -> StoreConfig:
        self._stores += 1
        return StoreConfig(
            id=self._stores,
            name=f"store{self._stores}",
            bucket=bucket,
            prefix=prefix,
            keying=keying,
            digest_algorithm=algorithm,
            cached=cached,
            conditional_put=conditional_put,
        )

    def digest_store(
        self,
        *,
        bucket: str = "bucket",
        prefix: str = "",
        algorithm: DigestAlgorithm = DigestAlgorithm.MD5,
        cached: bool = False,
        conditional_put: bool = True,
    ) -> BlobStore:
        self.bucket(bucket)
        config = self.config(
            Keying.DIGEST,
            bucket=bucket,
            prefix=prefix,
            algorithm=algorithm,
            cached=cached,
            conditional_put=conditional_put,
        )
        return open_store(config, self.client(bucket), self.tracer)

    def versioned_store(self, *, bucket: str = "bucket", prefix: str = "", cached: bool = True) -> BlobStore:
        self.bucket(bucket, versioning=True)
        config = self.config(Keying.VERSIONED, bucket=bucket, prefix=prefix, cached=cached)
        return open_store(config, self.client(bucket), self.tracer)

    def staged(self, data: bytes) -> tuple[Path, ContentDigests]:
        digests = content_digests(data)
        path = self._directory / digests.sha256.hex()
        path.write_bytes(data)
        return path, digests

    async def put(
        self,
        store: BlobStore,
        data: bytes,
        *,
        object_id: str | None = None,
        write_id: str = "w1",
        kept: Kept | None = None,
    ) -> StoredContent:
        path, digests = self.staged(data)
        return await store.put(path, digests, object_id=object_id, write_id=write_id, hint=HINT, kept=kept)

    def small(self, data: bytes, *, object_id: str | None = None, write_id: str = "w1") -> SmallPut:
        return SmallPut(data, content_digests(data), object_id, write_id, HINT)

    async def blob(self, store: BlobStore, data: bytes, *, object_id: str | None = None) -> BlobContent:
        """Put ``data`` and answer it as the index would know it."""
        stored = await self.put(store, data, object_id=object_id)
        return content(store, data, stored)

    def requests(self) -> dict[str, int]:
        """What was asked of S3 since the last call, by kind."""
        counts = {
            what.value.removeprefix("s3."): number
            for what, number in self.tracer.counts.items()
            if what.value.startswith("s3.") and number
        }
        for what in Count:
            self.tracer.counts.pop(what, None)
        return counts

    def object(self, key: str, bucket: str = "bucket", version_id: str | None = None) -> FakeVersion:
        found = self.server.buckets[bucket].find(key, version_id)
        assert found is not None, f"no object {key}"
        return found

    def keys(self, bucket: str = "bucket") -> set[str]:
        return set(self.server.buckets[bucket].versions)


def content(store: BlobStore, data: bytes, stored: StoredContent) -> BlobContent:
    return BlobContent(1, store.config.id, stored.location, stored.etag, content_digests(data))


def note(text: str) -> str:
    """The line that names a step's subject, as the diagrams have it."""
    return f"                                hnote right: {text}"
