"""The server side of the control socket, run by the process that has the volume mounted.

Who may connect: the user whose mount it is, and root. The socket's mode keeps others out, and the kernel is
asked for the peer's credentials besides. A request costs one connection; a peer that sends none, or does not
take its answer, is given up after a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.control.addresses import short_address
from s3blobfs.control.messages import (
    ANSWER_MAX_BYTES,
    LINE_MAX_BYTES,
    ControlError,
    Json,
    MalformedMessage,
    argument,
    decode,
    encode,
    error_message,
)
from s3blobfs.errors import S3BlobFSError, UsageError
from s3blobfs.volume.paths import PRIVATE_FILE_MODE

logger = logging.getLogger(__name__)

BACKLOG = 16
LINE_TIMEOUT_S = 10.0
"""For the request to arrive, and for each line of the answer to be taken."""
PROGRESS_INTERVAL_S = 0.1
DRAIN_MAX_BYTES = 1024 * 1024
"""Of a refused request."""

_CREDENTIALS = struct.Struct("3i")
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel knows him."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is being answered."""

    arguments: Json
    peer: Peer
    progress: Callable[[Json], None]
    """Tells the client how far it is. The newest one counts; some are never sent."""
    part: Callable[[str, list[Json]], Awaitable[None]]
    """Sends entries of a list of the answer; returns when the client's connection took those before. So no
    list has to be in memory."""


Handler = Callable[[Call], Awaitable[Json]]


class ControlServer:
    """Answers requests by ``handlers``, a table of functions by the name of the request."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._listening = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until :meth:`stop_listening`; returns when the last request is answered.

        The caller holds the volume's lock: a socket that lies at the path is a dead one. Raises
        :class:`UsageError` where none can be made."""
        listener = _listen(self._path)
        async with trio.open_nursery() as requests:
            with self._listening:
                task_status.started()
                await trio.serve_listeners(self._serve, [listener], handler_nursery=requests)

    def stop_listening(self) -> None:
        """Take no further request; those begun go on. Again is harmless."""
        if not self._listening.cancel_called:
            self._listening.cancel()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection, closed by the caller."""
        peer = _peer_of(stream)
        try:
            try:
                if peer.uid not in (0, os.geteuid()):
                    raise ControlError("the volume is mounted by another user")
                await self._answer(stream, peer, decode(await _receive_line(stream)))
            except S3BlobFSError as error:
                await _send(stream, error_message(error))
                await _drain(stream)
        except (trio.BrokenResourceError, trio.TooSlowError):
            logger.debug("process %d did not wait for the answer to its request", peer.pid)

    async def _answer(self, stream: trio.SocketStream, peer: Peer, request: Json) -> None:
        handler = self._handlers.get(name := argument(request, "request", str))
        if handler is None:
            raise MalformedMessage(f"no such request: {name!r}")
        exchange = _Exchange()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.run, handler, Call(request, peer, exchange.report, exchange.part))
            try:
                while (message := await exchange.next_message()) is not None:
                    await _send(stream, message)
            except (trio.BrokenResourceError, trio.TooSlowError):
                # Whoever interrupts a command means the request as well.
                nursery.cancel_scope.cancel()
        await _send(stream, exchange.answer)


class _Exchange:
    """Between the handler, which reports at any rate, and the connection, which is written by one task."""

    def __init__(self) -> None:
        self.answer: Json = {}
        self._progress: Json | None = None
        self._part: Json | None = None
        self._taken = trio.Event()
        self._finished = False
        self._news = trio.Event()
        """Anything is to be sent."""
        self._urgent = trio.Event()
        """Something that is not to wait."""

    def report(self, progress: Json) -> None:
        self._progress = progress
        self._news.set()

    async def part(self, name: str, entries: list[Json]) -> None:
        while self._part is not None:
            await self._taken.wait()
        self._part, self._taken = {name: entries}, trio.Event()
        self._news.set()
        self._urgent.set()

    async def run(self, handler: Handler, call: Call) -> None:
        try:
            self.answer = {"result": await handler(call)}
        except S3BlobFSError as error:
            self.answer = error_message(error)
        except Exception:
            # A mistake in a request must not take the mounted volume down with it.
            logger.exception("the request %r failed", call.arguments.get("request"))
            self.answer = error_message(ControlError("internal error; the mount's log has the details"))
        self._finished = True
        self._news.set()
        self._urgent.set()

    async def next_message(self) -> Json | None:
        """A part of the answer, or the newest report that was not sent yet, at intervals; ``None`` when it is
        over."""
        await self._news.wait()
        with trio.move_on_after(PROGRESS_INTERVAL_S):
            await self._urgent.wait()
        if self._part is not None:
            part, self._part = self._part, None
            self._taken.set()
            if not self._finished:
                self._urgent = trio.Event()
                if self._progress is None:
                    self._news = trio.Event()
            return {"part": part}
        if self._finished:
            return None
        progress, self._progress = self._progress, None
        self._news = trio.Event()
        return {"progress": progress}


def _listen(path: Path) -> trio.SocketListener:
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(plain.fileno(), PRIVATE_FILE_MODE)  # before it has a name
        with short_address(path) as address:
            plain.bind(address)
        plain.listen(BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(plain))
    except OSError as error:
        plain.close()
        raise UsageError(f"cannot make the control socket {path}: {error.strerror}") from error


def _peer_of(stream: trio.SocketStream) -> Peer:
    """unix(7), SO_PEERCRED: as it was when the peer connected."""
    packed = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(packed))


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """Up to a newline. Raises :class:`MalformedMessage` when there is none within the limit."""
    line = bytearray()
    with trio.fail_after(LINE_TIMEOUT_S):
        while not line.endswith(b"\n"):
            data = await stream.receive_some(_READ_BYTES)
            if not data or len(line) + len(data) > LINE_MAX_BYTES:
                raise MalformedMessage("the request ends early, or is too long")
            line += data
    return bytes(line)


async def _drain(stream: trio.SocketStream) -> None:
    """Take what a refused client may still be sending: closing a socket with something unread in it would
    reset the connection, and the client would not see why it was refused."""
    await stream.send_eof()
    left = DRAIN_MAX_BYTES
    with trio.fail_after(LINE_TIMEOUT_S):
        while left > 0 and (data := await stream.receive_some(_READ_BYTES)):
            left -= len(data)


async def _send(stream: trio.SocketStream, message: Json) -> None:
    with trio.fail_after(LINE_TIMEOUT_S):
        await stream.send_all(encode(message, ANSWER_MAX_BYTES))
