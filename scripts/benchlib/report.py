"""Results for people and for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchlib.place import Scale
from benchlib.results import Ratio, Result, Results
from s3blobfs import __version__
from s3blobfs.config import MIB

_KINDS = {"head": "HEAD", "put": "PUT", "part": "part", "get": "GET", "copy": "COPY"}
"""Shown by their HTTP methods; others as they are counted."""


def as_table(results: Results, target: str, titles: Mapping[str, str], limits: Sequence[str]) -> Table:
    """All rows of one target, for a terminal."""
    table = Table(title=target, title_justify="left", header_style="bold")
    table.add_column("row", overflow="fold")
    table.add_column("median", justify="right", no_wrap=True)
    for heading in ("spread", *(f"to {limit}" for limit in limits), "CPU s", "peak RSS"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("S3 requests", overflow="fold")
    for row in results.samples:
        result = results.of(row, target)
        if result is None:
            continue
        peak = result.peak_memory_bytes
        table.add_row(
            titles[row],
            f"{result.rate:,.4g} {results.units[row].value}",
            f"{result.spread:.0%}",
            *(_ratio(results.ratio(row, target, limit)) for limit in limits),
            f"{result.cpu_s:.2f}",
            f"{peak / MIB:.0f} MiB" if peak is not None else "",
            requests_of(result),
        )
    return table


def as_markdown(
    results: Results, titles: Mapping[str, str], targets: Sequence[str], limits: Sequence[str]
) -> str:
    """One table of ratios: what is comparable from one machine to another."""
    several = len(limits) > 1
    headings = [f"{target} / {limit}" if several else target for target in targets for limit in limits]
    lines = [
        f"| | {' | '.join([*headings, 'S3 requests', 'spread'])} |",
        f"|---|{'---:|' * len(headings)}---|---:|",
    ]
    for row in results.samples:
        cells = [_ratio(results.ratio(row, target, limit)) for target in targets for limit in limits]
        measured = [result for target in targets if (result := results.of(row, target)) is not None]
        requests = list(dict.fromkeys(requests_of(result) or "none" for result in measured))
        spread = max((result.spread for result in measured), default=0.0)
        lines.append(f"| {titles[row]} | {' | '.join([*cells, '; '.join(requests), f'{spread:.0%}'])} |")
    return "\n".join(lines) + "\n"


def as_json(results: Results, titles: Mapping[str, str], scale: Scale) -> dict[str, Any]:
    return {
        **surroundings(),
        "scale": asdict(scale),
        "results": [
            {"row": row, "title": titles[row], "target": target, "unit": results.units[row].value}
            | asdict(result)
            | {"spread": result.spread}
            for row in results.samples
            for target in results.targets()
            if (result := results.of(row, target)) is not None
        ],
    }


def surroundings() -> dict[str, Any]:
    """What measured, and on what."""
    return {
        "version": __version__,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else short(ratio.median)


def short(ratio: float) -> str:
    """Two digits that count."""
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"


def requests_of(result: Result) -> str:
    """In words."""
    return in_words({kind: f"{count:,}" for kind, count in result.requests.items() if count})


def in_words(requests: Mapping[str, str]) -> str:
    """Of counts by kind."""
    return ", ".join(f"{count} {_KINDS.get(kind, kind)}" for kind, count in requests.items())
