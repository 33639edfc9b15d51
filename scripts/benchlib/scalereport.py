"""What ``scripts/bench scale`` found, for people and for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchlib.indexsize import IndexSize
from benchlib.scale import MEMORY_LIMIT_BYTES, ScaleResults
from s3blobfs import __version__

_Grid = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, headings, rows; the first column is text, the others are figures."""

_PARTS = {
    "a name": ("dentries",),
    "an inode": ("inodes",),
    "a content of its own": ("blobs", "blob_checksums"),
}


def as_tables(results: ScaleResults) -> list[Table]:
    """For a terminal."""
    return [_table(*grid) for grid in _grids(results)]


def as_markdown(results: ScaleResults) -> str:
    """What is comparable from one machine to another."""
    parts = []
    for title, headings, rows in _grids(results):
        cells = ["|".join(["", *(f" {cell} " for cell in row), ""]) for row in rows]
        head = "|".join(["", *(f" {heading} " for heading in headings), ""])
        parts.append("\n".join([f"{title}:", "", head, "|---|" + "---:|" * (len(headings) - 1), *cells]))
    return "\n\n".join(parts) + "\n"


def as_json(results: ScaleResults) -> dict[str, Any]:
    operations = [
        {**asdict(row), "ratio": row.ratio, "spread": row.spread, "processor_ratio": row.processor_ratio}
        for row in results.operations
    ]
    return {
        "version": __version__,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        **asdict(results),
        "operations": operations,
        "times": [{**asdict(row), "ratio": row.ratio, "spread": row.spread} for row in results.times],
        "walks": [asdict(row) for row in results.walks],
    }


def _grids(results: ScaleResults) -> list[_Grid]:
    sizes, few = results.sizes, results.few
    few_names = f"{few.files:,} and {few.inodes:,}"
    many_names = f"{sizes.files:,} files in one directory and {sizes.inodes:,} inodes in a tree"
    return [
        (
            f"{many_names}, relative to {few_names}",
            ("operation", "time", "spread", "processor", "target"),
            [
                (
                    row.title,
                    f"{row.ratio:.2f}",
                    f"{row.spread:.0%}",
                    f"{row.processor_ratio:.2f}" if row.processor_ratio is not None else "",
                    f"≤ {row.limit}" if row.limit else "",
                )
                for row in results.operations
            ],
        ),
        (
            "Over all names",
            ("command", "names", "most memory of the mount", "target"),
            [
                (
                    walk.title,
                    f"{walk.entries:,}",
                    f"{walk.peak_memory_bytes / 1e6:.0f} MB",
                    f"< {MEMORY_LIMIT_BYTES / 1e6:.0f} MB",
                )
                for walk in results.walks
            ],
        ),
        (
            f"Commands, relative to a volume without a file (mount, unmount), or with {few_names}",
            ("command", "time", "spread", "most memory", "target"),
            [
                (
                    row.title,
                    f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:.0f}",
                    f"{row.spread:.0%}" if len(row.few) > 1 else "",
                    f"{row.peak_memory_bytes / 1e6:.0f} MB" if row.peak_memory_bytes else "",
                    f"≤ {row.limit}" if row.limit else "",
                )
                for row in results.times
            ],
        ),
        ("The index", ("what", "figure"), _index_rows(results)),
    ]


def _index_rows(results: ScaleResults) -> list[tuple[str, str]]:
    assert results.index is not None and results.contents is not None and results.snapshot is not None
    index, contents, snapshot = results.index, results.contents, results.snapshot
    rows = [("its size", f"{index.total_bytes / 1e6:,.0f} MB")]
    rows += [(f"bytes for {part}", f"{_bytes(part, index, contents):.0f}") for part in _PARTS]
    return [
        *rows,
        ("a snapshot of it in the bucket", f"{snapshot.size_bytes / index.total_bytes:.2f} of its size"),
        (
            "processor time to make and send it",
            f"{snapshot.processor_s / (index.total_bytes / 1e9):.0f} s a GB",
        ),
        ("most memory of the mount meanwhile", f"{snapshot.peak_memory_bytes / 1e6:.0f} MB"),
    ]


def _bytes(part: str, index: IndexSize, contents: IndexSize) -> float:
    return (contents if part == "a content of its own" else index).of(*_PARTS[part])


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
