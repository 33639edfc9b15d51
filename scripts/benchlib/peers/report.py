"""The tables of a run, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchlib.measure import Unit
from benchlib.peers.catalog import BEHIND as BEHIND_ENTRIES
from benchlib.peers.catalog import STORED as STORED_ENTRIES
from benchlib.peers.state import BEHIND, STORED, State
from benchlib.peers.turn import BEHIND_ROWS, PEER_ROWS
from benchlib.report import requests_of, short
from benchlib.results import Ratio, Result, Results
from benchlib.rows import ROWS
from s3blobfs.config import MIB

OURS = tuple(name for name, entry in {**STORED_ENTRIES, **BEHIND_ENTRIES}.items() if entry.ours)
LAGGING = frozenset(name for name, entry in {**STORED_ENTRIES, **BEHIND_ENTRIES}.items() if entry.names_lag)
LIMITS = tuple(name for name, entry in STORED_ENTRIES.items() if entry.limit)
_S3_LIMITS = tuple(name for name in LIMITS if name != "disk")
_UNITS = {Unit.BYTES: "MB/s", Unit.OPERATIONS: "op/s"}
_MB = 1_000_000


def as_markdown(state: State) -> str:
    """Everything that was measured; what failed stands below."""
    by_proxy = state.latency_ms is not None
    parts = [
        _part("Until the data is in S3", state.tables[STORED], by_proxy, stored=True),
        _part("Until close returns, with the upload behind", state.tables[BEHIND], by_proxy, stored=False),
        _failures(state),
    ]
    return "\n".join(part for part in parts if part)


def _part(title: str, results: Results, by_proxy: bool, *, stored: bool) -> str:
    if not results.samples:
        return ""
    measured = results.targets()
    systems = [name for name in {**STORED_ENTRIES, **BEHIND_ENTRIES} if name in measured]
    lines = [f"## {title}", ""]
    lines += ["Medians, with the spread of the rounds.", ""]
    lines += _table(results, systems, lambda row, result: _speed(results.units[row], result), unit=True)
    ratios = _ratios(results, [name for name in systems if name in OURS])
    if ratios:
        lines += ["", "Ratios of speeds, with the lowest and the highest of the rounds.", "", *ratios]
        if stored:
            lines += _ratios_to_durable(results, [name for name in systems if name in OURS])
    lines += ["", "Processor seconds of the client, until nothing was left to be done.", ""]
    lines += _table(results, systems, lambda _, result: f"{result.cpu_s:.2f}")
    lines += ["", "Peak memory of the client, MiB.", ""]
    lines += _table(
        results, [name for name in systems if name not in LIMITS], lambda _, result: _memory(result)
    )
    counted = [name for name in systems if name != "disk" and (by_proxy or name in OURS)]
    if counted:
        lines += ["", f"Requests to S3, counted by {'the proxy' if by_proxy else 'the mount'}.", ""]
        lines += _table(results, counted, lambda _, result: requests_of(result) or "none")
    return "\n".join(lines) + "\n"


def rows_of(results: Results) -> list[str]:
    """In the order in which they are measured."""
    return [row for row in PEER_ROWS if row in results.samples]


def _table(
    results: Results, systems: Sequence[str], cell: Callable[[str, Result], str], *, unit: bool = False
) -> list[str]:
    headings = ["", *(["unit"] if unit else []), *systems]
    lines = [f"| {' | '.join(headings)} |", f"|---|{'---|' if unit else ''}{'---:|' * len(systems)}"]
    for row in rows_of(results):
        found = [results.of(row, system) for system in systems]
        cells = [cell(row, result) if result is not None else "" for result in found]
        units = [_UNITS[results.units[row]]] if unit else []
        lines.append(f"| {' | '.join([ROWS[row].title, *units, *cells])} |")
    return lines


def _ratios(results: Results, ours: Sequence[str]) -> list[str]:
    """Of each of ours to the best peer and to the limit of the row."""
    if not ours:
        return []
    lines = [
        f"| | {' | '.join(f'{name} / best peer | {name} / limit' for name in ours)} |",
        f"|---|{'---:|' * (2 * len(ours))}",
    ]
    for row in rows_of(results):
        cells = []
        for name in ours:
            cells.append(_ratio(results, row, name, best_peer(results, row)))
            cells.append(_ratio(results, row, name, limit_of(results, row)))
        lines.append(f"| {ROWS[row].title} | {' | '.join(cells)} |")
    return lines


def _ratios_to_durable(results: Results, ours: Sequence[str]) -> list[str]:
    """Of the rows that store something and whose best peer may lose it with the machine's power: to the best
    one that does not."""
    lines = []
    for row in rows_of(results):
        if row in BEHIND_ROWS and best_peer(results, row) in LAGGING:
            best = best_peer(results, row, durable=True)
            cells = [_ratio(results, row, name, best) for name in ours]
            lines.append(f"| {ROWS[row].title} | {' | '.join(cells)} |")
    if not lines:
        return []
    heading = f"| | {' | '.join(f'{name} / best peer' for name in ours)} |"
    return [
        "",
        "The same beside the best of those that keep what they have stored when the power fails then.",
        "",
        *(heading, f"|---|{'---:|' * len(ours)}", *lines),
    ]


def best_peer(results: Results, row: str, *, durable: bool = False) -> str | None:
    """The fastest by its median; ``None`` when no peer was measured. ``durable``: of those whose names do not
    reach the disk later than they say."""
    left_out = {*OURS, *LIMITS, *(LAGGING if durable else ())}
    return _fastest(results, row, [name for name in results.targets() if name not in left_out])


def limit_of(results: Results, row: str) -> str | None:
    """The faster of the clients that move the same bytes to or from S3; where S3 has no part, the disk."""
    return _fastest(results, row, _S3_LIMITS) or _fastest(results, row, ["disk"])


def _fastest(results: Results, row: str, systems: Iterable[str]) -> str | None:
    rates = {name: result.rate for name in systems if (result := results.of(row, name)) is not None}
    return max(rates, key=lambda name: rates[name], default=None)


def _ratio(results: Results, row: str, name: str, to: str | None) -> str:
    ratio = None if to is None else results.ratio(row, name, to)
    return "" if ratio is None else f"{spread_of(ratio)} {to}"


def spread_of(ratio: Ratio) -> str:
    if ratio.lowest == ratio.highest:
        return f"**{short(ratio.median)}**"
    return f"**{short(ratio.median)}** ({short(ratio.lowest)}-{short(ratio.highest)})"


def _speed(unit: Unit, result: Result) -> str:
    rate = result.rate * (MIB / _MB if unit is Unit.BYTES else 1)
    digits = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
    return digits if result.rounds == 1 else f"{digits} ({result.spread:.0%})"


def _memory(result: Result) -> str:
    return "" if result.peak_memory_bytes is None else f"{result.peak_memory_bytes / MIB:.0f}"


def _failures(state: State) -> str:
    if not state.failures:
        return ""
    lines = ["## What failed", ""]
    for failure in state.failures:
        row = ROWS[failure.row].title if failure.row else "to start"
        lines.append(
            f"* {failure.turn.system}, round {failure.turn.number + 1}, {failure.turn.table}: {row}: "
            f"{failure.reason}"
        )
    return "\n".join(lines) + "\n"
