"""``scripts/bench scale`` works, and the index that it makes is one that our own program could have made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from benchlib.filling import DIRECTORY, TREE, Sizes, file_name, fill, node_path
from benchlib.indexsize import index_size, size_with_contents
from s3blobfs.index import dentries, inodes
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from tests.index import volume

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
FILES, INODES, FEW = 300, 700, 100
TIMEOUT_S = 280


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one small run."""
    directory = tmp_path_factory.mktemp("scale")
    found, markdown = directory / "report.json", directory / "report.md"
    sizes = (f"--files={FILES}", f"--inodes={INODES}", f"--few={FEW}", "--rounds=1")
    files = (f"--directory={directory}", f"--json={found}", f"--markdown={markdown}")
    subprocess.run(
        [sys.executable, BENCH, "scale", *sizes, *files], check=True, capture_output=True, timeout=TIMEOUT_S
    )
    assert {path.name for path in directory.iterdir()} == {"report.json", "report.md"}
    assert markdown.read_text().count("|---|") == 4
    answer: dict[str, Any] = json.loads(found.read_text())
    return answer


@pytest.mark.timeout(TIMEOUT_S + 20)
def test_a_small_run_measures_everything(report: dict[str, Any]) -> None:
    assert report["sizes"] == {"files": FILES, "inodes": INODES}
    operations = {row["title"]: row for row in report["operations"]}
    for operation in ("look up", "remove", "create", "list, first page"):
        for where in ("in the one directory", "in the tree"):
            assert operations[f"{operation}, {where}"]["ratio"] > 0
    assert {row["title"] for row in report["times"]} >= {"mount", "unmount", "fsck", "recover"}
    assert all(row["ratio"] > 0 for row in report["times"])
    assert report["snapshot"]["size_bytes"] > 0


@pytest.mark.timeout(TIMEOUT_S + 20)
def test_every_name_is_walked_over_in_bounded_memory(report: dict[str, Any]) -> None:
    walks = {row["title"]: row for row in report["walks"]}
    assert walks["ls -f of the one directory"]["entries"] == FILES + 2
    assert walks["find over everything"]["entries"] > FILES + INODES
    assert all(0 < walk["peak_memory_bytes"] < 200e6 for walk in walks.values())


# --- the index that is made ----------------------------------------------------------------------------

SIZES = Sizes(files=250, inodes=12_345)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with a directory and a tree, closed."""
    path = tmp_path_factory.mktemp("filled") / "index.db"

    def transaction(tx: Transaction) -> None:
        volume.fill(tx)
        for number in range(3):
            content = b"content" * number
            row = volume.add_file(tx, volume.ROOT, b"content %d" % number)
            volume.give_content(tx, row.id, content)

    async def make() -> None:
        db = volume.make(path)
        try:
            await db.write(transaction)
        finally:
            await db.aclose()

    trio.run(make)
    made: list[int] = []
    fill(path, SIZES, made.append)
    assert made[-1] == SIZES.files + SIZES.inodes - 1
    return path


def at(tx: Transaction, path: str) -> InodeRow:
    parent, found = ROOT_INODE_ID, None
    for part in path.split("/"):
        found = dentries.lookup(tx, parent, part.encode())
        assert found is not None, path
        parent = found.id
    assert found is not None
    return found


async def test_the_filled_index_is_as_our_own_program_makes_one(filled: Path) -> None:
    db = Database.open(filled, tracer=Tracer())
    try:
        assert await db.check() == []
        usage = await db.read(inodes.usage)
        assert usage.inodes == 1 + 3 + 1 + SIZES.files + SIZES.inodes
    finally:
        await db.aclose()


async def test_every_name_is_where_it_is_said_to_be(filled: Path) -> None:
    def transaction(tx: Transaction) -> None:
        for number in range(SIZES.files):
            assert at(tx, f"{DIRECTORY}/{file_name(number)}").nlink == 1
        for number in range(0, SIZES.inodes, 97):
            row = at(tx, node_path(number))
            assert (row.nlink > 1) == (number < SIZES.directories), number
            assert (row.blob_id is None) == (number < SIZES.directories), number
        assert not dentries.is_empty(tx, at(tx, node_path(SIZES.directories - 1)).id)
        assert node_path(0) == TREE

    db = Database.open(filled, tracer=Tracer())
    try:
        await db.read(transaction)
    finally:
        await db.aclose()


def test_bytes_are_counted_table_by_table(filled: Path, tmp_path: Path) -> None:
    size = index_size(filled, SIZES.files + SIZES.inodes)
    assert sum(size.tables.values()) <= size.total_bytes == filled.stat().st_size
    assert 50 < size.of("dentries") < 300 and 50 < size.of("inodes") < 300
    contents = size_with_contents(tmp_path / "contents.db", 1000)
    assert contents.of("blobs", "blob_checksums") > 16 + 32 + 2 * 32
