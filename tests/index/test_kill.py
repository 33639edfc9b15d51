"""``kill -9`` at any moment loses nothing that was acknowledged, and damages nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from s3blobfs.index import dentries
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import ROOT

ROUNDS = 8


def _killed(path: Path, run: str, after_s: float) -> tuple[set[bytes], set[bytes]]:
    """Names that must be there, and names that may be gone."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.index.killed_writer", str(path), run],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(after_s)
    assert writer.poll() is None
    writer.kill()
    rest = writer.stdout.read()
    writer.wait()
    writer.stdout.close()
    lines = (first + rest).splitlines()
    made = {line[1:] for line in lines if line.startswith(b"+")}
    removed = {line[1:] for line in lines if line.startswith(b"-")}
    return made - removed, removed


def _names(tx: Transaction) -> set[bytes]:
    return {entry[1] for entry in dentries.page(tx, ROOT, 0, 1_000_000)}


async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill, durable=True)
    await database.aclose()
    expected: set[bytes] = set()
    acknowledged = 0
    for number in range(ROUNDS):
        made, _removed = _killed(path, str(number), random.uniform(0.01, 0.4))
        acknowledged += len(made)
        expected |= made
        if number % 2 == 0:
            continue  # the next writer finds what this one left: no checkpoint, perhaps a long log
        database = Database.open(path, tracer=Tracer())
        names = await database.read(_names)
        assert expected <= names
        assert b"rolled back" not in names
        assert await database.check() == []
        await database.aclose()
    assert acknowledged > 10 * ROUNDS
