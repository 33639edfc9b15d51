"""Databases: killed, checked, and found again."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.applications.trees import run

PGBENCH_S = int(os.environ.get("S3BLOBFS_PGBENCH_S", "60"))
"""How long pgbench runs, with each durability."""

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT)")
(number,) = connection.execute("SELECT coalesce(max(number), 0) FROM rows").fetchone()
while True:
    connection.execute("BEGIN")
    for _ in range(10):
        number += 1
        connection.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * 500))
    connection.execute("COMMIT")
    print(number, flush=True)
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_with_a_killed_writer(here: Path, journal: str) -> None:
    """What was committed before the kill is there, and nothing of a transaction that was not."""
    path = here / "rows.db"
    acknowledged = 0
    for transactions in (3, 7, 5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, path, journal], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(transactions):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ((count, last),) = connection.execute("SELECT count(*), max(number) FROM rows")
            assert count == last >= acknowledged
            assert count % 10 == 0


def _postgresql() -> Path | None:
    """Where the server's programs are; Debian does not put them on the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


@pytest.mark.skipif(_postgresql() is None, reason="needs PostgreSQL, which scripts/prepare installs")
@pytest.mark.timeout(900)
def test_postgresql(here: Path) -> None:
    programs = _postgresql()
    assert programs is not None
    data, sockets = here / "data", here / "sockets"
    for directory in (data, sockets):
        directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(directory, 65_534, 65_534)

    def server(program: str, *arguments: str | Path) -> str:
        """The server refuses to be root."""
        as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        return run(
            *(as_nobody if os.geteuid() == 0 else ()),
            programs / program,
            *arguments,
            cwd=data,
            timeout=600,
            HOME=str(here),
        )

    def start() -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c max_connections=20"
        server("pg_ctl", "-D", data, "-w", "-t", "300", "-l", data / "log", "-o", options, "start")

    def stop() -> None:
        server("pg_ctl", "-D", data, "-w", "-t", "300", "stop")

    def balance() -> str:
        query = "SELECT sum(abalance), count(*) FROM pgbench_accounts"
        return server("psql", "-h", sockets, "-U", "nobody", "-d", "postgres", "-Atc", query)

    server("initdb", "-D", data, "-U", "nobody", "--no-instructions")
    start()
    try:
        bench = ("-h", sockets, "-U", "nobody")
        server("pgbench", *bench, "-i", "-s", "1", "-q", "postgres")
        server("pgbench", *bench, "-c", "4", "-T", str(PGBENCH_S), "postgres")
        before = balance()
    finally:
        stop()
    start()
    try:
        assert balance() == before
        server("pg_amcheck", "-h", sockets, "-U", "nobody", "--install-missing", "postgres")
    finally:
        stop()
