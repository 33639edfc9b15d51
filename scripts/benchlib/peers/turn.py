"""One turn: a system is made, mounted, measured in every row, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError as ObstoreError

from benchlib.content import WrongBytes
from benchlib.measure import NotStored, Sample, Watch, measure
from benchlib.peers.catalog import Contender, Entry
from benchlib.peers.disk import Disk
from benchlib.peers.state import BEHIND, Failure, Turn
from benchlib.peers.system import Server, System
from benchlib.place import Place, Scale
from benchlib.row import Row
from benchlib.volume import CommandFailed

PEER_ROWS = (
    *("large-write", "large-write-again", "copy", "large-read-kernel", "large-read-cold"),
    *("large-read-local", "random-read-local", "middle-read-cold", "append-large"),
    *("small-write", "small-write-threads", "small-read-cold", "small-read-cold-threads"),
    *("small-read-local", "list-cold", "list-hot", "directories", "rename-tree", "untar", "unlink"),
)
"""In the order of a turn."""
BEHIND_ROWS = frozenset(
    (
        "large-write",
        "large-write-again",
        "copy",
        "append-large",
        "small-write",
        "small-write-threads",
        "untar",
    )
)
"""Rows that store something."""
_NOT_ON_A_DISK = frozenset(
    ("large-write-again", "large-read-cold", "middle-read-cold", "small-read-cold", "small-read-cold-threads")
)
"""There is nothing farther away that they could be read from, and nothing that could be found again."""

ROW_TIMEOUT_S = 600.0
_FAILURES = (
    *(OSError, CommandFailed, NotStored, WrongBytes, subprocess.SubprocessError),
    *(BotoCoreError, ClientError, ObstoreError),
)

Requests = Callable[[], Mapping[str, int]]


def take_turn(
    turn: Turn,
    entry: Entry,
    rows: Sequence[Row],
    directory: Path,
    server: Server,
    scale: Scale,
    requests: Requests | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Sample], list[Failure]]:
    """Samples by row, and what went wrong. ``directory`` does not exist, before and after."""
    samples: dict[str, Sample] = {}
    failures: list[Failure] = []
    bucket = f"bench-{entry.name}-{turn.number}-{turn.table}"
    try:
        with _contender(entry, directory, server, bucket, scale) as contender:
            session = _Session(contender, turn, scale)
            for row in rows:
                if (work := session.work(row)) is None:
                    continue
                say(f"round {turn.number + 1}: {entry.name}: {row.title}")
                try:
                    with deadline(contender):
                        storage = contender if isinstance(contender, System) else None
                        samples[row.name] = measure(
                            contender, row.unit, work, None if turn.table == BEHIND else storage, requests
                        )
                except _FAILURES as error:
                    failures.append(Failure(turn, row.name, _reason(error)))
                    say(f"{entry.name}: {row.title}: {_reason(error)}")
                    session.begin_anew()
    except _FAILURES as error:
        failures.append(Failure(turn, "", _reason(error)))
        say(f"{entry.name}: {_reason(error)}")
    return samples, failures


@contextlib.contextmanager
def _contender(
    entry: Entry, directory: Path, server: Server, bucket: str, scale: Scale
) -> Iterator[Contender]:
    contender = entry.make(entry.name, directory, server, bucket, scale)
    if isinstance(contender, System):
        try:
            contender.make()
            contender.mount()
            yield contender
            contender.settle()
            contender.umount()
        finally:
            contender.abandon()
    else:
        yield contender
    contender.remove()


class _Session:
    """Rows of a turn, bound to what they work on."""

    def __init__(self, contender: Contender, turn: Turn, scale: Scale) -> None:
        self._contender = contender
        self._turn = turn
        self._scale = scale
        self._places = 0
        self._place: Place | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """After a failure: in another directory, since nobody knows what the last one holds."""
        if isinstance(self._contender, System | Disk):
            self._place = Place(self._contender, self._scale, self._turn.number * 100 + self._places)
            self._places += 1

    def work(self, row: Row) -> Callable[[Watch], int] | None:
        """``None`` where there is no such row."""
        contender = self._contender
        if self._turn.table == BEHIND and row.name not in BEHIND_ROWS:
            return None
        if self._place is not None:
            if isinstance(contender, Disk) and row.name in _NOT_ON_A_DISK:
                return None
            return partial(row.work, self._place)
        assert not isinstance(contender, System | Disk)
        raw = contender.rows.get(row.name)
        return None if raw is None else partial(raw, f"{row.name}-{self._turn.number}")


@contextlib.contextmanager
def deadline(contender: Contender) -> Iterator[None]:
    """Calls that hang in a mount return when its processes are gone, and only then. Raises
    :class:`CommandFailed` for a row that was ended so."""
    if not isinstance(contender, System):
        yield
        return
    expired = threading.Event()

    def end() -> None:
        expired.set()
        contender.kill()

    timer = threading.Timer(ROW_TIMEOUT_S, end)
    timer.daemon = True  # an interrupted run does not wait for it
    try:
        timer.start()
        yield
    except _FAILURES as error:
        if expired.is_set():
            raise CommandFailed(f"ended after {ROW_TIMEOUT_S:.0f} s: {_reason(error)}") from error
        raise
    finally:
        timer.cancel()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
