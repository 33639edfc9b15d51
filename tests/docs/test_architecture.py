"""The diagrams of docs/architecture.md show what the program does now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_diagrams"


def test_the_diagrams_are_those_the_tracer_draws() -> None:
    result = subprocess.run(
        [sys.executable, os.fspath(SCRIPT), "--check"], capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, f"run scripts/build_diagrams\n{result.stderr}"
