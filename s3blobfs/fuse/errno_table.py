"""The one table from our errors to errno. Nothing else in the package chooses an errno for a failure of S3,
of the local tier or of the index."""

from __future__ import annotations

import errno
from typing import Final

from s3blobfs.errors import (
    AccessDenied,
    BlobIsDeleting,
    BucketNotFound,
    DamagedContent,
    EntityTooLarge,
    FilesystemError,
    IndexFenced,
    ObjectStoreError,
    S3BlobFSError,
    TierError,
    TierFull,
    TierOutOfFiles,
    TierReadOnly,
    UsageError,
    VolumeIndexError,
)

ERRNO_OF: Final[dict[type[S3BlobFSError], int]] = {
    # The nearest class in an error's own order of bases decides.
    ObjectStoreError: errno.EIO,
    AccessDenied: errno.EIO,  # not EACCES: it is the mount's credentials that are refused, not the caller's
    BucketNotFound: errno.EIO,
    EntityTooLarge: errno.EFBIG,
    DamagedContent: errno.EIO,
    TierError: errno.EIO,
    TierFull: errno.ENOSPC,
    TierReadOnly: errno.EROFS,
    TierOutOfFiles: errno.ENFILE,  # not EMFILE: it is not the caller who has too many files open
    VolumeIndexError: errno.EIO,
    BlobIsDeleting: errno.EAGAIN,
    IndexFenced: errno.EROFS,
    UsageError: errno.EINVAL,
    S3BlobFSError: errno.EIO,
}


def errno_of(error: S3BlobFSError) -> int:
    """The errno a program gets for an error of ours."""
    if isinstance(error, FilesystemError):
        return error.errno
    return next(ERRNO_OF[base] for base in type(error).__mro__ if base in ERRNO_OF)
