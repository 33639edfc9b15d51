"""What a row is, and where rows are registered.

A row prepares, puts ``with watch(stores=…):`` around what counts, compares what was read, and answers the
bytes or operations that it measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchlib.measure import Unit, Watch
from benchlib.place import Place

Work = Callable[[Place, Watch], int]
ForEach = Callable[[Callable[[int], object], range], None]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    """As ``--rows`` takes it."""
    title: str
    unit: Unit
    work: Work
    volumes_only: bool = False
    """There is no such thing on a plain disk."""


ROWS: dict[str, Row] = {}
"""In the order in which a round does them. :mod:`benchlib.rows` fills it."""


def row(title: str, unit: Unit, *, volumes_only: bool = False) -> Callable[[Work], Work]:
    """Register a function as a row that has its name."""

    def register(work: Work) -> Work:
        name = work.__name__.replace("_", "-")
        ROWS[name] = Row(name, title, unit, work, volumes_only)
        return work

    return register
