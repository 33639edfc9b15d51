"""Output for people: progress, sizes, tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from s3blobfs.config import GIB, KIB, MIB, TIB

NO_TERMINAL_COLUMNS = 1000

_UNITS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def console() -> Console:
    """Standard output."""
    return _console(stderr=False)


def error_console() -> Console:
    """Standard error, where progress and remarks go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # What is printed is data: rich must not find markup in it, nor fold it for a terminal that is none.
    output = sys.stderr if stderr else sys.stdout
    width = None if output.isatty() else NO_TERMINAL_COLUMNS
    return Console(stderr=stderr, width=width, soft_wrap=True, highlight=False, markup=False, emoji=False)


def size_text(size_bytes: int) -> str:
    """``1.5 MiB``."""
    for unit_bytes, name in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {name}"
    return f"{size_bytes} B"


ShowLeft = Callable[[int, int], None]


@contextlib.contextmanager
def storing_progress(title: str) -> Iterator[ShowLeft]:
    """A bar for what is on its way to S3, told how many files and bytes are left; on a terminal only."""
    bar = _progress()
    with bar:
        task = bar.add_task(title, total=None, detail="")
        most_bytes = most_files = 0

        def show(files_left: int, bytes_left: int) -> None:
            nonlocal most_bytes, most_files
            most_bytes, most_files = max(most_bytes, bytes_left), max(most_files, files_left)
            # Empty files count as well: a bar at its end must mean that nothing is left.
            total = most_bytes + most_files
            bar.update(
                task,
                total=total or None,
                completed=total - bytes_left - files_left,
                detail=f"{files_left} files, {size_text(bytes_left)} left",
            )

        yield show


@contextlib.contextmanager
def copying_progress(files: int, size_bytes: int) -> Iterator[Callable[[str, int], None]]:
    """A bar over files that are copied, told each one's name and size when it is done."""
    bar = _progress()
    with bar:
        task = bar.add_task("copying", total=files + size_bytes, detail="")
        done = 0

        def show(name: str, file_bytes: int) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=1 + file_bytes, detail=f"{done}/{files} files: {printable(name)}")

        yield show


@contextlib.contextmanager
def counting_progress(title: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar for what is counted, told how many are done, of how many if that is known, and some more; on a
    terminal only."""
    bar = _progress()
    with bar:
        task = bar.add_task(title, total=None, detail="")

        def show(done: int, total: int | None, detail: str) -> None:
            bar.update(task, total=total, completed=done, detail=detail)

        yield show


def _progress() -> Progress:
    output = error_console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=output,
        transient=True,
        disable=not output.is_terminal,
    )


def printable(text: str) -> str:
    """Names are data: control characters in them must not reach the terminal, nor lone surrogates the
    encoder of the output."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
