"""The bench's proxy: it tells requests apart, and passes them on unchanged."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchlib.proxy import BadRequest, Head, proxy

DELAY_MS = 1.0
LARGE = random.Random(1).randbytes(3_000_001)


@pytest.mark.parametrize(
    ("request_line", "header", "kind"),
    [
        ("GET /b/k HTTP/1.1", "", "get"),
        ("HEAD /b/k%20l HTTP/1.1", "", "head"),
        ("PUT /b/a/b/c HTTP/1.1", "", "put"),
        ("PUT /b/k?partNumber=1&uploadId=u HTTP/1.1", "", "part"),
        ("PUT /b/k HTTP/1.1", "x-amz-copy-source: /b/l", "copy"),
        ("PUT /b/k?partNumber=1&uploadId=u HTTP/1.1", "X-Amz-Copy-Source: /b/l", "part_copy"),
        ("DELETE /b/k?versionId=v HTTP/1.1", "", "delete"),
        ("POST /b?delete HTTP/1.1", "", "delete_batch"),
        ("POST /b/?delete= HTTP/1.1", "", "delete_batch"),
        ("GET /b?list-type=2&prefix=x HTTP/1.1", "", "list"),
        ("GET /b/?versions HTTP/1.1", "", "list"),
        ("POST /b/k?uploads HTTP/1.1", "", "begin_parts"),
        ("POST /b/k?uploadId=u HTTP/1.1", "", "end_parts"),
        ("DELETE /b/k?uploadId=u HTTP/1.1", "", "other"),
        ("PUT /b/k?tagging&versionId=v HTTP/1.1", "", "tag"),
        ("GET /b/k?tagging HTTP/1.1", "", "tag"),
        ("PUT /b HTTP/1.1", "", "other"),
    ],
)
def test_what_a_request_is(request_line: str, header: str, kind: str) -> None:
    lines = [request_line, "Host: localhost", *([header] if header else []), "Content-Length: 5"]
    assert Head.parse("\r\n".join(lines).encode()) == Head(kind, 5)


def test_a_body_without_a_length_is_refused() -> None:
    with pytest.raises(BadRequest, match="transfer"):
        Head.parse(b"PUT /b/k HTTP/1.1\r\nTransfer-Encoding: chunked")


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(BadRequest):
        Head.parse(b"hello")


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the Host header and the body that came."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Not on standard error."""


@contextmanager
def echo_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_requests_pass_unchanged_and_are_counted(tmp_path: Path) -> None:
    with echo_server() as upstream, proxy(tmp_path, upstream, DELAY_MS) as running:
        address = running.endpoint_url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=30)
        for body in (LARGE, b"", b"small", LARGE):
            connection.request("PUT", "/bucket/key", body=body)
            answer = connection.getresponse()
            assert answer.read() == body
            assert answer.headers["X-Host"] == address
        connection.close()
        assert {kind: count for kind, count in running.counts.read().items() if count} == {"put": 4}


def test_a_server_that_is_gone_closes_the_connection(tmp_path: Path) -> None:
    with echo_server() as upstream:
        pass
    with proxy(tmp_path, upstream, DELAY_MS) as running:
        connection = http.client.HTTPConnection(running.endpoint_url.removeprefix("http://"), timeout=30)
        # Headers and body are sent one after the other: the proxy may have closed it in between.
        with contextlib.closing(connection), pytest.raises(ConnectionError):
            connection.request("PUT", "/bucket/key", body=b"x")
            connection.getresponse()
