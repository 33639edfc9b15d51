"""What ``scripts/bench growth`` found, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchlib.grid import Grid
from benchlib.growth import LIMIT, Curve, Growth, Step, grows
from benchlib.report import in_words, short, surroundings
from benchlib.results import Ratio
from s3blobfs.config import MIB


def as_json(growth: Growth) -> dict[str, Any]:
    return {
        **surroundings(),
        "scale": asdict(growth.scale),
        "rounds": growth.rounds,
        "limit": LIMIT,
        "curves": [
            asdict(curve)
            | {
                "per": curve.per.value,
                "time_grows": grows(curve.steps[-1].time),
                "processor_grows": grows(curve.steps[-1].processor),
            }
            for curve in growth.curves
        ],
    }


def as_grids(growth: Growth) -> list[Grid]:
    """What is comparable from one machine to another, a column a factor. Requests and memory are, too."""
    grids = []
    scale = growth.scale
    base = f"relative to {scale.large_bytes / MIB:,.4g} MiB and {scale.small_files:,} files"
    for mode in dict.fromkeys(curve.mode for curve in growth.curves):
        curves = [curve for curve in growth.curves if curve.mode == mode]
        grids += [
            _ratios(f"{mode}, time for one unit, {base}", curves, lambda step: step.time),
            _ratios(f"{mode}, processor time of the mount for one unit, {base}", curves, _processor),
            _plain(f"{mode}, most memory of the mount, MiB", curves, _memory),
            _plain(f"{mode}, requests to S3 for one unit", curves, _requests),
        ]
    return grids


def _plain(title: str, curves: Sequence[Curve], cell: Callable[[Step], str]) -> Grid:
    rows = [(*_of(curve), *map(cell, curve.steps)) for curve in curves]
    return Grid(title, _headings(curves), rows)


def _ratios(title: str, curves: Sequence[Curve], ratio: Callable[[Step], Ratio | None]) -> Grid:
    """Also how far apart the rounds are at the largest factor, and a mark for what grows."""
    rows = []
    for curve in curves:
        ratios = [ratio(step) for step in curve.steps]
        mark = "grows" if grows(ratios[-1]) else ""
        rows.append((*_of(curve), *map(_median, ratios), _range(ratios[-1]), mark))
    last = curves[0].steps[-1].factor
    return Grid(title, (*_headings(curves), f"rounds at {_times(last)}", f"> {LIMIT}"), rows)


def _of(curve: Curve) -> tuple[str, str]:
    return curve.title, curve.per.value


def _headings(curves: Sequence[Curve]) -> tuple[str, ...]:
    return ("row", "unit", *(_times(step.factor) for step in curves[0].steps))


def _times(factor: int) -> str:
    return f"x{factor:,}"


def _median(ratio: Ratio | None) -> str:
    return "" if ratio is None else short(ratio.median)


def _range(ratio: Ratio | None) -> str:
    if ratio is None or ratio.lowest == ratio.highest:
        return ""
    return f"{short(ratio.lowest)}-{short(ratio.highest)}"


def _processor(step: Step) -> Ratio | None:
    return step.processor


def _memory(step: Step) -> str:
    return f"{step.peak_memory_bytes / MIB:.0f}"


def _requests(step: Step) -> str:
    return in_words({kind: short(count) for kind, count in step.unit_requests.items()}) or "none"
