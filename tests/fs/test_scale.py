"""What a volume costs does not depend on how much is in it: SQLite is asked how many steps it took.

A step is an instruction of SQLite's virtual machine (``SQLITE_STMTSTATUS_VM_STEP``). A search in an index is
a few of them whatever its size, a row read in vain several; so no clock is needed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.index import blobs, connect, dentries, inodes, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from s3blobfs.types import BlobLocation, ContentDigests, Keying, StoredContent
from tests.support.rig import ROOT, USER, Rig, Setup, make, open_rig

FEW, MANY = 20, 3000
MORE_STEPS = 1000
"""Reading the many rows would take at least so many more than reading the few."""
DIRECTORY = b"directory"
GONE = 3
"""Every so manieth file was removed, and left a blob that is kept for its grace."""
PAGE = 10


@dataclass
class Statements:
    """What was run on every connection that was opened meanwhile."""

    steps: dict[str, int] = field(default_factory=dict)
    """The most that a statement took."""
    run: list[str] = field(default_factory=list)

    def attach(self, connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._note)

    def _note(self, event: dict[str, Any]) -> None:
        sql = event["sql"]
        if sql.startswith(_GROUPING):
            return
        self.run.append(sql)
        self.steps[sql] = max(self.steps.get(sql, 0), event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"])


_GROUPING = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "UPDATE counters SET sequence", "PRAGMA")
"""Of a group commit, which comes when it is time; and of opening a connection."""


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    noted = Statements()
    connected = connect.connect

    def traced(path: Path, *, read_only: bool = False) -> apsw.Connection:
        connection = connected(path, read_only=read_only)
        noted.attach(connection)
        return connection

    monkeypatch.setattr(connect, "connect", traced)
    # A small index is read whole when it is opened; here it stands for a large one.
    monkeypatch.setattr(connect, "QUICK_CHECK_BYTES", 0)
    return noted


async def grow(setup: Setup, files: int) -> int:
    """A volume with a directory of files that have contents, and garbage. Answers the directory's inode."""
    setup.directory.mkdir()
    await make(setup, Tracer())
    db = Database.open(setup.index_path, tracer=Tracer())

    def transaction(tx: Transaction) -> int:
        directory = inodes.insert(tx, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, nlink=2, now_ns=1).id
        dentries.insert(tx, ROOT, DIRECTORY, directory)
        inodes.add_links(tx, ROOT, 1, 1)
        for number in range(files):
            add_file(tx, directory, number, setup.keying)
        return directory

    try:
        return await db.write(transaction)
    finally:
        await db.aclose()


def add_file(tx: Transaction, directory: int, number: int, keying: Keying) -> None:
    name, versioned = b"file %d" % number, keying is Keying.VERSIONED
    digests = ContentDigests(len(name), hashlib.md5(name).digest(), hashlib.sha256(name).digest(), b"\0" * 4)
    key, version = digests.md5.hex(), "v" if versioned else None
    stored = StoredContent(BlobLocation(key, version, key), f'"{key}"', existed=False)
    blob = blobs.adopt(tx, stores.DEFAULT_STORE_ID, stored, digests, 1)
    if number % GONE == 0:
        blobs.drop_ref(tx, blob.id, 2**62, superseded=True)
        return
    row = inodes.insert(
        tx,
        mode=stat.S_IFREG | 0o644,
        uid=0,
        gid=0,
        nlink=1,
        now_ns=1,
        store_id=stores.DEFAULT_STORE_ID,
        object_id=key if versioned else None,
    )
    dentries.insert(tx, directory, name, row.id)
    inodes.update(tx, row.id, size_bytes=len(name), blob_id=blob.id)


@asynccontextmanager
async def opened(setup: Setup, files: int) -> AsyncIterator[tuple[Rig, int]]:
    setup = replace(setup, directory=setup.directory.with_name(f"{files}"))
    directory = await grow(setup, files)
    # Its blobs are in no bucket; what is asked of them here asks for none. The check reads every table.
    async with open_rig(setup, check=False) as rig:
        yield rig, directory


async def names_and_attributes(rig: Rig, directory: int, statements: Statements) -> dict[str, list[str]]:
    """Every operation on names and attributes: which statements it ran."""
    fs = rig.fs
    ran: dict[str, list[str]] = {}

    async def note(title: str, operation: Awaitable[Any]) -> Any:
        statements.run.clear()
        answer = await operation
        ran[title] = list(statements.run)
        return answer

    known = await note("lookup", fs.lookup(directory, b"file 1"))
    assert known is not None
    await note("lookup, missing", fs.lookup(directory, b"missing"))
    await note("getattr", fs.getattr(known.inode_id))
    handle = await note("opendir", fs.opendir(directory))
    page = await note("first page", fs.readdir(handle, 0, PAGE))
    assert len(page) == PAGE + 2
    await note("second page", fs.readdir(handle, page[-1].cookie, PAGE))
    await note("releasedir", fs.releasedir(handle))
    file, made = await note("create", fs.create(directory, b"new", 0o644, os.O_RDWR | os.O_EXCL, USER))
    await note("release", fs.release(file.handle))
    await note("mkdir", fs.mkdir(directory, b"sub", 0o755, USER))
    await note("symlink", fs.symlink(directory, b"symlink", b"target", USER))
    await note("link", fs.link(made.inode_id, directory, b"other name"))
    await note("chmod", fs.setattr(made.inode_id, AttributeChanges(mode=0o600)))
    await note("setxattr", fs.setxattr(made.inode_id, b"user.x", b"y", USER))
    await note("getxattr", fs.getxattr(made.inode_id, b"user.x"))
    await note("rename", fs.rename(directory, b"new", directory, b"renamed"))
    await note("rename over", fs.rename(directory, b"renamed", directory, b"symlink"))
    await note("rename a directory", fs.rename(ROOT, DIRECTORY, ROOT, b"elsewhere"))
    await note("unlink", fs.unlink(directory, b"other name"))
    await note("unlink the last name", fs.unlink(directory, b"symlink"))
    await note("rmdir", fs.rmdir(directory, b"sub"))
    await note("statfs", fs.statfs())
    return ran


async def test_names_and_attributes_cost_the_same_in_a_large_directory(
    any_setup: Setup, statements: Statements
) -> None:
    ran, steps = [], []
    for files in (FEW, MANY):
        async with opened(any_setup, files) as (rig, directory):
            statements.steps.clear()
            ran.append(await names_and_attributes(rig, directory, statements))
            steps.append(dict(statements.steps))
    assert sum(map(len, ran[0].values())) > 40
    assert ran[0] == ran[1]
    assert_as_many(*steps)


async def test_a_mount_with_many_files_costs_what_one_with_few_does(
    any_setup: Setup, statements: Statements
) -> None:
    steps = []
    for files in (FEW, MANY):
        async with opened(any_setup, files) as (rig, directory):
            pass
        # From opening to closing, with what runs in the background.
        statements.steps.clear()
        async with open_rig(rig.setup, check=False) as rig:
            await rig.write_file(b"new", b"content", directory)
            await rig.write_file(b"new", b"another content", directory)
            assert await rig.read_file(b"new", directory) == b"another content"
            await rig.write_file(b"same", b"another content", directory)
            await rig.fs.unlink(directory, b"new")
            await rig.fs.sync(None, None)
            await rig.reaper.drain()
        steps.append(dict(statements.steps))
    assert len(steps[0]) > 30
    assert_as_many(*steps)


def assert_as_many(few: dict[str, int], many: dict[str, int]) -> None:
    slower = {
        sql: (few.get(sql, 0), steps) for sql, steps in many.items() if steps > few.get(sql, 0) + MORE_STEPS
    }
    assert slower == {}
