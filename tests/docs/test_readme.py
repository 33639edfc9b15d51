"""The README's commands, typed as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
COMMAND_TIMEOUT_S = 120


def blocks(text: str) -> list[str]:
    """The fenced shell blocks."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home directory with the demo running in it, which is what scripts/run leaves."""
    directory = tmp_path / "home"
    directory.mkdir()
    run(directory, "s3blobfs demo")
    try:
        yield directory
    finally:
        run(directory, "s3blobfs demo --stop")


def run(home: Path, script: str) -> str:
    """In bash, every command of which must succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "XDG_"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**kept, "HOME": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_tour_works_as_written(home: Path) -> None:
    tour, _ = blocks(README.read_text())
    assert tour.startswith("cd ~/.local/share/s3blobfs/demo/mnt\n")
    run(home, tour)
    mount = home / ".local/share/s3blobfs/demo/mnt"
    assert (mount / "a").read_text() == (mount / "d/b").read_text() == "hello\n"
    assert (mount / "versioned/a").read_text() == "hello\n"


def test_the_commands_for_ones_own_bucket_have_the_options_they_use() -> None:
    _, own = blocks(README.read_text())
    for command in re.findall(r"^s3blobfs (\w+).*", own, re.MULTILINE):
        help_text = run(Path.home(), f"s3blobfs {command} --help")
        line = next(line for line in own.splitlines() if line.startswith(f"s3blobfs {command}"))
        for option in re.findall(r"--[a-z][a-z-]+", line):
            assert option in help_text, (command, option)


def test_every_document_it_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).is_file(), target
