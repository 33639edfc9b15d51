"""Processes that are found again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from s3blobfs.demo.process import ProcessId

STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
)
MEEK = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_this_process() -> None:
    process = ProcessId.of(os.getpid())
    assert process is not None and process.is_running


def test_no_process() -> None:
    assert ProcessId.of(2**22) is None


@pytest.mark.parametrize("child", [MEEK], indirect=True)
def test_ended_by_sigterm(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(child.pid)
    assert process is not None
    assert process.end(grace_s=20)
    # It is not reaped yet, and all the same it does not run.
    assert not process.is_running
    assert process.end(grace_s=20)


@pytest.mark.parametrize("child", [STUBBORN], indirect=True)
def test_ended_by_sigkill(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(child.pid)
    assert process is not None
    assert not process.end(grace_s=0.2)
    assert not process.is_running


@pytest.mark.parametrize("child", [MEEK], indirect=True)
@pytest.mark.parametrize("changes", [{"start_ticks": 1}, {"boot": "another"}])
def test_another_process_with_the_same_id_is_left_alone(
    child: subprocess.Popen[bytes], changes: dict[str, object]
) -> None:
    process = ProcessId.of(child.pid)
    assert process is not None
    former = replace(process, **changes)  # type: ignore[arg-type]
    assert not former.is_running
    assert former.end(grace_s=0)
    assert process.is_running
