"""The demo's S3 server is for this user of this machine."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from s3blobfs.demo import server
from s3blobfs.demo.server import DemoServer


class _Started(Exception):
    """In place of a process."""


def test_it_listens_on_loopback_with_random_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def start(command: list[str], **_: object) -> None:
        commands.append(command)
        raise _Started

    monkeypatch.setattr(server, "find_weed", lambda: "weed")
    monkeypatch.setattr(subprocess, "Popen", start)
    credentials = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir(mode=0o700)
        with pytest.raises(_Started):
            DemoServer(tmp_path / name).start(keep_ports=False)
        for path in ("state.json", "s3.json", "aws/credentials"):
            private = tmp_path / name / path
            assert stat.S_IMODE(private.stat().st_mode) == 0o600, private
        credentials.add((tmp_path / name / "s3.json").read_text())
    assert len(credentials) == 2
    for command in commands:
        assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1"} <= set(command)
        assert any(each.startswith("-s3.config=") for each in command)
