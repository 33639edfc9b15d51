"""What ``scripts/bench scale`` found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchlib.grid import Grid
from benchlib.indexsize import IndexSize
from benchlib.report import surroundings
from benchlib.scale import MEMORY_LIMIT_BYTES, ScaleResults

_PARTS = {
    "a name": ("dentries",),
    "an inode": ("inodes",),
    "a content of its own": ("blobs", "blob_checksums"),
}


def as_json(results: ScaleResults) -> dict[str, Any]:
    operations = [
        {**asdict(row), "ratio": row.ratio, "spread": row.spread, "processor_ratio": row.processor_ratio}
        for row in results.operations
    ]
    return {
        **surroundings(),
        **asdict(results),
        "operations": operations,
        "times": [{**asdict(row), "ratio": row.ratio, "spread": row.spread} for row in results.times],
        "walks": [asdict(row) for row in results.walks],
    }


def as_grids(results: ScaleResults) -> list[Grid]:
    """What is comparable from one machine to another."""
    sizes, few = results.sizes, results.few
    few_names = f"{few.files:,} and {few.inodes:,}"
    many_names = f"{sizes.files:,} files in one directory and {sizes.inodes:,} inodes in a tree"
    return [
        Grid(
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
        Grid(
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
        Grid(
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
        Grid("The index", ("what", "figure"), _index_rows(results)),
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
