"""A server whose port somebody else took between its choice and its use is started again with others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3blobfs.demo import server as demo_server
from s3blobfs.demo import weed
from s3blobfs.demo.server import DemoServer
from s3blobfs.errors import UsageError
from tests.support import servers

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind((weed.LOOPBACK, 0))
        other.listen()
        yield other.getsockname()[1]


def losing(taken: int, times: int) -> tuple[Callable[[int], list[int]], list[int]]:
    """``free_ports`` whose first ``times`` answers for several ports have one that is taken by then, and the
    list of how many were asked for."""
    asked: list[int] = []

    def free_ports(count: int) -> list[int]:
        ports = weed.free_ports(count)
        if count > 1:
            asked.append(count)
            if len(asked) <= times:
                ports[-1] = taken
        return ports

    return free_ports, asked


def test_the_demos_server_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    free_ports, asked = losing(taken, times=1)
    monkeypatch.setattr(demo_server, "free_ports", free_ports)
    directory = tmp_path / "demo"
    directory.mkdir(mode=0o700)
    server = DemoServer(directory)
    server.start(keep_ports=False)
    try:
        assert server.is_running
        assert len(asked) == 2
    finally:
        server.stop(grace_s=0)


def test_it_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    free_ports, asked = losing(taken, times=100)
    monkeypatch.setattr(demo_server, "free_ports", free_ports)
    monkeypatch.setattr(demo_server, "START_ATTEMPTS", 2)
    directory = tmp_path / "demo"
    directory.mkdir(mode=0o700)
    with pytest.raises(UsageError, match="ended at once"):
        DemoServer(directory).start(keep_ports=False)
    assert len(asked) == 2


def test_the_tests_own_server_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    free_ports, asked = losing(taken, times=1)
    monkeypatch.setattr(servers, "free_ports", free_ports)
    with servers.weed_server(tmp_path) as server:
        assert server.endpoint_url
        assert len(asked) == 2
