"""Traces in files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from s3blobfs.control.tracefile import TraceRecorder
from s3blobfs.errors import UsageError
from s3blobfs.trace import Arrow, Local, Party, Tracer


@pytest.fixture
def tracer() -> Tracer:
    return Tracer("Nuxeo")


def test_diagram(tmp_path: Path, tracer: Tracer) -> None:
    path = tmp_path / "a.puml"
    path.write_text("what was there before")
    recorder = TraceRecorder(tracer, Local.CACHE)
    recorder.start(path)
    tracer.section("Read")
    tracer.step(Party.CLIENT, Arrow.FROM, Local.CACHE, "read 3 bytes", "id1@v1")
    before_the_end = path.read_text()
    assert recorder.path == path
    assert recorder.stop() == path
    assert recorder.stop() is None
    tracer.section("Not drawn")
    assert path.read_text() == before_the_end + "@enduml\n"
    assert path.read_text().splitlines() == [
        "@startuml",
        "participant Nuxeo order 1",
        "participant Cache order 2",
        "participant S3 order 3",
        "== Read ==",
        "Nuxeo <- Cache: read 3 bytes",
        "                                hnote right: id1@v1",
        "@enduml",
    ]


def test_new_file_is_private(tmp_path: Path, tracer: Tracer) -> None:
    recorder = TraceRecorder(tracer, Local.TMP)
    recorder.start(tmp_path / "new")
    recorder.stop()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_one_at_a_time(tmp_path: Path, tracer: Tracer) -> None:
    recorder = TraceRecorder(tracer, Local.CACHE)
    recorder.start(tmp_path / "a")
    with pytest.raises(UsageError, match="a trace is being written to"):
        recorder.start(tmp_path / "b")
    recorder.stop()
    recorder.start(tmp_path / "b")
    recorder.stop()


def test_file_that_cannot_be_written(tmp_path: Path, tracer: Tracer) -> None:
    recorder = TraceRecorder(tracer, Local.CACHE)
    with pytest.raises(UsageError, match="cannot write the trace"):
        recorder.start(tmp_path / "missing" / "a")
    assert not tracer.drawing


@pytest.mark.expected_log("the trace /dev/full ends here: .*No space left on device")
@pytest.mark.expected_log("the trace .* is not whole")
def test_full_disk_ends_the_trace_and_nothing_else(tracer: Tracer) -> None:
    recorder = TraceRecorder(tracer, Local.CACHE)
    recorder.start(Path("/dev/full"))
    tracer.section("Write")
    tracer.section("Read")
    recorder.stop()
