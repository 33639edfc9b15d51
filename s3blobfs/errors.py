"""The one error hierarchy.

Library errors are mapped to it where they enter (obstore and botocore in ``s3/``, apsw in ``index/``,
``OSError`` of the local tier in ``tier/``); it is mapped to errno in exactly one place,
``fuse/errno_table.py``, and to one clear line with what to do next in ``cli/``.

    S3BlobFSError
    ├── FilesystemError            what a system call may answer; carries the errno POSIX names
    ├── ObjectStoreError           S3 said no, or did not say anything
    │   ├── TransientS3Error       may succeed when repeated
    │   └── PermanentS3Error       will not
    │       ├── ObjectNotFound  ├── BucketNotFound  ├── PreconditionFailed
    │       ├── AccessDenied    ├── EntityTooLarge  └── ObjectAlreadyExists
    ├── DamagedContent             bytes in S3 or in the cache are not the ones that were stored
    ├── TierError
    │   ├── TierFull               no room left in the local tier, or on its disk
    │   └── TierUnavailable        the local disk answers with errors
    │       └── TierReadOnly  └── TierOutOfFiles
    ├── VolumeIndexError
    │   ├── IndexDamaged     ├── IndexTooNew
    │   ├── IndexUnavailable ├── BlobIsDeleting
    │   └── IndexFenced
    └── UsageError                 the user asked for something that cannot be; the text says what to do
        ├── VolumeInUse   └── VolumeMismatch
"""

from __future__ import annotations

import os


class S3BlobFSError(Exception):
    """Base of every error this package raises on purpose. ``str()`` is one line for a person."""


# --- what a system call may answer --------------------------------------------------------------------


class FilesystemError(S3BlobFSError):
    """A system call is refused, with the errno that POSIX (or the Linux man page) names for it."""

    def __init__(self, errno_: int, detail: str = "") -> None:
        super().__init__(f"{os.strerror(errno_)}{': ' + detail if detail else ''}")
        self.errno = errno_


# --- S3 ------------------------------------------------------------------------------------------------


class ObjectStoreError(S3BlobFSError):
    """S3 refused a request or could not be reached.

    ``code`` is S3's error code (``NoSuchKey``, ``SlowDown`` …; empty where there was no answer),
    ``request_id`` its request id (empty where unknown), ``status`` the HTTP status (0 without an answer).
    """

    def __init__(
        self, message: str, *, code: str = "", request_id: str = "", status: int = 0, key: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        self.status = status
        self.key = key

    def __str__(self) -> str:
        facts = [
            fact
            for fact in (
                self.code,
                f"key {self.key}" if self.key else "",
                f"request {self.request_id}" if self.request_id else "",
            )
            if fact
        ]
        return f"{self.args[0]}{' (' + ', '.join(facts) + ')' if facts else ''}"


class TransientS3Error(ObjectStoreError):
    """Repeating the request may help: throttling, 5xx, a lost connection, a deadline."""


class OutcomeUnknown(TransientS3Error):
    """The request was sent and no clear answer came: it may have taken place, or still do so."""


class PermanentS3Error(ObjectStoreError):
    """Repeating the same request will not help."""


class ObjectNotFound(PermanentS3Error):
    """No such key, or no such version of it, or a delete marker."""


class BucketNotFound(PermanentS3Error):
    """No such bucket, or it is in another region than asked."""


class AccessDenied(PermanentS3Error):
    """Credentials are missing, wrong, expired, or not allowed to do this."""


class PreconditionFailed(PermanentS3Error):
    """``If-Match`` did not hold: the object is not the one that was stored."""


class ObjectAlreadyExists(PermanentS3Error):
    """``If-None-Match: *`` did not hold: the key is taken."""


class EntityTooLarge(PermanentS3Error):
    """The content is larger than S3 takes (5 TiB, or 10,000 parts)."""


class EarlyPartsUseless(PermanentS3Error):
    """What was sent of a content before it was complete cannot become its object: it is sent whole then."""


class DamagedContent(S3BlobFSError):
    """Bytes read are not the bytes stored: length, CRC-32 or digest differ. Never returned to a reader."""


# --- local tier ----------------------------------------------------------------------------------------


class TierError(S3BlobFSError):
    """The local tier cannot do what was asked."""


class TierFull(TierError):
    """The size limit is reached by staged and pinned files alone, or the disk is full."""


class TierUnavailable(TierError):
    """The local disk answers with an error (``OSError`` kept as ``__cause__``)."""


class TierReadOnly(TierUnavailable):
    """The local disk is mounted read-only."""


class TierOutOfFiles(TierUnavailable):
    """The process, or the machine, has no file descriptor left for another local file."""


# --- index ---------------------------------------------------------------------------------------------


class VolumeIndexError(S3BlobFSError):
    """The index cannot be used."""


class IndexDamaged(VolumeIndexError):
    """SQLite finds the file malformed, or it is not an index of ours."""


class IndexTooNew(VolumeIndexError):
    """The index was written by a later version of this program."""


class IndexUnavailable(VolumeIndexError):
    """The index's disk is full or fails; no further change is accepted until the volume is remounted."""


class BlobIsDeleting(VolumeIndexError):
    """A dedupe hit met a blob whose object is being deleted: upload again once its row is gone."""


class IndexFenced(VolumeIndexError):
    """Another mount goes on with the volume from here: this one must not change anything any more."""


# --- use -----------------------------------------------------------------------------------------------


class UsageError(S3BlobFSError):
    """What the user asked for cannot be; the message says why and what to do next."""


class VolumeInUse(UsageError):
    """Another process has the volume mounted; the message names it."""


class VolumeMismatch(UsageError):
    """The bucket holds another volume than the index, or none."""
