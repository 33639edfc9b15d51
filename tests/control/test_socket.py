"""The control socket: server and client together, and what each does when the other misbehaves."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from s3blobfs.control import server as server_module
from s3blobfs.control.client import Conversation, MountedVolume
from s3blobfs.control.messages import LINE_MAX_BYTES, ControlError, Json, MalformedMessage
from s3blobfs.control.requests import UnmountWatch
from s3blobfs.control.server import Call, ControlServer
from s3blobfs.errors import FilesystemError, UsageError

DEADLINE_S = 20.0

NOTHING_LEFT = {"files_left": 0, "bytes_left": 0}


class Volume:
    """A server with handlers for tests, and a client of it in a worker thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = UnmountWatch()
        self.calls: list[Call] = []
        self.cancelled = trio.Event()
        self.begun = trio.Event()
        self.server = ControlServer(
            path,
            {
                "echo": self.echo,
                "progress": self.progress,
                "list": self.list,
                "refuse": self.refuse,
                "fail": self.fail,
                "hang": self.hang,
                "unmount": self.watch.wait,
            },
        )
        self.client = MountedVolume(Path("/mnt"), path)

    async def echo(self, call: Call) -> Json:
        self.calls.append(call)
        return call.arguments

    async def progress(self, call: Call) -> Json:
        for left in (3, 2, 1):
            call.progress({"left": left})
            await trio.sleep(2 * server_module.PROGRESS_INTERVAL_S)
        return {"done": True}

    async def list(self, call: Call) -> Json:
        """A hundred parts of a kilobyte, with reports between them."""
        for at in range(100):
            call.progress({"at": at})
            await call.part("odd" if at % 2 else "even", [{"at": at, "text": "x" * 1000}])
        return {"done": True, "even": []}

    async def refuse(self, _: Call) -> Json:
        raise FilesystemError(17, "there")

    async def fail(self, _: Call) -> Json:
        raise ValueError("a mistake of ours")

    async def hang(self, call: Call) -> Json:
        self.begun.set()
        try:
            while True:
                call.progress({"left": 1})
                await trio.sleep(0.01)
        finally:
            self.cancelled.set()

    async def call(self, request: str, **arguments: object) -> Json:
        return await trio.to_thread.run_sync(lambda: self.client.call(request, **arguments))  # type: ignore[arg-type]

    async def raw(self, data: bytes) -> Json:
        """What is answered to ``data``, and nothing after it."""
        with trio.fail_after(DEADLINE_S):
            stream = await trio.open_unix_socket(str(self.path))
            async with stream:
                await stream.send_all(data)
                await stream.send_eof()
                answer = b"".join([part async for part in stream])
        message: Json = json.loads(answer)
        return message


@pytest.fixture
async def volume(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Volume]:
    volume = Volume(tmp_path / "index.db.sock")
    with trio.fail_after(DEADLINE_S):
        await nursery.start(volume.server.run)
        yield volume
        volume.server.stop_listening()
        assert not volume.path.exists()


async def test_answer(volume: Volume) -> None:
    names = {"name": "ä\n\x00", "bytes": os.fsdecode(b"\xff"), "n": 2**60}
    assert await volume.call("echo", **names) == {"request": "echo", **names}
    (call,) = volume.calls
    assert (call.peer.pid, call.peer.uid, call.peer.gid) == (os.getpid(), os.geteuid(), os.getegid())


async def test_socket_is_private(volume: Volume) -> None:
    assert stat.S_IMODE(volume.path.stat().st_mode) == 0o600


async def test_progress(volume: Volume) -> None:
    seen: list[Json] = []
    result = await trio.to_thread.run_sync(partial(volume.client.call, "progress", progress=seen.append))
    assert result == {"done": True}
    assert seen == [{"left": 3}, {"left": 2}, {"left": 1}]


async def test_long_lists_are_put_together(volume: Volume) -> None:
    result = await volume.call("list")
    assert result["done"] and [entry["at"] for entry in result["even"]] == list(range(0, 100, 2))
    assert [entry["at"] for entry in result["odd"]] == list(range(1, 100, 2))


async def test_refusal(volume: Volume) -> None:
    with pytest.raises(ControlError, match="File exists: there"):
        await volume.call("refuse")


@pytest.mark.expected_log("the request 'fail' failed")
async def test_mistake_in_a_request_does_not_end_the_mount(volume: Volume) -> None:
    with pytest.raises(ControlError, match="internal error; the mount's log has the details"):
        await volume.call("fail")
    assert await volume.call("echo") == {"request": "echo"}


async def test_unknown_request(volume: Volume) -> None:
    with pytest.raises(ControlError, match="no such request: 'format'"):
        await volume.call("format")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\n", b"[]\n", b'"status"\n', b'{"request": 1}\n', b"{}\n"])
async def test_malformed_requests(volume: Volume, data: bytes) -> None:
    assert (await volume.raw(data)).keys() == {"error"}
    assert await volume.call("echo") == {"request": "echo"}


async def test_line_that_is_too_long(volume: Volume) -> None:
    answer = await volume.raw(b'{"request": "' + b"x" * (LINE_MAX_BYTES - 100))
    assert answer["error"]["message"] == "the request ends early, or is too long"
    with pytest.raises(MalformedMessage, match="at most"):
        await volume.call("echo", text="x" * LINE_MAX_BYTES)


async def test_other_users_are_refused(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_peer_of", lambda _: server_module.Peer(1, 12345, 12345))
    answer = await volume.raw(b'{"request": "echo"}\n')
    assert answer == {"error": {"message": "the volume is mounted by another user"}}


async def test_silent_client_is_given_up(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINE_TIMEOUT_S", 0.05)
    async with await trio.open_unix_socket(str(volume.path)) as stream:
        assert await stream.receive_some() == b""


async def test_client_that_goes_away_ends_its_request(volume: Volume) -> None:
    conversation = await trio.to_thread.run_sync(volume.client.begin, "hang")
    await volume.begun.wait()
    conversation.__exit__()
    await volume.cancelled.wait()


async def test_path_longer_than_an_address(tmp_path: Path, nursery: trio.Nursery) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    volume = Volume(directory / "index.db.sock")
    await nursery.start(volume.server.run)
    assert await volume.call("echo") == {"request": "echo"}
    volume.server.stop_listening()


async def test_dead_socket_is_replaced(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    volume = Volume(path)
    await nursery.start(volume.server.run)
    assert await volume.call("echo") == {"request": "echo"}
    volume.server.stop_listening()


async def test_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make the control socket"):
        await ControlServer(tmp_path / "missing" / "sock", {}).run()


# --- unmounting ---------------------------------------------------------------------------------------


def _begin_unmount(volume: Volume) -> tuple[Conversation, Json]:
    conversation = volume.client.begin("unmount")
    return conversation, conversation.wait_for_progress()


@pytest.mark.parametrize("error", [None, "S3 is gone"])
async def test_who_waits_for_the_unmount_is_answered_last(volume: Volume, error: str | None) -> None:
    conversation, first = await trio.to_thread.run_sync(_begin_unmount, volume)
    assert first == {"state": "mounted"}
    seen: list[Json] = []
    outcome: list[object] = []

    def wait() -> None:
        with conversation:
            try:
                outcome.append(conversation.wait(seen.append))
            except ControlError as refused:
                outcome.append(str(refused))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, wait)
        volume.watch.report(2, 100, "slow")
        await trio.sleep(2 * server_module.PROGRESS_INTERVAL_S)
        volume.server.stop_listening()
        volume.watch.end(error)
        volume.watch.end("too late")
    assert {"state": "storing", "files_left": 2, "bytes_left": 100, "last_error": "slow"} in seen
    assert outcome == [NOTHING_LEFT if error is None else error]


# --- the client alone ---------------------------------------------------------------------------------


def answering(path: Path, answer: bytes) -> Callable[[], None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(LINE_MAX_BYTES)
            connection.sendall(answer)

    return serve


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the mount's process ended before it answered"),
        (b'{"result"', "the mount's process ended before it answered"),
        (b"nonsense\n", "not a control message"),
        (b'{"surprise": 1}\n', "not an answer"),
    ],
)
async def test_bad_answers(tmp_path: Path, nursery: trio.Nursery, answer: bytes, message: str) -> None:
    nursery.start_soon(trio.to_thread.run_sync, answering(tmp_path / "sock", answer))
    client = MountedVolume(Path("/mnt"), tmp_path / "sock")
    with pytest.raises(ControlError, match=message):
        await trio.to_thread.run_sync(client.call, "status")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="the process behind /mnt does not listen"):
        MountedVolume(Path("/mnt"), tmp_path / "sock").call("status")


def test_path_that_is_on_no_volume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is not on a mounted s3blobfs volume"):
        MountedVolume.of(tmp_path)
    with pytest.raises(UsageError, match="No such file or directory"):
        MountedVolume.of(tmp_path / "missing")


@pytest.mark.parametrize("where", ["exists", "is_mount"])
def test_mount_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, where, closed)
    with pytest.raises(UsageError, match="if it is another user's mount, become that user"):
        MountedVolume.of(tmp_path)
