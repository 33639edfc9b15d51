"""The table: what is promised, how it was broken, how often that was tried, and the result."""

from __future__ import annotations

import re
from pathlib import Path

from torturelib.run import Figures

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    faults = ", ".join(f"{name}: {count}" for name, count in sorted(figures.faults.items()))
    written = figures.calls["written"]
    return [
        (
            "What was acknowledged is there, whole",
            "`kill -9` of the mount in the middle of the load",
            f"{figures.kills} kills; {written:,} files, {figures.bytes_written:,} bytes written",
            f"{figures.files_compared:,} comparisons, {figures.bytes_compared:,} bytes; "
            f"{len(figures.losses)} differences",
        ),
        (
            "No wrong byte is read or stored, and nothing but EIO is told",
            "faults on the wire",
            f"{sum(figures.faults.values()):,} requests: {faults}",
            f"{figures.calls['refused']} calls refused, {len(figures.unexpected)} with another error",
        ),
        (
            "No row of the index names a missing object",
            "both, together",
            f"{figures.versions:,} versions in the buckets in the end",
            f"{figures.missing} missing",
        ),
        (
            "No object is left that the index does not name",
            "both, together",
            "the same",
            f"{figures.strays} left for a sweep of the bucket",
        ),
    ]


def markdown(figures: Figures, command: str) -> str:
    lines = [
        f"`{command}`, {figures.seconds / 60:.1f} minutes of load:",
        "",
        "| promise | how it is broken | times tried | result |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows(figures)),
    ]
    return "\n".join(lines)


def replace_table(page: Path, table: str) -> None:
    """Put the table between the page's marks."""
    text = page.read_text()
    found = re.sub(f"(?s){BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text)
    if BEGIN not in text:
        raise SystemExit(f"{page} has no {BEGIN}")
    page.write_text(found)
