"""What a person is told of an error: one line, with what to do next."""

from __future__ import annotations

from s3blobfs.errors import (
    AccessDenied,
    BucketNotFound,
    IndexDamaged,
    ObjectStoreError,
    PermanentS3Error,
    S3BlobFSError,
    TierUnavailable,
    TransientS3Error,
)

_CREDENTIAL_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"})


def line_of(error: BaseException) -> str:
    """The line, without the name of the program."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, S3BlobFSError):
        hint = _hint(error)
        return f"{error}; {hint}" if hint else str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"internal error ({type(error).__name__}: {error}); 's3blobfs --debug …' shows where"


def _hint(error: S3BlobFSError) -> str:
    """What to do next, where the message cannot know it because it comes from below the command line."""
    if isinstance(error, ObjectStoreError):
        return _s3_hint(error)
    if isinstance(error, IndexDamaged):
        return "keep the file and bring back a copy of it"
    if isinstance(error, TierUnavailable):
        return "check the disk, or choose another directory with --cache-dir"
    return ""


def _s3_hint(error: ObjectStoreError) -> str:
    if isinstance(error, AccessDenied):
        if error.code in _CREDENTIAL_CODES:
            return "check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --profile"
        if error.code:
            return (
                "these credentials need s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there"
            )
        return "or choose a profile with --profile"
    if isinstance(error, BucketNotFound):
        if error.code == "NoSuchBucket":
            return "check its name, or make it: s3blobfs mkfs --create-bucket"
        return "with --region"
    if isinstance(error, TransientS3Error) and not error.code:
        return "is the server running, and are --endpoint-url and the network right?"
    if isinstance(error, PermanentS3Error) and "TLS" in error.args[0]:
        return "with --ca-bundle FILE, or write http:// in --endpoint-url"
    return ""
