"""Finding the objects of contents whose rows are lost, by what the objects say of themselves.

A file of a ``versioned`` store has its key, whose versions are asked. In a ``digest`` store the key was in
the row: the store is listed once, and objects are asked that no row names and that have the size of a file in
question. What is taken must say that it is the content of that very file: its number, its size, and its path
or its time. (A file that was made anew from objects has another number than they say, and another file may
have that number now.)

Where several objects say so, none is taken: which one it was nobody knows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s3blobfs.blobstore.stamps import read_stamp
from s3blobfs.errors import ObjectNotFound
from s3blobfs.index import blobs, dentries, explain, inodes, uploads
from s3blobfs.index.check import Problem
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.repair import FoundContent
from s3blobfs.index.transaction import Transaction
from s3blobfs.maintenance.target import Progress, Target
from s3blobfs.replica.stored import StoredObject, as_stamped, for_each, list_store
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.types import Keying, StoreConfig

logger = logging.getLogger(__name__)

KINDS = frozenset({"missing-blob", "missing-content"})
"""Problems of files whose content the index does not know any more."""
BATCH = 500
"""Keys looked up in the index at a time."""
VERSIONS_MAX = 64
"""Versions of a key that are asked."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file without content. Those that shared one are wanted each by itself."""

    inode: InodeRow
    path: bytes | None
    blob_id: int | None
    """The row that does not exist."""

    def is_of(self, found: StoredObject) -> bool:
        stamp = found.stamp
        return (
            stamp.inode_id == self.inode.id
            and found.digests.size_bytes == self.inode.size_bytes
            and (stamp.mtime_ns == self.inode.mtime_ns or (stamp.path_is_whole and stamp.path == self.path))
        )


class Finder:
    """Looks for the contents of the files that problems are about, and remembers what it found."""

    def __init__(self, target: Target, progress: Progress) -> None:
        self._target = target
        self._progress = progress
        self._looked: set[int] = set()
        self._found: dict[int, list[StoredObject]] = {}
        self._shared: dict[int, list[StoredObject]] = {}
        self._listed = 0

    async def look(self, problems: Iterable[Problem]) -> None:
        """For all files at once that were not looked for before. Raises what S3 and the index do."""
        numbers = [each.subject[0] for each in problems if each.kind in KINDS and each.subject]
        wanted = await self._target.db.read(
            lambda tx: [
                each
                for number in numbers
                if isinstance(number, int) and number not in self._looked
                if (each := _wanted(tx, number)) is not None
            ]
        )
        self._looked |= {each.inode.id for each in wanted}
        for config in [store.config for store in self._target.stores.values()]:
            here = [each for each in wanted if each.inode.store_id == config.id]
            if not here:
                continue
            client = self._target.client_of(config.id)
            if config.keying is Keying.VERSIONED:
                candidates = await self._versions(client, config, here)
            else:
                candidates = await self._listing(client, config, {each.inode.size_bytes for each in here})
            self._match(here, candidates)

    def content_of(self, problem: Problem) -> FoundContent | None:
        """Of the file that the problem is about, or of one that shared its content."""
        number = problem.subject[0]
        assert isinstance(number, int)
        found = self._found.get(number, [])
        if not found and problem.kind == "missing-blob":
            blob_id = problem.subject[1]
            assert isinstance(blob_id, int)
            found = self._shared.get(blob_id, [])
        if len(found) > 1:
            logger.info("%d objects say that they are the content of inode %d", len(found), number)
        if len(found) != 1:
            return None
        (one,) = found
        return FoundContent(one.store.id, one.stored, one.digests, one.modified_ns)

    def _match(self, wanted: Sequence[_Wanted], candidates: Sequence[StoredObject]) -> None:
        by_number: dict[int | None, list[StoredObject]] = {}
        for each in candidates:
            by_number.setdefault(each.stamp.inode_id, []).append(each)
        for file in wanted:
            matching = [each for each in by_number.get(file.inode.id, []) if file.is_of(each)]
            if matching:
                self._found[file.inode.id] = matching
                if file.blob_id is not None:
                    self._shared[file.blob_id] = matching

    async def _versions(
        self, client: ObjectClient, config: StoreConfig, wanted: Sequence[_Wanted]
    ) -> list[StoredObject]:
        found: list[StoredObject] = []
        for key in {f"{config.prefix}{each.inode.object_id}" for each in wanted if each.inode.object_id}:
            rows = await self._target.db.read(lambda tx, key=key: blobs.history(tx, config.id, key))  # type: ignore[misc]
            named = {row.location.version_id for row in rows}
            targets = [
                ObjectId(key, version.version_id)
                async for version in client.list_versions(key)
                if version.key == key and not version.is_delete_marker and version.version_id not in named
            ]
            found += await _ask(client, config, targets[:VERSIONS_MAX])
        return found

    async def _listing(
        self, client: ObjectClient, config: StoreConfig, sizes: set[int]
    ) -> list[StoredObject]:
        found: list[StoredObject] = []
        configs = [store.config for store in self._target.stores.values()]
        keys: list[str] = []
        async for versions in list_store(client, config, configs):
            self._listed += 1
            if versions[0].size_bytes in sizes:
                keys.append(versions[0].key)
            if len(keys) == BATCH:
                found += await self._unnamed(client, config, keys)
                keys = []
            if self._listed % BATCH == 0:
                self._progress({"phase": "looking for objects", "done": self._listed, "total": None})
        return found + await self._unnamed(client, config, keys)

    async def _unnamed(
        self, client: ObjectClient, config: StoreConfig, keys: Sequence[str]
    ) -> list[StoredObject]:
        names = [(config.id, key) for key in keys]
        rows = await self._target.db.read(lambda tx: explain.rows_of(tx, names))
        return await _ask(client, config, [ObjectId(key) for key in keys if (config.id, key) not in rows])


def _wanted(tx: Transaction, number: int) -> _Wanted | None:
    inode = inodes.find(tx, number)
    if inode is None or inode.size_bytes == 0 or uploads.latest_of(tx, number) is not None:
        return None
    return _Wanted(inode, dentries.path_of(tx, number), inode.blob_id)


async def _ask(client: ObjectClient, config: StoreConfig, targets: Sequence[ObjectId]) -> list[StoredObject]:
    async def ask(target: ObjectId) -> StoredObject | None:
        try:
            info = await client.head(target.key, version_id=target.version_id)
            return as_stamped(config, info, await read_stamp(client, info))
        except ObjectNotFound:
            return None

    return [each for each in await for_each(targets, ask) if each is not None]
