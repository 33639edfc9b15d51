"""The blob store: immutable contents kept as whole S3 objects, under names the store chooses.

Implementations: :class:`s3blobfs.blobstore.digest.DigestBlobStore` (key = digest of the content) and
:class:`s3blobfs.blobstore.versioned.VersionedBlobStore` (one key per file, one version per change). Both
pass the one conformance suite in ``tests/blobstore``. :func:`s3blobfs.blobstore.open.open_store` makes them.

A store knows S3 and the keying; it knows neither the index nor the cache. What is stored is durable when
``put`` or ``copy_from`` returns; whether anything refers to it is the caller's affair (*object first, row
second*). Errors are those of the object client (:mod:`s3blobfs.s3.protocol`) except where noted.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from s3blobfs.blobstore.early import EarlyParts
from s3blobfs.errors import ObjectStoreError, S3BlobFSError
from s3blobfs.s3.begun import BegunUpload
from s3blobfs.types import (
    BlobContent,
    BlobLocation,
    Buffer,
    ContentDigests,
    ObjectHint,
    PutBody,
    StoreConfig,
    StoredContent,
)


@dataclass(frozen=True, slots=True)
class DeleteError:
    """A location that :meth:`BlobStore.delete` left in S3, and why."""

    location: BlobLocation
    error: ObjectStoreError


@dataclass(frozen=True, slots=True)
class Kept:
    """What a content has in common with a stored one: the same bytes at the same places."""

    bucket: str
    blob: BlobContent
    ranges: Sequence[tuple[int, int]]
    """``(start, end)``, in order; they neither overlap nor touch."""


class Left(enum.Enum):
    """Why :meth:`BlobStore.put_each` leaves a content to :meth:`BlobStore.put`."""

    BUSY = enum.auto()
    """Somebody else stores the same content at this moment. Nothing was sent."""
    IN_DOUBT = enum.auto()
    """The PUT was sent and its answer lost: :meth:`BlobStore.find_write` comes first."""


@dataclass(eq=False, slots=True)
class SmallPut:
    """One of :meth:`BlobStore.put_each`: what :meth:`BlobStore.put` is told, and what came of it."""

    body: bytes
    digests: ContentDigests
    object_id: str | None
    write_id: str
    hint: ObjectHint
    outcome: StoredContent | Left | S3BlobFSError | None = None
    """``None``: not begun."""


class BlobSource(Protocol):
    """The bytes of one blob in S3."""

    async def fetch(self, offset: int, length: int) -> Buffer:
        """Exactly ``length`` bytes from ``offset``, by one GET: of the whole object when that is what the
        range covers. Raises :class:`~s3blobfs.errors.ObjectNotFound` when the object is gone and
        :class:`~s3blobfs.errors.DamagedContent` when it is not the one that was stored."""
        ...


TakeContent = Callable[[bytes | S3BlobFSError], None]
"""Told what became of one blob of :meth:`BlobStore.fetch_each`, perhaps in another thread. Must not raise."""


class BlobStore(Protocol):
    """Blobs of one store of a volume."""

    @property
    def config(self) -> StoreConfig: ...

    @property
    def early(self) -> EarlyParts | None:
        """For sending parts of what is not complete yet, where the keying allows that."""
        ...

    async def put(
        self,
        body: PutBody,
        digests: ContentDigests,
        *,
        object_id: str | None,
        write_id: str,
        hint: ObjectHint,
        replace: bool = False,
        kept: Kept | None = None,
        begun: BegunUpload | None = None,
    ) -> StoredContent:
        """Store the sealed file at ``body``, or its beginning, which must not change meanwhile; or the bytes
        that it is.

        ``object_id`` is the file's key for life (``versioned`` stores; ignored elsewhere). ``write_id``
        names this attempt to store this content, so that :meth:`find_write` can tell afterwards whether a
        PUT whose answer was lost took place. With ``replace`` an object under the content's own key is not
        asked for but replaced: it is known to be damaged (a ``versioned`` store never asks). Of a large
        content S3 copies what is ``kept`` of a stored one, and the rest alone is sent; or parts are there,
        of an upload :attr:`early` has begun under the same ``write_id``, which is over then in any case."""
        ...

    async def put_each(self, wanted: Iterable[SmallPut]) -> None:
        """Store small contents one after the other, each as :meth:`put` stores it, in one turn through a
        worker thread. ``wanted`` is asked for the next one, perhaps in another thread, when the one before
        has its outcome. Raises what :meth:`~s3blobfs.s3.protocol.ObjectClient.make_each` does."""
        ...

    async def copy_from(
        self,
        source: BlobStore,
        blob: BlobContent,
        *,
        object_id: str | None,
        write_id: str,
        hint: ObjectHint,
        replace: bool = False,
    ) -> StoredContent:
        """Store the content of ``blob`` of another store without a byte passing through the client;
        ``replace`` as in :meth:`put`.
        :class:`~s3blobfs.errors.ObjectNotFound` when the source is gone,
        :class:`~s3blobfs.errors.DamagedContent` when it is not the one that was stored."""
        ...

    async def exists(self, location: BlobLocation, size_bytes: int) -> bool:
        """Whether S3 has an object of this size there (HEAD)."""
        ...

    async def delete(self, locations: Sequence[BlobLocation]) -> list[DeleteError]:
        """Delete objects: one by a plain DELETE, more by batches of up to 1,000. Answers those that stay;
        raises nothing of S3's, since the others are deleted all the same. A missing object is success."""
        ...

    def open_source(self, blob: BlobContent) -> BlobSource: ...

    async def fetch_each(self, wanted: Iterable[tuple[BlobContent, TakeContent]]) -> None:
        """Fetch blobs whole, one after the other, each by one GET that is not repeated: for what nobody
        waits for. ``wanted`` is asked for the next one, perhaps in another thread, when the one before has
        been answered."""
        ...

    async def find_write(
        self, digests: ContentDigests, *, object_id: str | None, write_id: str
    ) -> StoredContent | None:
        """What an earlier :meth:`put` or :meth:`copy_from` of this content under ``write_id`` left in S3;
        ``None`` if it did not take place."""
        ...
