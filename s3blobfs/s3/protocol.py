"""The object client: the one small protocol through which everything else speaks to S3.

Implementations: :class:`s3blobfs.s3.client.S3ObjectClient` (obstore and boto3),
:class:`s3blobfs.s3.fake.FakeObjectClient` (in memory, with versions and delete markers) and
:class:`s3blobfs.s3.faults.FaultyObjectClient` (wraps one, fails by script). All pass the one conformance
suite in ``tests/s3``.

Every method may block and is therefore async; each request, its repetitions included, ends within the
client's total deadline (a multipart upload or a listing is many requests). Errors are
those of :mod:`s3blobfs.errors`: :class:`~s3blobfs.errors.TransientS3Error` only after the retries are used
up, :class:`~s3blobfs.errors.PermanentS3Error` at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from s3blobfs.errors import S3BlobFSError
from s3blobfs.s3.begun import BegunUpload, EarlyPart
from s3blobfs.types import Buffer, PutBody

if TYPE_CHECKING:
    from s3blobfs.s3.each import Requests


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What HEAD tells of an object."""

    key: str
    size_bytes: int
    etag: str
    """As S3 gives it, quotes removed."""
    version_id: str | None
    """``None`` where the bucket is not versioned (S3's ``null`` version included)."""
    last_modified_ns: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata, names in lower case without ``x-amz-meta-``."""


@dataclass(frozen=True, slots=True)
class ObjectData:
    """A whole body or the range asked for, with what the same answer told of the object."""

    body: Buffer
    """As it came: not copied."""
    info: ObjectInfo
    """``size_bytes`` is that of the whole object, also for a ranged GET."""

    @property
    def data(self) -> bytes:
        """The body, copied unless it is ``bytes`` already."""
        return bytes(self.body)


@dataclass(frozen=True, slots=True)
class WholeObject:
    """One of :meth:`ObjectClient.get_each`."""

    key: str
    version_id: str | None
    if_match: str


TakeAnswer = Callable[[ObjectData | S3BlobFSError], None]
"""Told what became of one request, perhaps in another thread. Must not raise."""


@dataclass(frozen=True, slots=True)
class PutReceipt:
    """S3's answer to a PUT or a CopyObject."""

    etag: str
    version_id: str | None


@dataclass(frozen=True, slots=True)
class ObjectVersionInfo:
    """One line of a listing of versions."""

    key: str
    version_id: str | None
    is_delete_marker: bool
    is_latest: bool
    size_bytes: int
    etag: str
    last_modified_ns: int


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload that was begun and neither completed nor aborted; its parts are paid for."""

    key: str
    upload_id: str
    initiated_ns: int


@dataclass(frozen=True, slots=True)
class ObjectId:
    """A key, or one version of it."""

    key: str
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """Ranges of a body that an object in S3 has as well, at the same places."""

    bucket: str
    source: ObjectId
    etag: str
    """The source must still have it."""
    ranges: Sequence[tuple[int, int]]
    """``(start, end)``, in order, neither overlapping nor touching."""


@dataclass(frozen=True, slots=True)
class DeleteFailure:
    """An entry of DeleteObjects that S3 did not carry out."""

    target: ObjectId
    code: str
    message: str


class ObjectClient(Protocol):
    """Objects of one bucket. Keys are full keys: the client knows no prefix.

    What no server would take is :class:`ValueError`, before anything is sent: see
    :mod:`s3blobfs.s3.limits`."""

    @property
    def bucket(self) -> str: ...

    # -- data plane ------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: PutBody,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        repeat_unknown: bool = True,
        checksums: bytes = b"",
        reuse: Reuse | None = None,
    ) -> PutReceipt:
        """PUT a whole object: in one request, or as a multipart upload with parallel parts when it is
        large. A file, or what is to be stored of it, must not change until this returns; it is read, never
        loaded whole. Bodies are
        checked in transit, and before that by their ``checksums``, if they are given
        (:attr:`~s3blobfs.types.ContentDigests.checksums`): :class:`~s3blobfs.errors.DamagedContent`. With
        ``if_none_match`` an existing key raises
        :class:`~s3blobfs.errors.ObjectAlreadyExists`. A multipart upload that fails is aborted.

        Of a large object, ranges to ``reuse`` are not sent but copied inside S3 (UploadPartCopy, see
        :mod:`s3blobfs.s3.parts`); where S3 refuses that, or the source is not what it was, they are sent.

        Metadata values are ASCII (the caller encodes). A repeated PUT whose first answer was lost leaves a
        version that nobody was told of, or, with ``if_none_match``, finds its own object there. Without
        ``repeat_unknown`` it is not repeated then: :class:`~s3blobfs.errors.OutcomeUnknown`."""
        ...

    async def get(
        self,
        key: str,
        *,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
    ) -> ObjectData:
        """GET an object, or ``length`` bytes of it from ``offset``. Exactly the bytes asked for, or an
        error: a body that ends early is a transient error, never a short result; a range that reaches
        beyond the end of the object is :class:`~s3blobfs.errors.DamagedContent` (the caller knew the size).
        An empty range is :class:`ValueError`: HTTP cannot ask for one.
        ``if_match`` (an ETag) raises :class:`~s3blobfs.errors.PreconditionFailed` when it differs."""
        ...

    async def get_each(self, wanted: Iterable[tuple[WholeObject, TakeAnswer]]) -> None:
        """GET objects one after the other, each once: for what nobody waits for. ``wanted`` is asked for the
        next one, perhaps in another thread, when the one before has been answered."""
        ...

    async def make_each(self, requests: Requests[None]) -> None:
        """Make small requests one after the other, each as the method of its name makes it, repetitions
        included. ``requests`` is asked for the next one, perhaps in another thread, when the one before has
        its outcome. What is under way when the caller is cancelled comes to its end first.

        :class:`~s3blobfs.errors.TransientS3Error` when no thread becomes free. The request that was asked for
        last has no outcome then, and may have taken place all the same: it was to be repeated."""
        ...

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """:class:`~s3blobfs.errors.ObjectNotFound` for a missing key or version, or a delete marker; from a
        real server also for a missing bucket, since an answer to HEAD does not say what is missing."""
        ...

    # -- a large object whose content is not complete yet ------------------------------------------------

    @property
    def part_bytes(self) -> int:
        """How much of a large object is sent in one part."""
        ...

    async def begin_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> BegunUpload:
        """Begin to send an object whose content is still growing. It is ended by :meth:`finish_upload`, or
        by :meth:`abort_upload` once no part is on its way."""
        ...

    async def send_part(self, upload: BegunUpload, part: EarlyPart, body: Path, *, checksums: bytes) -> None:
        """Send a part that was just added to ``upload``; tells ``part`` what became of it, whatever that is,
        and raises it. The file may grow meanwhile; ``checksums`` are those of its first bytes, as far as
        the end of the part at least, and none but these bytes is sent:
        :class:`~s3blobfs.errors.DamagedContent`."""
        ...

    async def finish_upload(
        self, upload: BegunUpload, body: PutBody, *, checksums: bytes, repeat_unknown: bool = True
    ) -> PutReceipt:
        """The content is complete: send what is left of it and make it an object, as :meth:`put` does.
        :class:`~s3blobfs.errors.EarlyPartsUseless` when what was sent is not what ``checksums`` say, did not
        arrive, or is gone. Fails with nothing left in S3."""
        ...

    # -- control plane ---------------------------------------------------------------------------------

    async def put_tags(self, target: ObjectId, tags: Mapping[str, str]) -> None:
        """Replace the tags of a key or of one version of it: at least one, at most ten, of few characters
        (:func:`s3blobfs.s3.limits.check_tags`). Neither its ETag nor its time changes.
        :class:`~s3blobfs.errors.ObjectNotFound`; some servers have no tags."""
        ...

    async def get_tags(self, target: ObjectId) -> dict[str, str]:
        """The tags of a key or of one version of it. :class:`~s3blobfs.errors.ObjectNotFound`."""
        ...

    async def copy(
        self,
        source_bucket: str,
        source: ObjectId,
        key: str,
        *,
        size_bytes: int,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        repeat_unknown: bool = True,
    ) -> PutReceipt:
        """CopyObject of a whole object or version into this bucket, no byte passing through the client;
        above 5 GiB by UploadPartCopy. ``metadata`` replaces the source's; ``None`` keeps it. A 200 answer
        with an error in its body is an error. ``if_match`` is CopySourceIfMatch. ``repeat_unknown`` as in
        :meth:`put`."""
        ...

    async def copy_range(
        self, source_bucket: str, source: ObjectId, key: str, *, offset: int, length: int, if_match: str
    ) -> PutReceipt:
        """A new object of ``length`` bytes of another, at most 5 GiB, by one UploadPartCopy: what a probe
        asks for that has to know whether the server does that right."""
        ...

    async def delete(self, target: ObjectId) -> None:
        """DELETE a key or exactly one version of it (which leaves no delete marker). A missing target is
        success, as in S3."""
        ...

    async def delete_many(self, targets: Sequence[ObjectId]) -> list[DeleteFailure]:
        """DeleteObjects, at most 1,000 targets (``ValueError`` beyond). Answers what was not deleted."""
        ...

    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Current objects below ``prefix``; ``metadata`` is empty and ``version_id`` ``None``. Pages as it
        goes. In S3 in key order, but a caller must not rely on it: SeaweedFS compares keys component by
        component."""
        ...

    def list_versions(self, prefix: str) -> AsyncIterator[ObjectVersionInfo]:
        """Every version and delete marker below ``prefix``; those of one key one after another, the latest
        first. Pages as it goes."""
        ...

    def list_uploads(self, prefix: str) -> AsyncIterator[UploadInfo]:
        """Unfinished multipart uploads of keys below ``prefix``, in any order. Pages as it goes."""
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw away an unfinished multipart upload with its parts. One that is gone is success. Whoever is
        still sending parts gets an error."""
        ...

    async def bucket_exists(self) -> bool:
        """False for 404; other refusals raise."""
        ...

    async def create_bucket(self) -> None:
        """Create the bucket in the client's region. Ours already: success."""
        ...

    async def versioning_enabled(self) -> bool:
        """Whether versioning is on (``Suspended`` is off)."""
        ...

    async def enable_versioning(self) -> None: ...

    async def aclose(self) -> None:
        """Close connections. No request may be in flight."""
        ...


class ObjectClientFactory(Protocol):
    """Makes the client of a bucket; stores of one volume may lie in several buckets."""

    def __call__(self, bucket: str) -> ObjectClient: ...
