"""The commands of docs/recovery.md, typed as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeBucket
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server

PAGE = Path(__file__).parents[2] / "docs" / "recovery.md"
COMMAND_TIMEOUT_S = 120


@pytest.fixture
def lost(tmp_path: Path, weed_server: S3Server, make_bucket: MakeBucket) -> Iterator[MountedVolume]:
    """A volume with one file, not mounted."""
    volume = MountedVolume(weed_server, make_bucket(weed_server), tmp_path / "lost")
    try:
        volume.mkfs()
        volume.mount()
        (volume.mountpoint / "file").write_text("content")
        volume.umount()
        yield volume
    finally:
        volume.abandon()


def test_the_commands_work_as_written(lost: MountedVolume, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for directory in ("new/mnt", "old", "last"):
        (tmp_path / directory).mkdir(parents=True)
    environment = {
        **lost.environment,
        "PATH": f"{Path(sys.executable).parent}:{lost.environment['PATH']}",
        "URI": lost.uri,
        "S3": f"--endpoint-url {lost.server.endpoint_url}",
        "TIME": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60)),
    }
    new = MountedVolume(lost.server, lost.bucket, tmp_path / "new")
    try:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
    finally:
        new.abandon()
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "index_copy" in result.stdout and "1 files, 7 B" in result.stdout
    document = json.loads(result.stdout[result.stdout.index("{") : result.stdout.rindex("}") + 1])
    assert document["complete"] and len(document["set_aside"]) == 2
    assert all((tmp_path / name / "index.db").is_file() for name in ("new", "old", "last"))
