"""``scripts/bench_requests`` works, and leaves nothing mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_requests"
TIMEOUT_S = 110


def test_every_server_is_measured(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, "--rounds=1", "--seconds=0.01"],
        env={**os.environ, "TMPDIR": os.fspath(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    for row in ("stat", "fstat", "O_CREAT", "unlink", "listing"):
        assert row in result.stdout
    for server in ("empty, pyfuse3 alone", "s3blobfs, pyfuse3 alone"):
        assert result.stdout.count(server) == 5
    assert list(tmp_path.glob("s3blobfs-*")) == []
    assert os.fspath(tmp_path) not in Path("/proc/mounts").read_text()
