"""Tables of a report, for a terminal and as Markdown alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Grid(NamedTuple):
    """The first column is text, the others are figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", header_style="bold")
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        cells = [_line(row) for row in self.rows]
        rule = "|---|" + "---:|" * (len(self.headings) - 1)
        return "\n".join([f"{self.title}:", "", _line(self.headings), rule, *cells])


def show(
    grids: Sequence[Grid], document: Mapping[str, Any], json_path: Path | None, markdown_path: Path | None
) -> None:
    """Print the tables; write them as Markdown, and ``document``, which has the same and more, as JSON."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in grids:
        console.print(grid.table())
    if json_path is not None:
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    if markdown_path is not None:
        markdown_path.write_text(as_markdown(grids))


def as_markdown(grids: Iterable[Grid]) -> str:
    return "\n\n".join(grid.markdown() for grid in grids) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "|".join(["", *(f" {cell} " for cell in cells), ""])
