"""Each diagram, on a mounted filesystem, against two S3 servers, and against what these really received."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import MakeBucket
from tests.diagrams import scenario
from tests.diagrams.normalise import normalised
from tests.diagrams.received import Request, drawn, received
from tests.diagrams.scenario import CLIENT, Scenario
from tests.support.mounted import MountedVolume, mounted
from tests.support.proxy import RecordingProxy
from tests.support.servers import S3Server

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Diagram:
    fixture: str
    perform: Callable[[Scenario], str]
    mode: Sequence[str]
    by_cp: bool = False
    """Direct copies are made by cp(1): it looks the same."""

    @property
    def name(self) -> str:
        return f"{self.fixture}{'-by-cp' if self.by_cp else ''}"


DIAGRAMS = [
    Diagram("versioned-cached", scenario.versioned, ["--mode", "versioned", "--cache"]),
    Diagram("versioned-uncached", scenario.versioned, ["--mode", "versioned", "--no-cache"]),
    Diagram("digest-cached", scenario.digest, ["--mode", "digest", "--cache"]),
    Diagram("digest-uncached", scenario.digest, ["--mode", "digest", "--no-cache"]),
    Diagram(
        "versioned-cached-direct-copy", scenario.versioned_direct_copy, ["--mode", "versioned", "--cache"]
    ),
]
DIAGRAMS += [replace(each, by_cp=True) for each in DIAGRAMS if each.perform is not scenario.versioned]


@pytest.fixture(params=["moto_server", "weed_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=DIAGRAMS, ids=lambda diagram: diagram.name)
def diagram(request: pytest.FixtureRequest) -> Diagram:
    found: Diagram = request.param
    return found


@pytest.fixture
def proxy(server: S3Server) -> Iterator[RecordingProxy]:
    with RecordingProxy(server.endpoint_url) as recording:
        yield recording


@pytest.fixture
def volume(
    server: S3Server, proxy: RecordingProxy, diagram: Diagram, make_bucket: MakeBucket, tmp_path: Path
) -> Iterator[MountedVolume]:
    """A volume with a second store of the same kind, bound at ``other/``."""
    bucket = make_bucket(server, versioning=diagram.mode[1] == "versioned")
    made = MountedVolume(
        server,
        bucket,
        tmp_path,
        mkfs_options=diagram.mode,
        mount_options=["--trace-client", CLIENT],
        endpoint_url=proxy.url,
    )
    with mounted(made):
        (made.mountpoint / "other").mkdir()
        other = made.mountpoint / "other"
        made.command(
            "store", "add", made.mountpoint, "other", f"{made.uri}/other/", *diagram.mode, "--at", other
        )
        yield made


def test_the_trace_is_the_diagram_and_what_the_server_received(
    diagram: Diagram, volume: MountedVolume, proxy: RecordingProxy, tmp_path: Path
) -> None:
    proxy.clear()
    trace = diagram.perform(Scenario(volume, tmp_path / "trace.puml", by_cp=diagram.by_cp))
    arrived = received(volume.bucket, list(proxy.requests))

    expected = (FIXTURES / f"{diagram.fixture}.puml").read_text().splitlines()
    assert normalised(trace) == expected

    # The last question of the delete scenario is drawn by its answer alone, and GETs of a whole object are
    # not always asked for as a range.
    asked = [request for request in arrived if request != _last_look(trace)]
    assert [_comparable(request) for request in asked] == [_comparable(request) for request in drawn(trace)]


def _last_look(trace: str) -> Request | None:
    """The HEAD behind ``<-- S3: missing`` after a delete."""
    lines = trace.splitlines()
    if not lines[-2].lstrip().startswith("hnote") or " <-- S3: missing" not in lines[-3]:
        return None
    key, _, version = lines[-2].partition("hnote right: ")[2].partition(" v=")
    return Request("HEAD", key, version)


def _comparable(request: Request) -> Request:
    return replace(request, size_bytes=None) if request.method == "GET" else request


def test_after_the_delete_the_first_version_is_still_there(
    weed_server: S3Server, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    bucket = make_bucket(weed_server, versioning=True)
    volume = MountedVolume(weed_server, bucket, tmp_path, mkfs_options=["--mode", "versioned"])
    with mounted(volume):
        steps = Scenario(volume, tmp_path / "trace.puml")
        steps.start()
        steps.write("file", b"foo")
        first = steps.blob_name("file")
        steps.write("file", b"bar")
        os.unlink(volume.mountpoint / "file")
        steps.wait_for("deleteVersion")
        shown = volume.command("trace", volume.mountpoint, "blob", first).stdout
        assert "in S3 (3 B)" in shown
