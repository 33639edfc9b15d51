"""What goes over the control socket: one JSON object a line, one request a connection.

    client   {"request": NAME, …arguments…}
    server   {"progress": {…}}        any number, at intervals
    server   {"part": {NAME: […]}}    any number: entries of a list of the result, which may be long
    server   {"result": {…}}          or  {"error": {"message": TEXT}}

Names of files are text as :func:`os.fsdecode` makes it; lone surrogates survive JSON's escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from s3blobfs.config import MIB
from s3blobfs.errors import S3BlobFSError

LINE_MAX_BYTES = 64 * 1024
"""Of a request."""
ANSWER_MAX_BYTES = 4 * MIB
"""Of a line that the server sends: an entry with its paths, however long they are."""
PART_BYTES = 32 * 1024
"""Entries gather up to about this much."""

T = TypeVar("T")

Json = dict[str, Any]
"""A decoded message, or a part of one."""


class ControlError(S3BlobFSError):
    """The mounted volume refused a request, or the conversation with it failed."""


class MalformedMessage(ControlError):
    """A line is too long, or not one of these messages."""


def encode(message: Mapping[str, object], limit_bytes: int = LINE_MAX_BYTES) -> bytes:
    """Raises :class:`MalformedMessage` for what the other side would not take."""
    line = json.dumps(message).encode("ascii") + b"\n"
    if len(line) > limit_bytes:
        raise MalformedMessage(f"a message of {len(line)} bytes; at most {limit_bytes} are sent")
    return line


def decode(line: bytes) -> Json:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise MalformedMessage(f"not a control message: {error}") from error
    if not isinstance(message, dict):
        raise MalformedMessage("not a control message: not a JSON object")
    return message


def error_message(error: S3BlobFSError) -> Json:
    return {"error": {"message": str(error)}}


def argument(arguments: Json, name: str, kind: type[T]) -> T:
    """An argument of a request; raises :class:`MalformedMessage` when it is missing or of another type."""
    value = arguments.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise MalformedMessage(f"argument {name!r}: {kind.__name__} expected")
    return value
