"""``s3blobfs status``."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from s3blobfs.cli.console import console, printable, size_text
from s3blobfs.cli.params import PATH
from s3blobfs.cli.store import mode_text
from s3blobfs.control.client import MountedVolume
from s3blobfs.control.messages import Json

_SECTIONS = ("volume", "mount", "filesystem", "uploads", "index_copy", "tier", "counts")


@click.command()
@click.argument("mountpoint", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def status(mountpoint: Path, as_json: bool) -> None:
    """Show what a mounted volume is, what it holds back, and what it did.

    \b
    Examples:
        s3blobfs status /mnt/files
        s3blobfs status /mnt/files --json | jq .uploads.files
    """
    description = MountedVolume.of(mountpoint).call("status")
    if as_json:
        click.echo(json.dumps(description, indent=1))
        return
    console().print(_table(description))


def _table(description: Json) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for section in _SECTIONS:
        for name, value in _flat(description[section]):
            table.add_row(section, *_row(name, value))
            section = ""
    section = "stores"
    for store in description["stores"]:
        address = f"s3://{store['bucket']}/{store['prefix']}"
        cached = "cached" if store["cached"] else "not cached"
        table.add_row(section, store["name"], f"{address}, {mode_text(store)}, {cached}")
        section = ""
    return table


def _flat(values: Json, above: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{above}{name} ") if isinstance(value, dict) else [(above + name, value)]
    return rows


def _row(name: str, value: Any) -> tuple[str, str]:
    """The names carry their units (``size_bytes``, ``since_ns``)."""
    if value is None:
        return name.replace("_ns", "").replace("_", " "), "-"
    if isinstance(value, bool):
        return name.replace("_", " "), "yes" if value else "no"
    if name.endswith("bytes") and isinstance(value, int):
        return name.removesuffix("_bytes").replace("_", " "), size_text(value)
    if name.endswith("_ns") and isinstance(value, int):
        moment = datetime.fromtimestamp(value / 10**9).astimezone()
        return name.removesuffix("_ns").replace("_", " "), moment.isoformat(sep=" ", timespec="seconds")
    return name.replace("_", " "), printable(str(value))
