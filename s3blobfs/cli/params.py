"""Arguments that several commands have: types of values, and the options that say how S3 is reached."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from s3blobfs.config import Encryption, S3Options, parse_s3_uri, parse_size
from s3blobfs.errors import UsageError
from s3blobfs.types import DigestAlgorithm, Durability, Keying

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def s3_uri(text: str) -> tuple[str, str]:
    """Type of a parameter: ``s3://BUCKET[/PREFIX]``, as ``(bucket, prefix)``."""
    try:
        return parse_s3_uri(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def size(text: str) -> int:
    """Type of a parameter: ``10G``, ``512MiB`` …, in bytes."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def size_or_off(text: str) -> int | None:
    """Type of a parameter: a size, or ``None`` for ``off``."""
    return None if text == "off" else size(text)


def endpoint_url(text: str) -> str:
    """Type of a parameter: an http or https address. A password in it would show up in lists of
    processes."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"not an http:// or https:// address: {text!r}")
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter("an address holds no credentials; they come from the AWS configuration")
    return text


def moment(text: str) -> int:
    """Type of a parameter: a time as ISO 8601 writes it, local unless it says otherwise; in nanoseconds since
    1970."""
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 10**9)
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(f"not a time: {text!r}; write for example 2026-01-31T12:30") from error


def duration(text: str) -> float:
    """Type of a parameter: ``90``, ``15m``, ``1d`` …, in seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"not a duration: {text!r}; write for example 90s, 12h or 30d")
    return float(match[1]) * _UNITS_S[match[2].lower()]


PATH = click.Path(path_type=Path)
KEYING = click.Choice([Keying.DIGEST.value, Keying.VERSIONED.value])
DIGEST = click.Choice([DigestAlgorithm.MD5.value, DigestAlgorithm.SHA256.value])
DURABILITY = click.Choice([Durability.S3.value, Durability.DISK.value])
TIMEOUT = click.FloatRange(0.1, 3600)

_S3_PARAMETERS = (
    click.option(
        "--endpoint-url", type=endpoint_url, metavar="URL", help="Address of an S3 server; AWS if not given."
    ),
    click.option("--region", help="Region of the bucket; from the AWS configuration if not given."),
    click.option("--profile", help="Profile of the AWS configuration to use."),
    click.option(
        "--path-style/--virtual-host-style",
        default=None,
        help="Whether the bucket stands in the path of addresses; so with --endpoint-url if not given.",
    ),
    click.option("--ca-bundle", type=PATH, help="PEM file of certificate authorities to trust."),
    click.option("--sse-s3", is_flag=True, help="Ask S3 to encrypt objects with keys of its own."),
    click.option("--sse-kms-key-id", metavar="KEY", help="Ask S3 to encrypt objects with this KMS key."),
    click.option("--storage-class", metavar="CLASS", help="Storage class of new objects, as STANDARD_IA."),
    click.option(
        "--request-timeout", type=TIMEOUT, default=60.0, show_default=True,
        metavar="SECONDS", help="After this time a request is given up, and repeated.",
    ),
    click.option(
        "--total-timeout", type=TIMEOUT, default=180.0, show_default=True,
        metavar="SECONDS", help="After this time what waits for S3 fails, repetitions included.",
    ),
)  # fmt: skip
_S3_NAMES = (
    "endpoint_url",
    "region",
    "profile",
    "path_style",
    "ca_bundle",
    "sse_s3",
    "sse_kms_key_id",
    "storage_class",
    "request_timeout",
    "total_timeout",
)


def s3_options(function: Decorated) -> Decorated:
    """Adds the options that say how S3 is reached; :func:`take_s3_options` collects their values."""
    for decorate in reversed(_S3_PARAMETERS):
        function = decorate(function)
    return function


def take_s3_options(values: dict[str, Any]) -> S3Options:
    """Take what :func:`s3_options` added out of a command's arguments."""
    taken = {name: values.pop(name) for name in _S3_NAMES}
    sse_s3, kms_key_id = taken.pop("sse_s3"), taken.pop("sse_kms_key_id")
    if sse_s3 and kms_key_id:
        raise click.UsageError("--sse-s3 and --sse-kms-key-id exclude each other")
    encryption = Encryption.SSE_KMS if kms_key_id else Encryption.SSE_S3 if sse_s3 else Encryption.NONE
    if taken["ca_bundle"] is not None:
        taken["ca_bundle"] = taken["ca_bundle"].absolute()
    return S3Options(
        encryption=encryption,
        kms_key_id=kms_key_id,
        request_timeout_s=taken.pop("request_timeout"),
        total_timeout_s=taken.pop("total_timeout"),
        **taken,
    )
