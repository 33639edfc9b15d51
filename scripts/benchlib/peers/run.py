"""A run: rounds of turns over one S3 server, and if asked for through a proxy that holds requests up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import boto3

from benchlib.peers.catalog import BEHIND as BEHIND_ENTRIES
from benchlib.peers.catalog import STORED as STORED_ENTRIES
from benchlib.peers.catalog import Entry
from benchlib.peers.state import BEHIND, STORED, State, Turn
from benchlib.peers.system import Server
from benchlib.peers.turn import Requests, take_turn
from benchlib.proxy import LOOPBACK, proxy
from benchlib.row import Row
from benchlib.server import s3_server
from s3blobfs.demo.server import DemoServer

T = TypeVar("T")


def rotated(items: Sequence[T], number: int, rounds: int) -> list[T]:
    """The order of a round: each round begins elsewhere, as far apart as the number of rounds allows."""
    if not items:
        return []
    start = number * max(1, len(items) // rounds) % len(items)
    return [*items[start:], *items[:start]]


def run_peers(
    directory: Path,
    systems: Sequence[str],
    rows: Sequence[Row],
    rounds: int,
    state: State,
    say: Callable[[str], None],
    save: Callable[[], None],
) -> None:
    """Measure what ``state`` does not have yet. ``save`` is called after each turn."""
    with _servers(directory, state.latency_ms) as (server, requests):
        for number in range(rounds):
            for table, entries in ((STORED, STORED_ENTRIES), (BEHIND, BEHIND_ENTRIES)):
                chosen = [entry for name, entry in entries.items() if name in systems]
                for entry in rotated(_measurable(chosen, state.latency_ms), number, rounds):
                    turn = Turn(table, entry.name, number)
                    if turn not in state.done:
                        found = take_turn(
                            turn, entry, rows, directory / entry.name, server, state.scale, requests, say
                        )
                        state.add(turn, *found)
                        save()


def _measurable(entries: Sequence[Entry], latency_ms: float | None) -> list[Entry]:
    return [entry for entry in entries if not entry.missing() and (entry.speaks_s3 or latency_ms is None)]


@contextlib.contextmanager
def _servers(directory: Path, latency_ms: float | None) -> Iterator[tuple[Server, Requests | None]]:
    with contextlib.ExitStack() as stack:
        seaweed = stack.enter_context(s3_server(directory / "server"))
        if latency_ms is None:
            yield described(seaweed, seaweed.endpoint_url), None
        else:
            running = stack.enter_context(proxy(directory, seaweed.endpoint_url, latency_ms))
            yield described(seaweed, running.endpoint_url), running.counts.read


def described(seaweed: DemoServer, endpoint_url: str) -> Server:
    """``endpoint_url`` is where S3's clients reach it."""
    credentials = boto3.Session().get_credentials()
    assert credentials is not None, "the server's set-up has some"
    ports = seaweed.inner_ports
    return Server(
        endpoint_url=endpoint_url,
        direct_url=seaweed.endpoint_url,
        filer=f"{LOOPBACK}:{ports['filer.port']}.{ports['filer.port.grpc']}",
        access_key_id=credentials.access_key,
        secret_access_key=credentials.secret_key,
    )
