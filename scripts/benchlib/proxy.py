"""A proxy on loopback that holds each HTTP request up for a while, as a network does, and counts it.

It passes bytes on unchanged, the Host header included, so signatures stay valid: they are of the address that
the client was given, which is this proxy's. Of what passes only the heads of requests are read. Bodies and
answers move from socket to socket inside the kernel (splice(2)): what they cost is little beside the transfer
itself.

``python -m benchlib.proxy --upstream-port PORT --delay-ms MS --counts FILE`` prints its own port.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click
import trio

from s3blobfs.demo.process import ProcessId

LOOPBACK = "127.0.0.1"
KINDS = (
    *("head", "get", "put", "part", "copy", "part_copy", "delete", "delete_batch", "list"),
    *("begin_parts", "end_parts", "tag", "other"),
)
"""What requests are counted as."""

_COUNTS = struct.Struct(f"={len(KINDS)}Q")
_HEAD_LIMIT_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_STOP_S = 2.0


class BadRequest(Exception):
    """No HTTP/1.1 request with a length, which is all that S3's clients send."""


@dataclass(frozen=True, slots=True)
class Head:
    """What has to be known of a request."""

    kind: str
    body_bytes: int

    @classmethod
    def parse(cls, head: bytes) -> Head:
        """Raises :class:`BadRequest`."""
        first, *lines = head.decode("latin-1").split("\r\n")
        try:
            method, target, _ = first.split(" ")
        except ValueError as error:
            raise BadRequest(first) from error
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        if "transfer-encoding" in headers:
            raise BadRequest(f"{first}: transfer encodings are not known here")
        return cls(_kind(method, target, headers), int(headers.get("content-length", "0")))


def _kind(method: str, target: str, headers: Mapping[str, str]) -> str:
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    of_object = re.fullmatch(r"/[^/]+/.+", url.path) is not None
    copies = "x-amz-copy-source" in headers
    match method:
        case "PUT" | "GET" if of_object and "tagging" in query:
            return "tag"
        case "PUT" if of_object and "partNumber" in query:
            return "part_copy" if copies else "part"
        case "PUT" if of_object:
            return "copy" if copies else "put"
        case "GET" | "HEAD" | "DELETE" if of_object and "uploadId" not in query:
            return method.lower()
        case "GET" if "uploads" in query or "list-type" in query or "versions" in query or "prefix" in query:
            return "list"
        case "POST" if of_object and "uploads" in query:
            return "begin_parts"
        case "POST" if of_object and "uploadId" in query:
            return "end_parts"
        case "POST" if "delete" in query:
            return "delete_batch"
    return "other"


class Counts:
    """Shared by the proxy and who started it, through a file."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _COUNTS.size)

    @classmethod
    def create(cls, path: Path) -> Counts:
        path.write_bytes(bytes(_COUNTS.size))
        return cls(path)

    def count(self, kind: str) -> None:
        """By one process only."""
        values = list(_COUNTS.unpack_from(self._memory))
        values[KINDS.index(kind)] += 1
        _COUNTS.pack_into(self._memory, 0, *values)

    def read(self) -> dict[str, int]:
        return dict(zip(KINDS, _COUNTS.unpack_from(self._memory), strict=True))


# -- the proxy's process -------------------------------------------------------------------------------


class _Socket:
    """A connected socket, and a pipe for what comes out of it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = connected.fileno()
        self._socket = connected
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(PermissionError):  # users have a limit; more turns do as well
            fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, _PIECE_BYTES)

    def close(self) -> None:
        self._socket.close()
        os.close(self._read_end)
        os.close(self._write_end)

    def shut(self) -> None:
        """Nothing more will be sent."""
        with contextlib.suppress(OSError):  # the other side may have closed it
            self._socket.shutdown(socket.SHUT_WR)

    async def receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(_HEAD_LIMIT_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.fd)

    async def send(self, data: bytes) -> None:
        with memoryview(data) as left:
            done = 0
            while done < len(left):
                try:
                    done += self._socket.send(left[done:])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.fd)

    async def pass_on(self, to: _Socket, size_bytes: float = math.inf) -> bool:
        """So many bytes, or all until the end; whether there was an end before."""
        while size_bytes > 0:
            moved = await self._fill(int(min(size_bytes, _PIECE_BYTES)))
            if moved == 0:
                return True
            size_bytes -= moved
            while moved:
                moved -= await self._empty(to, moved)
            await trio.lowlevel.checkpoint()  # other connections have their turn
        return False

    async def _fill(self, size_bytes: int) -> int:
        while True:
            try:
                return os.splice(self.fd, self._write_end, size_bytes, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.fd)

    async def _empty(self, to: _Socket, size_bytes: int) -> int:
        while True:
            try:
                return os.splice(self._read_end, to.fd, size_bytes, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(to.fd)


class Proxy:
    """Connections to ``upstream_port``; each request on them waits for ``delay_s``."""

    def __init__(self, upstream_port: int, delay_s: float, counts: Counts) -> None:
        self._upstream_port = upstream_port
        self._delay_s = delay_s
        self._counts = counts

    async def serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(listener.fileno())
                    continue
                nursery.start_soon(self._serve_connection, connection)

    async def _serve_connection(self, connection: socket.socket) -> None:
        """Either side may go when it likes; the other is told by a closed connection, as without us."""
        with contextlib.ExitStack() as stack:
            client = _Socket(connection)
            stack.callback(client.close)
            with contextlib.suppress(ConnectionError):
                server = _Socket(socket.create_connection((LOOPBACK, self._upstream_port)))
                stack.callback(server.close)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._answers, server, client, nursery.cancel_scope)
                    await self._requests(client, server)

    async def _answers(self, server: _Socket, client: _Socket, both: trio.CancelScope) -> None:
        with contextlib.suppress(ConnectionError):
            await server.pass_on(client)
        both.cancel()

    async def _requests(self, client: _Socket, server: _Socket) -> None:
        with contextlib.suppress(ConnectionError):
            arrived = b""
            while True:
                end = arrived.find(b"\r\n\r\n") + 4
                if end < 4:
                    if len(arrived) > _HEAD_LIMIT_BYTES:
                        raise BadRequest(f"a head of more than {_HEAD_LIMIT_BYTES} bytes")
                    more = await client.receive()
                    if not more:
                        break
                    arrived += more
                    continue
                head = Head.parse(arrived[: end - 4])
                self._counts.count(head.kind)
                await trio.sleep(self._delay_s)
                with_head = min(len(arrived), end + head.body_bytes)
                await server.send(arrived[:with_head])
                if await client.pass_on(server, end + head.body_bytes - with_head):
                    break
                arrived = arrived[with_head:]
        server.shut()


@click.command()
@click.option("--upstream-port", type=int, required=True)
@click.option("--delay-ms", type=float, required=True)
@click.option("--counts", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
def main(upstream_port: int, delay_ms: float, counts: Path) -> None:
    """Serve until SIGTERM."""
    with socket.create_server((LOOPBACK, 0), backlog=1024) as listener:
        click.echo(listener.getsockname()[1])
        trio.run(Proxy(upstream_port, delay_ms / 1000, Counts(counts)).serve, listener)


# -- whoever starts it ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunningProxy:
    endpoint_url: str
    counts: Counts


@contextlib.contextmanager
def proxy(directory: Path, upstream_url: str, delay_ms: float) -> Iterator[RunningProxy]:
    """In a process of its own, which is ended behind the context."""
    path = directory / "proxy-counts"
    counts = Counts.create(path)
    command = [
        *(sys.executable, "-m", "benchlib.proxy", f"--upstream-port={urlsplit(upstream_url).port}"),
        *(f"--delay-ms={delay_ms}", f"--counts={path}"),
    ]
    with (directory / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the proxy did not start: {(directory / 'proxy.log').read_text()}")
        yield RunningProxy(f"http://{LOOPBACK}:{port}", counts)
    finally:
        if (running := ProcessId.of(process.pid)) is not None:
            running.end(_STOP_S)
        process.communicate()


if __name__ == "__main__":
    main()
