"""``scripts/bench`` works, and a mounted volume keeps to its budget of requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchlib.content import PIECE_BYTES, large_content
from benchlib.volume import MODES, CommandFailed, Volume

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
TIMEOUT_S = 110


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of one quick run with a digest volume: its results by row."""
    directory = tmp_path_factory.mktemp("bench")
    report = directory / "report.json"
    subprocess.run(
        [sys.executable, BENCH, "--quick", "--modes=digest", f"--directory={directory}", f"--json={report}"],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert [path.name for path in directory.iterdir()] == [report.name]
    measured = json.loads(report.read_text())["results"]
    assert {result["target"] for result in measured} >= {"digest", "S3"}
    return {result["row"]: result for result in measured if result["target"] == "digest"}


def test_every_row_has_what_it_took(results: dict[str, dict[str, Any]]) -> None:
    for row in (
        "large-write",
        "large-read-cold",
        "small-write-threads",
        "list-cold",
        "rename-tree",
        "unlink",
    ):
        result = results[row]
        assert 0 < result["slowest"] <= result["rate"] <= result["fastest"]
        assert result["peak_memory_bytes"] > 0
        assert result["cpu_s"] >= 0


@pytest.mark.parametrize(
    "row",
    [
        *("large-read-local", "large-read-kernel", "random-read-local"),
        *("small-read-local", "small-read-local-threads", "small-read-kernel"),
        *("list-cold", "list-hot", "mkdir", "rename", "rmdir", "rename-tree"),
        *("copy-direct", "copy-small-direct", "unlink"),
    ],
)
def test_what_is_local_costs_no_request(results: dict[str, dict[str, Any]], row: str) -> None:
    assert results[row]["requests"] == {}


@pytest.mark.parametrize("row", ["small-write", "small-write-threads"])
def test_a_small_file_costs_a_head_and_a_put(results: dict[str, dict[str, Any]], row: str) -> None:
    requests = results[row]["requests"]
    assert requests["head"] == requests["put"] > 0
    assert requests.keys() == {"head", "put"}


@pytest.mark.parametrize("row", ["small-read-cold", "small-read-cold-threads"])
def test_a_small_file_that_is_not_cached_costs_a_get(results: dict[str, dict[str, Any]], row: str) -> None:
    assert results[row]["requests"] == {"get": results["small-write"]["requests"]["put"]}


def test_the_same_content_again_costs_a_head(results: dict[str, dict[str, Any]]) -> None:
    assert results["large-write-again"]["requests"] == {"head": 1}


def test_a_piece_of_a_large_file_costs_one_get(results: dict[str, dict[str, Any]]) -> None:
    assert results["middle-read-cold"]["requests"] == {"get": 1}


class Filling(Volume):
    """Not mounted: it says that some files are on their way into the cache, each time one less."""

    def __init__(self, directory: Path, files: int) -> None:
        super().__init__(MODES["digest"], directory, "http://127.0.0.1:1")
        self.files = files

    def sync(self) -> None:
        return

    def _status(self) -> dict[str, Any]:
        self.files -= 1
        return {"tier": {"filling_files": self.files}}


def test_something_is_left_to_be_done_until_what_was_read_is_in_the_cache(tmp_path: Path) -> None:
    volume = Filling(tmp_path, files=3)
    volume.settle()
    assert volume.files == 0


def test_what_never_gets_into_the_cache_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchlib.volume._COMMAND_TIMEOUT_S", 0.0)
    with pytest.raises(CommandFailed, match="digest: files do not get into the cache"):
        Filling(tmp_path, files=-1).settle()


def test_an_unknown_row_is_refused() -> None:
    done = subprocess.run([sys.executable, BENCH, "--rows=nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown: 'nothing'" in done.stderr


@pytest.mark.parametrize("size_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2**28 + 1])
def test_a_content_may_have_any_size(size_bytes: int) -> None:
    assert len(large_content("seed", size_bytes)) == size_bytes
