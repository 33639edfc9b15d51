"""Requests per second and the server's processor time per request, as ratios to an empty handler's.

Everything is asked of the server again, since names and attributes are good for no time. Each round measures
one row on all servers right after one another.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchlib import usage
from benchlib.kernel import TriedVolume
from benchlib.server import s3_server
from benchlib.volume import mounted
from s3blobfs.volume.mountpoint import find_mount

_START_TIMEOUT_S = 30.0
_POLL_S = 0.02
_FILES = 1000
EMPTY = {"empty": "init", "empty, pyfuse3 alone": "off"}
"""Servers that do nothing, and the extension they run with; the first is what others are compared with."""
VOLUMES = {"s3blobfs": "timeouts-0", "s3blobfs, pyfuse3 alone": "timeouts-0-no-extension"}
"""Volumes, and the setting that each is mounted with."""


@dataclass(frozen=True, slots=True)
class Server:
    """A mounted directory and who serves it."""

    name: str
    directory: Path
    pid: int


@dataclass(slots=True)
class Figures:
    """Of one row on one server, one of each a round."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


# -- rows: each answers how much of its unit it has done ------------------------------------------------


def _names(directory: Path) -> list[str]:
    return [f"{directory}/{number:05}" for number in range(_FILES)]


def _create(directory: Path) -> int:
    for name in (names := _names(directory)):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    return len(names)


def _files(directory: Path) -> list[str]:
    """They are there when this returns."""
    names = _names(directory)
    if not Path(names[0]).exists():
        _create(directory)
    return names


def _stat(directory: Path) -> int:
    names = _files(directory)
    for name in names:
        os.stat(name)
    return len(names)


def _fstat(directory: Path) -> int:
    (name, *_) = _files(directory)
    fd = os.open(name, os.O_RDONLY)
    for _ in range(_FILES):
        os.fstat(fd)
    os.close(fd)
    return _FILES


def _unlink(directory: Path) -> int:
    names = _files(directory)
    for name in names:
        os.unlink(name)
    return len(names)


def _list(directory: Path) -> int:
    count = 0
    _files(directory)
    for _ in range(5):
        with os.scandir(directory) as entries:
            count += sum(1 for _ in entries)
    return count


@dataclass(frozen=True, slots=True)
class Row:
    """What is timed, after ``before`` has prepared it."""

    name: str
    work: Callable[[Path], int]
    before: Callable[[Path], object]


ROWS = (
    Row("stat (LOOKUP, GETATTR)", _stat, _files),
    Row("fstat (GETATTR)", _fstat, _files),
    Row("open O_CREAT, close (LOOKUP, CREATE, FLUSH, RELEASE)", _create, _unlink),
    Row("unlink (LOOKUP, UNLINK)", _unlink, _files),
    Row("entries of a listing (READDIRPLUS)", _list, _files),
)


# -- servers -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def empty_server(name: str, directory: Path) -> Iterator[Server]:
    """In a process of its own."""
    directory.mkdir()
    command: list[str | Path] = [sys.executable, "-m", "benchlib.empty_mount", directory, EMPTY[name]]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while find_mount(directory) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{name} was not mounted")
            time.sleep(_POLL_S)
        yield Server(name, directory, process.pid)
    finally:
        subprocess.run(["fusermount3", "-u", directory], check=False)
        process.wait(_START_TIMEOUT_S)


@contextlib.contextmanager
def servers(base: Path) -> Iterator[list[Server]]:
    """All that are compared, mounted."""
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(s3_server(base / "server"))
        made = [
            stack.enter_context(empty_server(name, base / f"empty-{number}"))
            for number, name in enumerate(EMPTY)
        ]
        for name, setting in VOLUMES.items():
            volume = TriedVolume(setting, base / setting, s3.endpoint_url)
            stack.enter_context(mounted(volume))
            made.append(Server(name, volume.directory, volume.pid))
        yield made


# -- the run -------------------------------------------------------------------------------------------


def measure(servers: Sequence[Server], seconds: float, rounds: int) -> dict[tuple[str, str], Figures]:
    """By row and server."""
    figures = {(row.name, server.name): Figures() for row in ROWS for server in servers}
    for _ in range(rounds):
        for row in ROWS:
            for server in servers:
                done, took_s, cpu_s = 0, 0.0, 0.0
                while took_s < seconds:
                    row.before(server.directory)
                    cpu_before, began = usage.cpu_s(server.pid), time.perf_counter()
                    done += row.work(server.directory)
                    took_s += time.perf_counter() - began
                    cpu_s += usage.cpu_s(server.pid) - cpu_before
                found = figures[row.name, server.name]
                found.rates.append(done / took_s)
                found.cpu_us.append(cpu_s / done * 1e6)
    return figures


def table(figures: dict[tuple[str, str], Figures], servers: Sequence[Server], rounds: int) -> Table:
    made = Table(title=f"medians of {rounds} rounds", title_justify="left", header_style="bold")
    for heading in ("", "server", "1/s", "CPU us", "rate / empty", "empty / CPU"):
        made.add_column(heading)
    limit = servers[0].name
    for row in ROWS:
        for server in servers:
            found, empty = figures[row.name, server.name], figures[row.name, limit]
            pairs = zip(found.rates, empty.rates, strict=True)
            made.add_row(
                row.name,
                server.name,
                f"{statistics.median(found.rates):,.0f}",
                f"{statistics.median(found.cpu_us):.1f}",
                f"{statistics.median(one / other for one, other in pairs):.2f}",
                _ratio(statistics.median(empty.cpu_us), statistics.median(found.cpu_us)),
            )
    return made


def _ratio(one: float, other: float) -> str:
    """Processor time is told in steps of 10 ms: a short run may show none."""
    return f"{one / other:.2f}" if one and other else "-"


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Per row and round."
)
def main(rounds: int, seconds: float) -> None:
    """Measure how many requests a second s3blobfs answers, and the processor time they take, beside a
    filesystem that does nothing, with and without the FUSE extension."""
    with tempfile.TemporaryDirectory(prefix="s3blobfs-bench-") as made, servers(Path(made)) as all_servers:
        figures = measure(all_servers, seconds, rounds)
    Console(width=160).print(table(figures, all_servers, rounds))


def entry() -> None:
    main()
