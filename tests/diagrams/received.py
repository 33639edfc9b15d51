"""What a trace says was asked of S3, against what the S3 server received."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from tests.support.proxy import RecordedRequest

_STEPS = (
    (re.compile(r" --> S3: getObjectMetadata$"), "HEAD"),
    (re.compile(r" -> S3: write (\d+) bytes$"), "PUT"),
    (re.compile(r" <- S3: read (\d+) bytes$"), "GET"),
    (re.compile(r" -> S3: copyObject$"), "COPY"),
    (re.compile(r" -> S3: delete(?:Version|Object)$"), "DELETE"),
)


@dataclass(frozen=True)
class Request:
    """A request in the terms that both sides have."""

    method: str
    key: str
    version_id: str | None = None
    source: str | None = None
    """Of a copy: its key, and ``key v=version``."""
    size_bytes: int | None = None


def drawn(trace: str) -> list[Request]:
    """The requests that the steps of a (not normalised) trace stand for, in order."""
    requests = []
    lines = trace.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        for pattern, method in _STEPS:
            if (found := pattern.search(line)) is None:
                continue
            note = following.partition("hnote right: ")[2]
            size = int(found[1]) if found.groups() else None
            if method == "COPY":
                source, _, note = note.partition(" to ")
                requests.append(Request("COPY", note, source=source))
            else:
                key, _, version = note.partition(" v=")
                requests.append(Request(method, key, version or None, size_bytes=size))
    return requests


def received(bucket: str, recorded: Iterable[RecordedRequest]) -> list[Request]:
    """The requests for blobs that reached the server, in order of arrival."""
    requests = []
    for request in recorded:
        key = request.path.removeprefix(f"/{bucket}").lstrip("/")
        if not key or key.startswith(".s3blobfs/"):
            continue
        version = request.query.get("versionId")
        if copied := request.headers.get("x-amz-copy-source"):
            path, _, query = copied.partition("?versionId=")
            source = unquote(path).removeprefix(f"{bucket}/").removeprefix(f"/{bucket}/")
            requests.append(Request("COPY", key, source=f"{source} v={query}" if query else source))
        elif request.method == "PUT":
            body_bytes = int(request.headers.get("x-amz-decoded-content-length", request.body_bytes))
            requests.append(Request("PUT", key, version, size_bytes=body_bytes))
        elif request.method == "GET":
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            size = int(span[2]) - int(span[1]) + 1 if span else None
            requests.append(Request("GET", key, version, size_bytes=size))
        else:
            requests.append(Request(request.method, key, version))
    return requests
