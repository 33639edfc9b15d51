"""A process that changes an index until it is killed, and says what was acknowledged to it.

Each line of its output is a name that a durable write has made (``+``) or removed (``-``), written after the
write returned. Several tasks write at once, some of what they write is not durable, some is rolled back.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio

from s3blobfs.index import blobs, dentries, inodes, log
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from tests.index.volume import NOW, ROOT, add_directory, add_file, give_content

TASKS = 4


def _remove(tx: Transaction, name: bytes) -> None:
    row = dentries.lookup(tx, ROOT, name)
    assert row is not None
    dentries.remove(tx, ROOT, name)
    inodes.remove(tx, row.id)
    if row.blob_id is not None:
        blobs.drop_ref(tx, row.blob_id, NOW, superseded=False)


def _create(tx: Transaction, name: bytes) -> None:
    file = add_file(tx, ROOT, name)
    give_content(tx, file.id, name)
    directory = add_directory(tx, ROOT, name + b".d")
    for at in range(5):
        add_file(tx, directory.id, b"%d" % at)


def _fail(tx: Transaction) -> None:
    add_directory(tx, ROOT, b"rolled back")
    raise ZeroDivisionError


async def _write(database: Database, run: str, task: int) -> None:
    kept: list[bytes] = []
    chance = random.Random(f"{run}.{task}")
    for number in range(1_000_000):
        name = f"{run}.{task}.{number}".encode()
        durable = chance.random() < 0.5
        if kept and chance.random() < 0.3:
            name = kept.pop(chance.randrange(len(kept)))
            # Announced first: once it may be gone, it need not be there.
            os.write(1, b"-" + name + b"\n")
            await database.write(lambda tx, name=name: _remove(tx, name), durable=durable)  # type: ignore[misc]
        else:
            await database.write(lambda tx, name=name: _create(tx, name), durable=durable)  # type: ignore[misc]
            if durable:
                kept.append(name)
                os.write(1, b"+" + name + b"\n")
        if chance.random() < 0.1:
            try:
                await database.write(_fail)
            except ZeroDivisionError:
                await trio.lowlevel.checkpoint()


async def main(path: Path, run: str) -> None:
    # Checkpoints, restarts and truncations come often enough to be killed in the middle.
    log.CHECKPOINT_PAGES, log.RESTART_PAGES, log.TRUNCATE_PAGES = 30, 60, 120
    database = Database.open(path, tracer=Tracer(), commit_delay_s=0.002)
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        for task in range(TASKS):
            nursery.start_soon(_write, database, run, task)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
