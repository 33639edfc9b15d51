"""The one place where errors of botocore and obstore become ours.

botocore's errors carry what S3 said as attributes. obstore's carry it in their text: a line ending in
``status code: NNN reason:`` and S3's XML, or, when no answer came, a dump of the transport's error below
``Debug source:``. Only S3's own ``Message`` is passed on, with anything that looks like a credential
removed; addresses are shown without their query, where a signature would be.

Sources: Amazon S3 API Reference, "Error responses"; RFC 9110 section 15 for answers without a body (HEAD).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from xml.sax.saxutils import unescape

import botocore.exceptions as boto
from botocore.parsers import ResponseParserError
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

TRANSIENT_CODES = frozenset(
    {
        "BadDigest",  # the body was damaged on its way
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
UNKNOWN_STATUS = frozenset({500, 502, 504})
"""The server, or one before it, does not know either what became of the request. 503 is a refusal."""

_CLASS_OF_CODE: dict[str, type[ObjectStoreError]] = {
    **dict.fromkeys(TRANSIENT_CODES, TransientS3Error),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "ExpiredToken",
            "InvalidAccessKeyId",
            "InvalidToken",
            "RequestTimeTooSkewed",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
        ),
        AccessDenied,
    ),
    **dict.fromkeys(
        ("NoSuchBucket", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"),
        BucketNotFound,
    ),
    # 405 is the answer to GET and HEAD of a version that is a delete marker.
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "MethodNotAllowed"), ObjectNotFound),
    "PreconditionFailed": PreconditionFailed,
    "EntityTooLarge": EntityTooLarge,
    # A 404 of its own; the key says nothing about it.
    "NoSuchUpload": PermanentS3Error,
}
_CLASS_OF_STATUS: dict[int, type[ObjectStoreError]] = {
    **dict.fromkeys(TRANSIENT_STATUS, TransientS3Error),
    301: BucketNotFound,
    307: BucketNotFound,
    401: AccessDenied,
    403: AccessDenied,
    404: ObjectNotFound,
    405: ObjectNotFound,
    412: PreconditionFailed,
    413: EntityTooLarge,
}
_SENSELESS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What becomes of reading an answer that has not what it must have. Inside of :func:`mapped_errors` is
nothing but a request and the reading of its answer."""
_RANGE_CODE, _RANGE_STATUS = "InvalidRange", 416

_WRONG_REGION = "the bucket is in another region: give its region"
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile, or use an instance role"
)
_SECRET = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
    r"|\b(?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)=[^&\s\"]+"
    r"|Credential=[^,\s]+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request was about, for its error's message."""

    endpoint_url: str
    bucket: str
    key: str = ""
    creating: bool = False
    """It carries ``If-None-Match: *``, so that 412 means that the key is taken."""


@contextlib.contextmanager
def mapped_errors(context: RequestContext) -> Iterator[None]:
    """Whatever the two libraries raise inside leaves as an error of :mod:`s3blobfs.errors`."""
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError, boto.HTTPClientError) as error:
        raise from_botocore(error, context) from error
    except (ResponseParserError, *_SENSELESS) as error:
        raise senseless(error, context) from error
    except (obs.BaseError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error.errno is not None:
            raise  # of a local file; obstore's has no errno
        raise from_obstore(error, context) from error


def senseless(error: Exception, context: RequestContext) -> OutcomeUnknown:
    """An answer that is not what S3's documentation says: damaged, or from something else than S3."""
    return OutcomeUnknown(
        f"{_address(context)} gave an answer that makes no sense ({type(error).__name__})", key=context.key
    )


def from_answer(
    context: RequestContext, *, status: int, code: str = "", message: str = "", request_id: str = ""
) -> S3BlobFSError:
    """The error of an answer that S3 gave: by its code, where it gave one, else by its status."""
    if code == _RANGE_CODE or status == _RANGE_STATUS:
        return DamagedContent(f"key {context.key}: the object is shorter than was stored ({code or status})")
    kind = _CLASS_OF_CODE.get(code) or _CLASS_OF_STATUS.get(status)
    if kind is None:
        kind = TransientS3Error if status >= 500 and status != 501 else PermanentS3Error
    if kind is TransientS3Error and status in UNKNOWN_STATUS:
        kind = OutcomeUnknown
    if kind is PreconditionFailed and context.creating:
        kind = ObjectAlreadyExists
    text = redact(message) or f"the server answered HTTP {status}"
    if kind is BucketNotFound:
        text = f"bucket {context.bucket}: {text if code == 'NoSuchBucket' else _WRONG_REGION}"
    elif kind is AccessDenied:
        text = f"{urlsplit(context.endpoint_url).netloc} refused the credentials for {context.bucket}: {text}"
    return kind(text, code=code, request_id=request_id, status=status, key=context.key)


def redact(text: str) -> str:
    """``text`` on one line, without access keys and signatures."""
    return _SECRET.sub("[removed]", " ".join(text.split()))


# --- botocore -----------------------------------------------------------------------------------------


def from_botocore(error: Exception, context: RequestContext) -> S3BlobFSError:
    """Map an error of boto3's; ``error`` is a ClientError (an answer) or a BotoCoreError (none)."""
    if isinstance(error, boto.ClientError):
        detail = error.response.get("Error", {})
        metadata = error.response.get("ResponseMetadata")
        code = detail.get("Code", "")
        return from_answer(
            context,
            status=metadata["HTTPStatusCode"] if metadata else 0,
            code="" if code.isdigit() else code,  # HEAD has no body: botocore gives the status for a code
            message="" if code.isdigit() else detail.get("Message", ""),
            request_id=metadata.get("RequestId", "") if metadata else "",
        )
    if isinstance(
        error,
        (
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.CredentialRetrievalError,
            boto.TokenRetrievalError,
            boto.SSOError,
            boto.LoginError,
        ),
    ):
        return no_credentials(str(error))
    if isinstance(error, boto.SSLError):
        return _bad_tls(context)
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)):
        return _unreachable(context, _reason(f"{error} {error.kwargs.get('error', '')}"))
    if isinstance(error, boto.ReadTimeoutError):
        return _timeout(context)
    if isinstance(error, (boto.HTTPClientError, boto.ResponseStreamingError, boto.IncompleteReadError)):
        return _broken(context)
    if isinstance(error, boto.FlexibleChecksumError):
        return OutcomeUnknown("an answer was damaged on its way", key=context.key)
    return PermanentS3Error(redact(str(error)), key=context.key)


def no_credentials(detail: str = "") -> AccessDenied:
    """What to do when the AWS chain gives no credentials."""
    return AccessDenied(f"no AWS credentials ({redact(detail) or 'none found'}): {_CREDENTIALS_HINT}")


# --- obstore ------------------------------------------------------------------------------------------

_STATUS = re.compile(r"status code: (\d{3})")
_BODY_END = "\n\nDebug source:"
_NOT_CONNECTED = re.compile(r"kind: Connect\b")
"""Nothing was sent. ``ConnectionReset`` is another kind: of a connection that was there."""


def from_obstore(error: Exception, context: RequestContext) -> S3BlobFSError:
    """Map an error of obstore's by its text; its classes tell less."""
    text = str(error)
    said, _, debug = text.partition(_BODY_END)
    status = _STATUS.search(said)
    if status is not None:
        body = said[status.end() :]
        return from_answer(
            context,
            status=int(status[1]),
            code=_element(body, "Code"),
            message=_element(body, "Message"),
            request_id=_element(body, "RequestId"),
        )
    if isinstance(error, obs.UnauthenticatedError):
        return no_credentials(said.partition("provider: ")[2])
    if "BareRedirect" in debug:
        return from_answer(context, status=301)
    if "InvalidCertificate" in debug or "InvalidContentType" in debug:
        return _bad_tls(context)
    if _NOT_CONNECTED.search(debug):
        return _unreachable(context, _reason(debug))
    if "kind: Timeout" in debug or "TimedOut" in debug:
        return _timeout(context)
    if any(kind in debug for kind in ("kind: Interrupted", "kind: Request", "kind: Decode", "kind: Unknown")):
        return _broken(context)
    return PermanentS3Error(redact(said), key=context.key)


def _element(xml: str, name: str) -> str:
    match = re.search(rf"<{name}>([^<]*)</{name}>", xml)
    return unescape(match[1]) if match else ""


# --- no answer ----------------------------------------------------------------------------------------


def _reason(text: str) -> str:
    """Why a connection was not made, in a word."""
    lowered = text.lower()
    if "refused" in lowered or "errno 111" in lowered:
        return "connection refused"
    if "lookup" in lowered or "resolve" in lowered or "dns error" in lowered or "name or service" in lowered:
        return "its name does not resolve"
    if "timedout" in lowered or "timeout on endpoint" in lowered:
        return "connecting timed out"
    return "no connection"


def _address(context: RequestContext) -> str:
    parts = urlsplit(context.endpoint_url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _unreachable(context: RequestContext, reason: str) -> TransientS3Error:
    return TransientS3Error(f"cannot reach {_address(context)}: {reason}", key=context.key)


def _timeout(context: RequestContext) -> TransientS3Error:
    return OutcomeUnknown(f"{_address(context)} did not answer in time", key=context.key)


def _broken(context: RequestContext) -> TransientS3Error:
    return OutcomeUnknown(f"the connection to {_address(context)} was lost", key=context.key)


def _bad_tls(context: RequestContext) -> PermanentS3Error:
    return PermanentS3Error(
        f"cannot establish TLS with {_address(context)}: its certificate is not trusted or it speaks plain "
        "HTTP; give the certificate authority's PEM file",
        key=context.key,
    )
