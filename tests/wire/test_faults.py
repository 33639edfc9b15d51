"""What goes wrong between the mount and S3: the caller gets what was written, or an error, in time.

Each test leaves its files; the volume is compared with its bucket after all of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3blobfs.control.client import MountedVolume as Control
from tests.fs.calls import pattern
from tests.support.bucket import objects_of
from tests.support.proxy import WireFault, error_answer
from tests.support.servers import S3Server
from tests.wire.kit import DEADLINE_S, Wire, deadline, in_background, wired

pytestmark = [
    pytest.mark.skipif(
        not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
    ),
    pytest.mark.timeout(180),
]

PROVOKED = [
    "is tried again",
    "stay in the bucket for now",
    r"(the content.s digest|the checksum of block \d+) is not the stored one",
]
SMALL_BYTES = 50_000
AWAY_S = 60.0
LARGE_BYTES = 9_000_000
"""Read in ranges."""

fresh = itertools.count(1)

Cold = Callable[[int], tuple[Path, bytes]]

SLOW_DOWN = WireFault(answer=error_answer(503, "SlowDown"))
INTERNAL = WireFault(answer=error_answer(500, "InternalError"))


@pytest.fixture(scope="module", params=["digest-uncached", "versioned-cached"])
def wire(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[Wire]:
    with wired(weed_server, request.param, PROVOKED) as made:
        yield made


@pytest.fixture(autouse=True)
def calm(wire: Wire) -> Iterator[None]:
    yield
    wire.proxy.clear()
    wire.sync()


def content(size_bytes: int = SMALL_BYTES) -> bytes:
    return pattern(size_bytes, next(fresh))


@contextmanager
def fails(expected: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == expected, caught.value


def blobs(wire: Wire) -> str:
    """The paths of requests about blobs."""
    return f"/{wire.volume.bucket}/[!.]*"


def is_stored(path: Path, data: bytes) -> None:
    assert path.read_bytes() == data
    assert os.getxattr(path, "user.s3blobfs.state") == b"stored"


# -- writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [INTERNAL, SLOW_DOWN, WireFault(reset_before=True), WireFault(reset_after=True), WireFault(delay_s=0.2)],
    ids=["500", "503", "reset-before", "reset-after", "latency"],
)
def test_a_close_succeeds_after_a_repetition(wire: Wire, fault: WireFault) -> None:
    """Twice the fault, then all is well, and there is one version of the file."""
    path, data = wire.root / f"f{next(fresh)}", content()
    for nth in (1, 2):
        wire.proxy.on(fault, method="PUT", path=blobs(wire), nth=nth)
    with deadline():
        wire.put(path, data)
    is_stored(path, data)
    key = os.getxattr(path, "user.s3blobfs.key").decode()
    assert len([version for version in objects_of(wire.volume) if version[0] == key]) == 1


@pytest.mark.parametrize("fault", [INTERNAL, SLOW_DOWN], ids=["500", "503"])
def test_a_close_is_told_of_what_does_not_end(wire: Wire, fault: WireFault) -> None:
    path, data = wire.root / f"f{next(fresh)}", content()
    wire.proxy.on(fault, method="PUT", path=blobs(wire))
    with deadline(), fails(errno.EIO):
        wire.put(path, data)
    assert path.read_bytes() == data
    wire.proxy.clear()
    with deadline(30):
        wire.sync()
    is_stored(path, data)


def test_credentials_that_are_refused_for_a_while(wire: Wire) -> None:
    path, data = wire.root / f"f{next(fresh)}", content()
    wire.proxy.on(WireFault(answer=error_answer(403, "ExpiredToken")), method="PUT", path=blobs(wire))
    with deadline(), fails(errno.EIO):
        wire.put(path, data)
    wire.proxy.clear()
    wire.another_file_goes_on(f"f{next(fresh)}")
    assert path.read_bytes() == data
    with deadline(40):
        wire.sync()
    is_stored(path, data)


def test_a_body_damaged_on_its_way_is_sent_again(wire: Wire) -> None:
    path, data = wire.root / f"f{next(fresh)}", content()
    wire.proxy.on(WireFault(flip_request_byte=30_000), method="PUT", path=blobs(wire), nth=1)
    with deadline():
        wire.put(path, data)
    is_stored(path, data)


def test_a_stalled_upload_is_given_up_and_holds_up_nobody(wire: Wire) -> None:
    path, data, stall = wire.root / f"f{next(fresh)}", content(), threading.Event()
    wire.proxy.on(WireFault(stall=stall), method="PUT", path=blobs(wire), nth=1)
    with in_background() as threads, deadline():
        writing = threads.submit(wire.put, path, data)
        wire.another_file_goes_on(f"f{next(fresh)}")
        writing.result(DEADLINE_S)
    stall.set()
    is_stored(path, data)


@pytest.mark.timeout(300)
def test_a_server_that_is_away_for_a_minute(wire: Wire) -> None:
    path, data = wire.root / f"f{next(fresh)}", content()
    stored = wire.root / f"f{next(fresh)}"
    wire.put(stored, data)
    wire.proxy.on(WireFault(reset_before=True))
    until = time.monotonic() + AWAY_S
    while time.monotonic() < until:
        with deadline(), fails(errno.EIO):
            wire.put(path, data + b"x")
    names = sorted(os.listdir(wire.root))  # names need no server
    assert path.name in names
    wire.proxy.clear()
    with deadline(40):  # the copy of the index has a delay of its own
        wire.sync()
    is_stored(path, data + b"x")
    assert stored.read_bytes() == data


def test_a_copy_that_fails_within_a_200(wire: Wire) -> None:
    """CopyObject may answer 200 and say in its body that it failed."""
    other = wire.root / "other"
    if not other.exists():
        other.mkdir()
        add = ("store", "add", wire.root, "other", f"{wire.volume.uri}/other", "--at", other)
        wire.volume.command(*add, *wire.volume.mkfs_options)
    path, data = wire.root / f"f{next(fresh)}", content()
    wire.put(path, data)
    said = error_answer(200, "InternalError")
    wire.proxy.on(WireFault(answer=said), method="PUT", path=f"/{wire.volume.bucket}/other/*", nth=1)
    with deadline():
        wire.volume.command("cp", path, other / path.name)
    is_stored(other / path.name, data)
    wire.written[other / path.name] = data


# -- reading -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cold(wire: Wire) -> Cold:
    """Hands out files, by their size, that are in S3 only."""
    made: dict[int, list[tuple[Path, bytes]]] = {SMALL_BYTES: [], LARGE_BYTES: []}
    for size_bytes, files in made.items():
        for _ in range(10):
            path, data = wire.root / f"f{next(fresh)}", content(size_bytes)
            wire.put(path, data)
            files.append((path, data))
    wire.forget()
    return lambda size_bytes: made[size_bytes].pop()


@pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize(
    "fault",
    [
        INTERNAL,
        SLOW_DOWN,
        WireFault(reset_before=True),
        WireFault(reset_after=True),
        WireFault(answer_bytes=20_000),
        WireFault(flip_answer_byte=33_333),
        WireFault(delay_s=0.2),
    ],
    ids=["500", "503", "reset-before", "reset-after", "half-a-body", "flipped", "latency"],
)
def test_a_read_succeeds_after_a_repetition(
    wire: Wire, cold: Cold, size_bytes: int, fault: WireFault
) -> None:
    """The first answer is bad: it is asked again, and never believed."""
    path, data = cold(size_bytes)
    wire.proxy.on(fault, method="GET", path=blobs(wire), nth=1)
    with deadline():
        assert path.read_bytes() == data


def test_a_read_of_answers_that_are_always_damaged(wire: Wire, cold: Cold) -> None:
    path, data = cold(SMALL_BYTES)
    wire.proxy.on(WireFault(flip_answer_byte=1), method="GET", path=blobs(wire))
    with deadline(), fails(errno.EIO):
        path.read_bytes()
    wire.proxy.clear()
    assert path.read_bytes() == data


def test_a_read_of_a_stalled_server_ends_in_time(wire: Wire, cold: Cold) -> None:
    (path, data), stall = cold(SMALL_BYTES), threading.Event()
    wire.proxy.on(WireFault(stall=stall), method="GET", path=blobs(wire))
    with in_background() as threads, deadline():
        reading = threads.submit(path.read_bytes)
        wire.another_file_goes_on(f"f{next(fresh)}")
        with fails(errno.EIO):
            reading.result(DEADLINE_S)
    stall.set()
    wire.proxy.clear()
    assert path.read_bytes() == data


def test_the_queue_is_bounded_and_says_how_full_it_is(wire: Wire) -> None:
    """With durability disk nobody waits for S3, so those who write are slowed in time."""
    wire.volume.remount("--durability=disk", "--queue-files=10", "--queue-size=2G", "--queue-age=2h")
    control = Control.of(wire.root)

    def uploads() -> dict[str, object]:
        found: dict[str, object] = control.call("status")["uploads"]
        return found

    assert (uploads()["writers"], uploads()["limit_files"]) == ("free", 10)
    assert (uploads()["limit_bytes"], uploads()["limit_age_s"]) == (2 * 2**30, 7200)
    wire.proxy.on(SLOW_DOWN, method="*", path=blobs(wire))
    for number in range(8):
        wire.put(wire.root / f"queued{number}", content())
    assert (uploads()["writers"], uploads()["files"]) == ("slowed", 8)
    wire.proxy.clear()
    wire.sync()
    assert (uploads()["writers"], uploads()["files"]) == ("free", 0)
    wire.volume.remount()
