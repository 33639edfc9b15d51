"""A recording reverse proxy on loopback: what a server was really asked, and faults on the wire.

The ``Host`` header goes through unchanged, so that signatures hold; bodies are streamed both ways and
connections kept alive. One thread serves one client connection and has one upstream connection.

::

    with RecordingProxy(server.endpoint_url) as proxy:
        proxy.on(WireFault(reset_after=True), method="PUT", path="/bucket/k*", nth=1)
        ...                                   # a client with endpoint_url=proxy.url
        assert [(r.method, r.path) for r in proxy.requests] == [...]
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import parse_qsl, unquote, urlsplit

BLOCK_BYTES = 64 * 1024
UPSTREAM_TIMEOUT_S = 60.0
SECRET_HEADERS = frozenset({"authorization", "x-amz-security-token"})
HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "transfer-encoding"})


@dataclass
class RecordedRequest:
    """One request as it arrived, and what became of it."""

    method: str
    path: str
    """Decoded, without the query: ``/bucket/key``."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case; without those of ``SECRET_HEADERS``."""
    body_bytes: int = 0
    """As sent, transfer encodings removed and ``aws-chunked`` left in."""
    status: int = 0
    """0: no answer was given (yet)."""
    version_id: str | None = None
    """``x-amz-version-id`` of the answer."""


@dataclass(frozen=True)
class WireFault:
    """What goes wrong with one request. Fields may be combined."""

    delay_s: float = 0.0
    """Before anything is done."""
    stall: threading.Event | None = None
    """Nothing is done until it is set."""
    answer: tuple[int, Mapping[str, str], bytes] | None = None
    """Status, headers, body; the server is not asked."""
    reset_before: bool = False
    """The connection is reset; the server is not asked."""
    reset_after: bool = False
    """The server has answered, the client gets a reset."""
    flip_request_byte: int | None = None
    """Offset in the request's body of a byte that is inverted."""
    flip_answer_byte: int | None = None
    """Offset in the answer's body of a byte that is inverted."""
    answer_bytes: int | None = None
    """The connection closes after so many bytes of the answer's body."""


Rule = Callable[[RecordedRequest], WireFault | None]


def error_answer(status: int, code: str) -> tuple[int, Mapping[str, str], bytes]:
    """S3's way to say no, for :attr:`WireFault.answer`."""
    body = f"<Error><Code>{code}</Code><Message>by rule</Message><RequestId>r-1</RequestId></Error>"
    return status, {"Content-Type": "application/xml"}, body.encode()


class RecordingProxy:
    """A context manager. ``tls`` makes it speak HTTPS to its clients."""

    def __init__(self, upstream_url: str, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[RecordedRequest] = []
        """In the order of their arrival."""
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(self, upstream_url, tls)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.close_clients()
        self._server.server_close()
        self._thread.join()

    def on(
        self,
        fault: WireFault,
        *,
        method: str = "*",
        path: str = "*",
        query: str = "*",
        nth: int | None = None,
    ) -> None:
        """``fault`` meets requests whose method, decoded path and query (``a=b&c=``, as in the URL but
        decoded) match the patterns: the ``nth`` of them, from 1, or all."""
        matched = 0

        def rule(request: RecordedRequest) -> WireFault | None:
            nonlocal matched
            asked = "&".join(f"{name}={value}" for name, value in request.query.items())
            facts = ((request.method, method), (request.path, path), (asked, query))
            if not all(fnmatchcase(value, pattern) for value, pattern in facts):
                return None
            matched += 1
            return fault if nth in (None, matched) else None

        self.add_rule(rule)

    def add_rule(self, rule: Rule) -> None:
        """Asked for each request, under a lock and before the body is read; the first fault counts."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Forget rules and records."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def arrived(self, request: RecordedRequest) -> WireFault:
        with self._lock:
            self.requests.append(request)
            return next((fault for rule in self._rules if (fault := rule(request))), WireFault())

    def wait(self, fault: WireFault) -> bool:
        """Delay and stall; False when the proxy is being closed meanwhile."""
        if fault.delay_s and self._stopping.wait(fault.delay_s):
            return False
        while fault.stall is not None and not fault.stall.wait(0.05):
            if self._stopping.is_set():
                return False
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: RecordingProxy, upstream_url: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.upstream = urlsplit(upstream_url)
        self.tls = tls
        self._clients: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a TLS handshake holds up nobody else."""
        self._clients.add(request)
        connection = request
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(request, server_side=True)
            super().finish_request(connection, client_address)
        except (OSError, ValueError):
            # The client went away, or this proxy cut the connection: both are what tests are about.
            connection.close()
        finally:
            connection.close()
            self._clients.discard(request)

    def close_clients(self) -> None:
        for client in list(self._clients):
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its own thread


class _Cut(ConnectionError):
    """The connection to the client has been cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Small answers would wait for the client's delayed acknowledgement otherwise.
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        upstream = self.server.upstream
        self._upstream = http.client.HTTPConnection(
            upstream.hostname or "", upstream.port, timeout=UPSTREAM_TIMEOUT_S, blocksize=BLOCK_BYTES
        )

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, format: str, *args: Any) -> None:
        """What happened is in the records."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self._relay()
        self.wfile.flush()

    def _relay(self) -> None:
        split = urlsplit(self.path)
        request = RecordedRequest(
            method=self.command,
            path=unquote(split.path),
            query=dict(parse_qsl(split.query, keep_blank_values=True)),
            headers={
                name.lower(): value
                for name, value in self.headers.items()
                if name.lower() not in SECRET_HEADERS
            },
        )
        fault = self.server.proxy.arrived(request)
        if not self.server.proxy.wait(fault):
            self._cut()
        if fault.reset_before:
            self._cut()
        if fault.answer is not None:
            for block in self._body():
                request.body_bytes += len(block)
            status, headers, body = fault.answer
            self._answer(request, status, headers.items(), len(body), [body], fault)
            return
        answer = self._forward(request, fault)
        blocks = iter(lambda: answer.read(BLOCK_BYTES), b"")
        if fault.reset_after:
            for _ in blocks:
                continue
            self._cut()
        length = answer.getheader("Content-Length")
        self._answer(
            request,
            answer.status,
            [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS],
            None if length is None else int(length),
            blocks,
            fault,
        )

    def _forward(self, request: RecordedRequest, fault: WireFault) -> http.client.HTTPResponse:
        upstream = self._upstream
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_HEADERS:
                upstream.putheader(name, value)
        chunked = self._is_chunked()
        if chunked:
            upstream.putheader("Transfer-Encoding", "chunked")
        upstream.endheaders()
        for block in self._body():
            block = _flipped(block, request.body_bytes, fault.flip_request_byte)
            request.body_bytes += len(block)
            upstream.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            upstream.send(b"0\r\n\r\n")
        return upstream.getresponse()

    def _is_chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _body(self) -> Iterator[bytes]:
        if not self._is_chunked():
            yield from self._exactly(int(self.headers.get("Content-Length", "0")))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self._exactly(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # trailers; S3's own are inside its aws-chunked body

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            block = self.rfile.read(min(size, BLOCK_BYTES))
            if not block:
                raise ConnectionError("the client stopped in the middle of a body")
            size -= len(block)
            yield block

    def _answer(
        self,
        request: RecordedRequest,
        status: int,
        headers: Iterable[tuple[str, str]],
        length: int | None,
        blocks: Iterable[bytes],
        fault: WireFault,
    ) -> None:
        request.status = status
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() == "x-amz-version-id":
                request.version_id = value
            if name.lower() != "content-length":
                self.send_header(name, value)
        has_body = self.command != "HEAD" and status not in (204, 304)
        chunked = has_body and length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        sent = 0
        for block in blocks:
            if not has_body:
                continue
            block = _flipped(block, sent, fault.flip_answer_byte)
            if fault.answer_bytes is not None and sent + len(block) > fault.answer_bytes:
                self.wfile.write(block[: fault.answer_bytes - sent])
                self.wfile.flush()
                raise _Cut
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            sent += len(block)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> NoReturn:
        """Reset, not just close: the client must not take it for an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Cut


def _flipped(block: bytes, offset: int, at: int | None) -> bytes:
    """``block``, which begins at ``offset``, with the byte at offset ``at`` inverted if it is in there."""
    if at is None or not offset <= at < offset + len(block):
        return block
    index = at - offset
    return block[:index] + bytes([255 - block[index]]) + block[index + 1 :]
