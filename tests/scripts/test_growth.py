"""``scripts/bench growth``: the arithmetic, the report, and a small run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchlib.grid import as_markdown
from benchlib.growth import GROWING, Growth, Per, alike, curve_of, grows
from benchlib.growthcommand import growth
from benchlib.growthreport import as_grids, as_json
from benchlib.measure import Sample, Unit, measure
from benchlib.place import QUICK, Place
from benchlib.results import Ratio, Results
from benchlib.rows import ROWS
from benchlib.targets import PlainDirectory
from benchlib.usage import cpu_s
from s3blobfs.config import MIB
from s3blobfs.volume.mountpoint import mount_entries

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
TIMEOUT_S = 110
FACTORS = (1, 3, 10)
SMALL = "small-write"


def sample(amount: int, seconds: float, processor_s: float) -> Sample:
    return Sample(
        seconds=seconds,
        settled_s=seconds,
        rate=amount / seconds,
        cpu_s=processor_s,
        peak_memory_bytes=(90 + amount) * MIB,
        requests={"head": 1, "put": amount},
    )


def results(row: str, seconds: float, processor_s: float) -> Results:
    """Three rounds, the first of which is slow at factor 1. ``seconds`` and ``processor_s`` are what a unit
    costs at factor 10, where others take 1 s and 0.1 s."""
    found = Results({row: ROWS[row].unit})
    for number in range(3):
        for factor in FACTORS:
            amount = 20 * factor
            unit_s, unit_processor_s = (seconds, processor_s) if factor == 10 else (1.0, 0.1)
            if number == 0 and factor == 1:
                unit_s = 100.0
            found.add(row, str(factor), number, sample(amount, amount * unit_s, amount * unit_processor_s))
    return found


class TestArithmetic:
    def test_costs_are_for_one_unit(self) -> None:
        curve = curve_of(results(SMALL, 1.2, 0.2), "digest", SMALL, FACTORS)
        assert curve.per is Per.FILE
        assert [step.factor for step in curve.steps] == list(FACTORS)
        assert [step.unit_s for step in curve.steps] == pytest.approx([1.0, 1.0, 1.2])
        assert [step.unit_processor_s for step in curve.steps] == pytest.approx([0.1, 0.1, 0.2])
        assert [step.peak_memory_bytes // MIB for step in curve.steps] == [110, 150, 290]

    def test_rounds_are_compared_one_by_one(self) -> None:
        *_, last = curve_of(results(SMALL, 1.2, 0.2), "digest", SMALL, FACTORS).steps
        assert last.time.median == pytest.approx(1.2)
        assert last.time.lowest == pytest.approx(0.012)
        assert last.processor is not None and last.processor.median == pytest.approx(2.0)

    def test_requests_are_for_one_unit(self) -> None:
        steps = curve_of(results(SMALL, 1.0, 0.1), "digest", SMALL, FACTORS).steps
        assert [step.unit_requests["put"] for step in steps] == pytest.approx([1, 1, 1])
        assert [step.unit_requests["head"] for step in steps] == pytest.approx([1 / 20, 1 / 60, 1 / 200])

    def test_what_took_no_processor_time_is_not_compared(self) -> None:
        found = Results({SMALL: ROWS[SMALL].unit})
        for factor in FACTORS:
            found.add(SMALL, str(factor), 0, sample(factor, 1.0, factor - 1))
        *_, last = curve_of(found, "digest", SMALL, FACTORS).steps
        assert last.processor is None
        assert not grows(last.processor)

    def test_half_as_much_again_is_the_limit(self) -> None:
        assert not grows(Ratio(1.5, 1.0, 9.0))
        assert grows(Ratio(1.51, 1.0, 9.0))


class TestReport:
    def growth(self) -> Growth:
        measured = (("digest", SMALL, 1.2, 0.2), ("digest", "append", 2.0, 0.1), ("versioned", SMALL, 1, 0.1))
        curves = [
            curve_of(results(row, seconds, processor_s), mode, row, FACTORS)
            for mode, row, seconds, processor_s in measured
        ]
        return Growth(replace(QUICK, small_files=1000), 3, curves)

    def test_a_row_is_a_line_and_a_factor_a_column(self) -> None:
        lines = as_markdown(as_grids(self.growth())).splitlines()
        assert "digest, time for one unit, relative to 6 MiB and 1,000 files:" in lines
        assert "versioned, requests to S3 for one unit:" in lines
        assert "| row | unit | x1 | x3 | x10 | rounds at x10 | > 1.5 |" in lines
        assert "| write small files | file | 1 | 1 | 1.2 | 0.012-1.2 |  |" in lines
        assert "| write small files | file | 110 | 150 | 290 |" in lines
        assert (
            "| write small files | file | 0.05 HEAD, 1 PUT | 0.017 HEAD, 1 PUT | 0.005 HEAD, 1 PUT |" in lines
        )

    def test_what_grows_is_marked_where_it_does(self) -> None:
        lines = as_markdown(as_grids(self.growth())).splitlines()
        assert [line for line in lines if "grows" in line] == [
            "| append 4 KiB to a file of 1 MiB, and close | operation | 1 | 1 | 2 | 0.02-2 | grows |",
            "| write small files | file | 1 | 1 | 2 |  | grows |",
        ]

    def test_as_json(self) -> None:
        document = json.loads(json.dumps(as_json(self.growth())))
        assert document["scale"]["small_files"] == 1000
        first, second, third = document["curves"]
        assert (first["mode"], first["row"], first["per"]) == ("digest", SMALL, "file")
        assert (first["time_grows"], first["processor_grows"]) == (False, True)
        assert (second["time_grows"], second["processor_grows"]) == (True, False)
        assert (third["time_grows"], third["processor_grows"]) == (False, False)
        assert first["steps"][2]["time"]["median"] == pytest.approx(1.2)


def measured(place: Place, name: str) -> Sample:
    row = alike(ROWS[name], Per.OPERATION)
    assert row.unit is Unit.OPERATIONS
    return measure(place.target, row.unit, partial(row.work, place))


class TestRows:
    def test_all_rows_have_something_to_be_divided_by(self) -> None:
        assert GROWING.keys() == ROWS.keys()

    def test_what_does_as_much_everywhere_is_done_beside_all_files(self, tmp_path: Path) -> None:
        place = Place(PlainDirectory(tmp_path), QUICK, 0)
        found = measure(
            place.target,
            Unit.OPERATIONS,
            lambda watch: alike(ROWS["mkdir"], Per.OPERATION).work(place, watch),
        )
        assert found.amount == pytest.approx(QUICK.directories)
        assert place.path("large").stat().st_size == QUICK.large_bytes
        assert len(list(place.path("small").iterdir())) == QUICK.small_files

    def test_a_copy_is_one_operation_however_large(self, tmp_path: Path) -> None:
        place = Place(PlainDirectory(tmp_path), QUICK, 0)
        row = alike(ROWS["copy"], Per.OPERATION)
        assert row.unit is Unit.OPERATIONS
        assert measure(place.target, row.unit, lambda watch: row.work(place, watch)).amount == pytest.approx(
            1
        )

    def test_what_grows_with_its_files_stays_as_it_is(self) -> None:
        assert alike(ROWS[SMALL], Per.FILE) is ROWS[SMALL]


class TestProcessorTime:
    def test_that_of_another_process_is_what_it_says_itself(self) -> None:
        """Which is more exact than the ticks of proc_pid_stat(5)."""
        with process("pass") as started:
            before, _ = said(started)
            found = cpu_s(started.pid)
            after, _ = said(started)
        assert before <= found <= after

    def test_children_that_were_waited_for_count(self) -> None:
        work = "subprocess.run([sys.executable, '-c', 'sum(range(3_000_000))'], check=True)"
        with process(work) as started:
            before, of_child = said(started)
            found = cpu_s(started.pid)
            after, _ = said(started)
        assert of_child > 0
        assert before + of_child <= found <= after + of_child

    def test_a_process_that_has_ended_has_none(self) -> None:
        with process("pass") as started:
            pass
        with pytest.raises(OSError, match=str(started.pid)):
            cpu_s(started.pid)


@contextmanager
def process(work: str) -> Iterator[subprocess.Popen[str]]:
    """That does this, and then says what it has used whenever it is asked."""
    command = f"""
import os, subprocess, sys, time
{work}
print(flush=True)
for _ in sys.stdin:
    times = os.times()
    print(time.process_time(), times.children_user + times.children_system, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        answer(started)
        yield started
        assert started.stdin is not None
        started.stdin.close()


def answer(started: subprocess.Popen[str]) -> list[float]:
    assert started.stdout is not None
    return [float(word) for word in started.stdout.readline().split()]


def said(started: subprocess.Popen[str]) -> tuple[float, float]:
    """Seconds of its own, and of its children."""
    assert started.stdin is not None
    print(file=started.stdin, flush=True)
    own, of_children = answer(started)
    return own, of_children


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a quick run."""
    directory = tmp_path_factory.mktemp("growth")
    report, markdown = directory / "report.json", directory / "report.md"
    subprocess.run(
        [
            *(sys.executable, BENCH, "growth", "--quick", "--modes=digest,versioned-disk"),
            "--rows=unlink,small-write,small-read-cold,large-write,append,copy-direct",
            *(f"--directory={directory}", f"--json={report}", f"--markdown={markdown}"),
        ],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert {path.name for path in directory.iterdir()} == {"report.json", "report.md"}
    assert not [entry for entry in mount_entries() if entry.mountpoint.is_relative_to(directory)]
    assert markdown.read_text().count("\n|---|") == 2 * 4
    loaded: dict[str, Any] = json.loads(report.read_text())
    return loaded


class TestRun:
    def steps(self, document: dict[str, Any], row: str) -> list[dict[str, Any]]:
        [found] = [each for each in document["curves"] if (each["mode"], each["row"]) == ("digest", row)]
        return list(found["steps"])

    def test_all_rows_of_all_modes_are_measured_at_all_factors(self, document: dict[str, Any]) -> None:
        rows = ["large-write", "small-write", "small-read-cold", "append", "copy-direct", "unlink"]
        assert [(each["mode"], each["row"]) for each in document["curves"]] == [
            (mode, row) for mode in ("digest", "versioned-disk") for row in rows
        ]
        for curve in document["curves"]:
            assert [step["factor"] for step in curve["steps"]] == [1, 3]
            for step in curve["steps"]:
                assert step["unit_s"] > 0
                assert step["unit_processor_s"] > 0
                assert step["peak_memory_bytes"] > MIB
            assert curve["steps"][0]["time"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}

    def test_a_file_costs_as_many_requests_however_many_there_are(self, document: dict[str, Any]) -> None:
        for step in self.steps(document, "small-write"):
            assert step["unit_requests"] == pytest.approx({"head": 1, "put": 1})
        for step in self.steps(document, "small-read-cold"):
            assert step["unit_requests"] == pytest.approx({"get": 1})

    def test_an_operation_costs_as_many_requests_however_large_a_file_is(
        self, document: dict[str, Any]
    ) -> None:
        for step in self.steps(document, "append"):
            assert step["unit_requests"] == pytest.approx({"head": 1, "put": 1})
        for row in ("copy-direct", "unlink"):
            assert [step["unit_requests"] for step in self.steps(document, row)] == [{}, {}]

    def test_a_large_file_is_as_many_times_larger(self, document: dict[str, Any]) -> None:
        """One request asks whether the content is there, whatever its size."""
        small, large = self.steps(document, "large-write")
        assert small["unit_requests"]["head"] == pytest.approx(MIB / QUICK.large_bytes)
        assert large["unit_requests"]["head"] == pytest.approx(MIB / QUICK.large_bytes / 3)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--factors=2,3", "needed are 1 and at least one larger number"),
        ("--factors=1,1", "needed are 1 and at least one larger number"),
        ("--factors=0,1", "needed are 1 and at least one larger number"),
        ("--factors=1,x", "not whole numbers"),
        ("--rows=nothing", "unknown: 'nothing'"),
        ("--modes=,", "names no mode"),
        ("--files=0", "not in the range"),
        ("--size=much", "much"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, said: str) -> None:
    refused = CliRunner().invoke(growth, [option])
    assert refused.exit_code == 2
    assert said in refused.output
