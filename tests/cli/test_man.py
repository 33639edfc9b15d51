"""The man page is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from s3blobfs.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


def test_man_page_is_current() -> None:
    written = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_man"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    page = ROOT / "docs" / "s3blobfs.1"
    assert page.read_text() == written, "run: scripts/build_man > docs/s3blobfs.1"
    for name in COMMANDS:
        assert f"\n.SS s3blobfs {name}" in written
