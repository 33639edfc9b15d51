"""What libraries raise becomes what the package raises, and no secret passes."""

from __future__ import annotations

from typing import Any

import botocore.exceptions as boto
import pytest
from botocore.exceptions import ClientError
from obstore import exceptions as obs

from s3blobfs.errors import (
    AccessDenied,
    BucketNotFound,
    DamagedContent,
    EntityTooLarge,
    ObjectAlreadyExists,
    ObjectNotFound,
    ObjectStoreError,
    OutcomeUnknown,
    PermanentS3Error,
    PreconditionFailed,
    S3BlobFSError,
    TransientS3Error,
)
from s3blobfs.s3.error_map import (
    RequestContext,
    from_botocore,
    from_obstore,
    mapped_errors,
    no_credentials,
)

CONTEXT = RequestContext("http://s3.example:8333", "bucket", "the/key")

ANSWERS = [
    (404, "NoSuchKey", ObjectNotFound),
    (404, "NoSuchVersion", ObjectNotFound),
    (404, "", ObjectNotFound),
    (405, "MethodNotAllowed", ObjectNotFound),
    (404, "NoSuchBucket", BucketNotFound),
    (301, "PermanentRedirect", BucketNotFound),
    (400, "AuthorizationHeaderMalformed", BucketNotFound),
    (404, "NoSuchUpload", PermanentS3Error),
    (403, "AccessDenied", AccessDenied),
    (403, "InvalidAccessKeyId", AccessDenied),
    (403, "SignatureDoesNotMatch", AccessDenied),
    (403, "RequestTimeTooSkewed", AccessDenied),
    (400, "ExpiredToken", AccessDenied),
    (403, "", AccessDenied),
    (401, "", AccessDenied),
    (412, "PreconditionFailed", PreconditionFailed),
    (412, "", PreconditionFailed),
    (409, "ConditionalRequestConflict", TransientS3Error),
    (409, "OperationAborted", TransientS3Error),
    (409, "BucketAlreadyExists", PermanentS3Error),
    (503, "SlowDown", TransientS3Error),
    (503, "", TransientS3Error),
    (500, "InternalError", OutcomeUnknown),
    (200, "InternalError", TransientS3Error),
    (502, "", OutcomeUnknown),
    (504, "", OutcomeUnknown),
    (599, "", TransientS3Error),
    (429, "", TransientS3Error),
    (400, "RequestTimeout", TransientS3Error),
    (400, "BadDigest", TransientS3Error),
    (400, "IncompleteBody", TransientS3Error),
    (400, "EntityTooLarge", EntityTooLarge),
    (413, "", EntityTooLarge),
    (416, "InvalidRange", DamagedContent),
    (416, "", DamagedContent),
    (501, "NotImplemented", PermanentS3Error),
    (400, "InvalidArgument", PermanentS3Error),
    (400, "", PermanentS3Error),
]


def obstore_answer(status: int, code: str, message: str = "said so") -> Exception:
    body = (
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>r-7</RequestId></Error>"
        if code
        else ""
    )
    return obs.GenericError(
        f"Generic S3 error: Error performing GET http://s3.example:8333/bucket/the/key in 1ms - Server "
        f"returned non-2xx status code: {status} Reason: {body}\n\nDebug source:\nGeneric {{}}"
    )


def boto_answer(status: int, code: str, message: str = "said so") -> ClientError:
    response: Any = {
        "Error": {"Code": code or str(status), "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "RequestId": "r-7"},
    }
    return ClientError(response, "GetObject")


@pytest.mark.parametrize(("status", "code", "kind"), ANSWERS)
@pytest.mark.parametrize("library", ["obstore", "botocore"])
def test_answers(library: str, status: int, code: str, kind: type[S3BlobFSError]) -> None:
    if library == "obstore":
        error = from_obstore(obstore_answer(status, code), CONTEXT)
    else:
        error = from_botocore(boto_answer(status, code), CONTEXT)
    assert type(error) is kind
    assert "\n" not in str(error)
    if isinstance(error, ObjectStoreError):
        assert (error.code, error.status, error.key) == (code, status, "the/key")
        assert error.request_id == ("r-7" if code or library == "botocore" else "")
        assert "the/key" in str(error)


@pytest.mark.parametrize("make", [from_obstore, from_botocore])
def test_a_failed_if_none_match_says_that_the_key_is_taken(make: Any) -> None:
    answer = (obstore_answer if make is from_obstore else boto_answer)(412, "PreconditionFailed")
    creating = RequestContext("http://s3.example", "bucket", "k", creating=True)
    assert type(make(answer, creating)) is ObjectAlreadyExists
    assert type(make(answer, CONTEXT)) is PreconditionFailed


def transport(kind: str, detail: str = "") -> Exception:
    return obs.GenericError(
        "Generic S3 error: Error performing GET http://s3.example:8333/bucket/the/key in 1ms - HTTP error: "
        f"error sending request\n\nDebug source:\nHttpError {{ kind: {kind}, source: {detail} }}"
    )


URL = "http://s3.example:8333/bucket/the/key?X-Amz-Signature=5ec4e7"
SILENCE = [
    (
        transport("Connect", "ConnectionRefused"),
        TransientS3Error,
        "cannot reach http://s3.example:8333: conn",
    ),
    (transport("Connect", "dns error"), TransientS3Error, "cannot reach http://s3.example:8333: its name"),
    (transport("Connect", "TimedOut"), TransientS3Error, "cannot reach .*timed out"),
    (transport("Connect", "InvalidCertificate(UnknownIssuer)"), PermanentS3Error, "certificate"),
    (transport("Timeout", "TimedOut"), OutcomeUnknown, "did not answer in time"),
    (transport("Interrupted", "IncompleteBody"), OutcomeUnknown, "was lost"),
    (transport("Request", "IncompleteMessage"), OutcomeUnknown, "was lost"),
    (obs.GenericError("x\n\nDebug source:\nBareRedirect"), BucketNotFound, "another region"),
    (obs.GenericError("something else"), PermanentS3Error, "something else"),
    (
        boto.EndpointConnectionError(endpoint_url=URL, error=OSError(111, "refused")),
        TransientS3Error,
        "refused",
    ),
    (boto.EndpointConnectionError(endpoint_url=URL), TransientS3Error, "cannot reach http://s3.example:8333"),
    (boto.ConnectTimeoutError(endpoint_url=URL), TransientS3Error, "timed out"),
    (boto.ReadTimeoutError(endpoint_url=URL), OutcomeUnknown, "did not answer in time"),
    (boto.ConnectionClosedError(endpoint_url=URL), OutcomeUnknown, "was lost"),
    (boto.SSLError(endpoint_url=URL, error=OSError("bad")), PermanentS3Error, "certificate"),
    (boto.NoCredentialsError(), AccessDenied, "AWS_ACCESS_KEY_ID"),
    (boto.CredentialRetrievalError(provider="x", error_msg="y"), AccessDenied, "AWS_ACCESS_KEY_ID"),
    (boto.FlexibleChecksumError(error_msg="differs"), OutcomeUnknown, "damaged"),
    (boto.ParamValidationError(report="bad bucket"), PermanentS3Error, "bad bucket"),
]


@pytest.mark.parametrize(("error", "kind", "message"), SILENCE)
def test_no_answer(error: Exception, kind: type[S3BlobFSError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught, mapped_errors(CONTEXT):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert "5ec4e7" not in str(caught.value)


def test_errors_of_others_pass() -> None:
    for error in (AssertionError("x"), FileNotFoundError(2, "No such file"), OSError(5, "I/O error")):
        with pytest.raises(type(error)) as caught, mapped_errors(CONTEXT):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "http://h/b/k?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026&X-Amz-Signature=abcdef0123",
        "AWS4-HMAC-SHA256 Credential=KEYID/20260101/us-east-1/s3, Signature=abcdef0123",
        "http://h/b/k?X-Amz-Security-Token=abcdef0123",
    ],
)
def test_secrets_are_removed(secret: str) -> None:
    texts = [
        str(from_obstore(obstore_answer(403, "AccessDenied", f"bad {secret}"), CONTEXT)),
        str(from_botocore(boto_answer(400, "Other", f"bad {secret}"), CONTEXT)),
        str(from_obstore(obs.GenericError(f"bad {secret}"), CONTEXT)),
        str(no_credentials(f"bad {secret}")),
    ]
    for text in texts:
        assert "bad" in text
        for part in ("AKIA", "ASIA", "KEYID", "abcdef0123"):
            assert part not in text
