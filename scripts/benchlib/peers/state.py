"""What a run has measured so far, kept in a file so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchlib.measure import Sample
from benchlib.place import Scale
from benchlib.report import surroundings
from benchlib.results import Results
from benchlib.rows import ROWS
from s3blobfs.errors import UsageError

STORED, BEHIND = "stored", "behind"
"""The tables: until the data is in S3; until close(2) returns."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One system in one round of one table."""

    table: str
    system: str
    number: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that a system did not get through."""

    turn: Turn
    row: str
    reason: str


@dataclass(slots=True)
class State:
    scale: Scale
    latency_ms: float | None
    """Added to each request; ``None``: no proxy."""
    tables: dict[str, Results] = field(
        default_factory=lambda: {
            table: Results({row.name: row.unit for row in ROWS.values()}) for table in (STORED, BEHIND)
        }
    )
    done: list[Turn] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, turn: Turn, samples: Mapping[str, Sample], failures: list[Failure]) -> None:
        """A turn that has come to its end."""
        for row, sample in samples.items():
            self.tables[turn.table].add(row, turn.system, turn.number, sample)
        self.failures += failures
        self.done.append(turn)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        document = {
            **surroundings(),
            "scale": asdict(self.scale),
            "latency_ms": self.latency_ms,
            "results": [
                {"table": table, "row": row, "title": ROWS[row].title, "unit": ROWS[row].unit.value}
                | {"system": system, "spread": result.spread}
                | asdict(result)
                for table, results in self.tables.items()
                for row, by_system in results.samples.items()
                for system in by_system
                if (result := results.of(row, system)) is not None
            ],
            "failures": [asdict(failure) for failure in self.failures],
            "done": [asdict(turn) for turn in self.done],
            "samples": {table: _raw(results) for table, results in self.tables.items()},
        }
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(document, indent=1) + "\n")
        new.replace(path)

    @classmethod
    def load(cls, path: Path, scale: Scale, latency_ms: float | None) -> State:
        """Raises :class:`UsageError` when it was measured otherwise."""
        document: dict[str, Any] = json.loads(path.read_text())
        state = cls(Scale(**document["scale"]), document["latency_ms"])
        if (state.scale, state.latency_ms) != (scale, latency_ms):
            raise UsageError(f"{path} was measured with other sizes or another latency; leave out --resume")
        for table, rows in document["samples"].items():
            for row, by_system in rows.items():
                for system, samples in by_system.items():
                    for number, sample in samples.items():
                        state.tables[table].add(row, system, int(number), Sample(**sample))
        state.done = [Turn(**turn) for turn in document["done"]]
        state.failures = [
            Failure(Turn(**failure["turn"]), failure["row"], failure["reason"])
            for failure in document["failures"]
        ]
        return state


def _raw(results: Results) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """By row, system and number of the round."""
    return {
        row: {
            system: {number: asdict(sample) for number, sample in samples.items()}
            for system, samples in by_system.items()
        }
        for row, by_system in results.samples.items()
    }
