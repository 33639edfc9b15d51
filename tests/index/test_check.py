"""Every kind of problem, made by hand, is found; what is well gives none."""

from __future__ import annotations

import stat
from pathlib import Path

import apsw
import pytest

from s3blobfs.errors import IndexDamaged
from s3blobfs.index import blobs, check, dentries, inodes, stores, uploads, xattrs
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadState
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import (
    DIGEST_STORE,
    NOW,
    ROOT,
    VERSIONED_STORE,
    add_directory,
    add_file,
    adopt,
    adopt_version,
    digests_of,
    give_content,
)

DIRECTORY, BELOW, FILE, LINKED, STAGED, SYMLINK = 2, 3, 4, 5, 6, 7
BLOB, GARBAGE, EARLIER = 1, 2, 3


def _populate(tx: Transaction) -> None:
    """One of everything, with the ids above."""
    directory = add_directory(tx, ROOT, b"directory")
    below = add_directory(tx, directory.id, b"below")
    file = add_file(tx, below.id, b"file")
    blob = give_content(tx, file.id, b"content")
    linked = add_file(tx, ROOT, b"linked")
    dentries.insert(tx, directory.id, b"too", linked.id)
    inodes.add_links(tx, linked.id, 1, NOW)
    staged = add_file(tx, ROOT, b"staged")
    inodes.update(tx, staged.id, size_bytes=6)
    uploads.insert(
        tx,
        inode_id=staged.id,
        store_id=DIGEST_STORE,
        staged_name="s1",
        size_bytes=6,
        digests=digests_of(b"staged"),
        write_id="w",
        state=UploadState.SEALED,
        now_ns=NOW,
    )
    symlink = inodes.insert(
        tx, mode=stat.S_IFLNK | 0o777, uid=0, gid=0, nlink=1, now_ns=NOW, target=b"directory"
    )
    dentries.insert(tx, ROOT, b"symlink", symlink.id)
    garbage = adopt(tx, b"garbage")
    blobs.drop_ref(tx, garbage.id, NOW, superseded=False)
    earlier = adopt_version(tx, "other/id1", "1", b"earlier")
    blobs.drop_ref(tx, earlier.id, NOW, superseded=True)
    xattrs.set(tx, file.id, b"user.x", b"1")
    stores.bind(tx, directory.id, VERSIONED_STORE)
    made = (directory.id, below.id, file.id, linked.id, staged.id, symlink.id)
    assert made == (DIRECTORY, BELOW, FILE, LINKED, STAGED, SYMLINK)
    assert (blob.id, garbage.id, earlier.id) == (BLOB, GARBAGE, EARLIER)


@pytest.fixture
async def populated(unchecked: Database) -> Database:
    await unchecked.write(_populate)
    return unchecked


async def test_what_is_well_gives_none(populated: Database) -> None:
    assert await populated.check() == []
    assert await populated.check({"s1", "unrelated"}) == []
    assert await populated.read(lambda tx: check.check(tx, {"s1"})) == []


DAMAGES: list[tuple[str, str]] = [
    ("root", "UPDATE inodes SET mode = 0x81ff WHERE id = 1"),
    ("root", "DELETE FROM inodes WHERE id = 1"),
    ("dangling-name", f"DELETE FROM inodes WHERE id = {FILE}"),
    ("name-outside-directory", f"UPDATE dentries SET parent_id = {LINKED} WHERE name = x'66696c65'"),
    ("name-outside-directory", "UPDATE dentries SET parent_id = 99 WHERE name = x'66696c65'"),
    ("unnamed-inode", f"DELETE FROM dentries WHERE inode_id = {FILE}"),
    ("unnamed-inode", f"DELETE FROM dentries WHERE inode_id = {DIRECTORY}"),
    ("link-count", f"UPDATE inodes SET nlink = 1 WHERE id = {LINKED}"),
    ("link-count", f"UPDATE inodes SET nlink = 0 WHERE id = {FILE}"),
    ("link-count", f"UPDATE inodes SET nlink = 2 WHERE id = {DIRECTORY}"),
    ("link-count", f"UPDATE inodes SET nlink = 4 WHERE id = {ROOT}"),
    (
        "directory-names",
        f"INSERT INTO dentries (parent_id, name, inode_id) VALUES ({ROOT}, x'32', {BELOW})",
    ),
    (
        "directory-names",
        f"INSERT INTO dentries (parent_id, name, inode_id) VALUES ({BELOW}, x'32', {ROOT})",
    ),
    (
        "removed-directory",
        f"DELETE FROM dentries WHERE inode_id = {BELOW}; UPDATE inodes SET nlink = 0 WHERE id = {BELOW}",
    ),
    ("unreachable-directory", f"UPDATE dentries SET parent_id = {BELOW} WHERE inode_id = {DIRECTORY}"),
    ("unreachable-directory", f"UPDATE dentries SET parent_id = {BELOW} WHERE inode_id = {BELOW}"),
    ("change", f"UPDATE inodes SET change = 1000 WHERE id = {FILE}"),
    ("blob-references", f"UPDATE blobs SET refs = 2 WHERE id = {BLOB}"),
    ("blob-references", f"UPDATE inodes SET blob_id = NULL WHERE id = {FILE}"),
    ("blob-references", f"UPDATE inodes SET blob_id = {GARBAGE} WHERE id = {FILE}"),
    ("missing-blob", f"DELETE FROM blobs WHERE id = {BLOB}"),
    (
        "deleting-blob",
        f"UPDATE blobs SET state = 'deleting', refs = 0, unreferenced_ns = 1 WHERE id = {BLOB}",
    ),
    ("blob-on-non-file", f"UPDATE inodes SET blob_id = {BLOB}, store_id = 1 WHERE id = {SYMLINK}"),
    ("missing-content", f"UPDATE inodes SET blob_id = NULL WHERE id = {FILE}"),
    ("missing-content", "DELETE FROM uploads"),
    ("size", f"UPDATE inodes SET size_bytes = 8 WHERE id = {FILE}"),
    ("size", f"UPDATE inodes SET size_bytes = 7 WHERE id = {STAGED}"),
    ("size", f"UPDATE inodes SET size_bytes = 8 WHERE id = {SYMLINK}"),
    ("size", f"UPDATE inodes SET target = NULL WHERE id = {SYMLINK}"),
    ("blob-state", f"UPDATE blobs SET state = 'garbage' WHERE id = {BLOB}"),
    ("blob-state", f"UPDATE blobs SET state = 'live' WHERE id = {GARBAGE}"),
    ("blob-state", f"UPDATE blobs SET unreferenced_ns = NULL WHERE id = {EARLIER}"),
    ("checksums", "UPDATE blob_checksums SET checksums = x'00' WHERE blob_id = 1"),
    ("checksums", "UPDATE uploads SET checksums = x'0000000000000000'"),
    ("journal-without-file", "UPDATE uploads SET inode_id = 99"),
    ("journal-without-file", f"UPDATE uploads SET inode_id = {DIRECTORY}"),
    (
        "shared-staged-file",
        "INSERT INTO uploads SELECT 2, inode_id, store_id, staged_name, size_bytes, write_id, state,"
        " created_ns, attempts, last_error, md5, sha256, checksums FROM uploads",
    ),
    ("missing-staged-file", "UPDATE uploads SET staged_name = 's2'"),
    ("xattr-without-inode", "UPDATE xattrs SET inode_id = 99"),
    ("binding", f"UPDATE store_bindings SET directory_id = {FILE}"),
    ("binding", "UPDATE store_bindings SET directory_id = 99"),
    ("binding", "UPDATE store_bindings SET store_id = 99"),
    ("usage", "UPDATE counters SET inodes = inodes + 1"),
    ("usage", "UPDATE counters SET bytes_low = bytes_low + 1"),
    ("usage", "UPDATE counters SET bytes_high = bytes_high - 1"),
    ("foreign-key", "UPDATE inodes SET store_id = 99 WHERE id = 4"),
    ("integrity", "UPDATE inodes SET nlink = -1 WHERE id = 4"),
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGES)
async def test_damage_is_found(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill)
    await database.write(_populate)
    await database.aclose()
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute(damage)
    connection.close()

    try:
        database = Database.open(path, tracer=Tracer())
    except IndexDamaged as error:
        # A constraint that a row violates is found as soon as the index is opened.
        assert "CHECK constraint failed" in str(error)
        connection = apsw.Connection(str(path))
        found = check.check(Transaction(connection, writable=False, sequence=10), {"s1"})
        connection.close()
    else:
        found = await database.check({"s1"})
        await database.aclose()
    assert kind in {problem.kind for problem in found}, found


def test_every_kind_has_a_damage() -> None:
    kinds = {kind for kind, _, _ in check._QUERIES} | {
        "unreachable-directory",
        "usage",
        "missing-staged-file",
        "foreign-key",
        "integrity",
    }
    assert {kind for kind, _ in DAMAGES} == kinds


async def test_names_are_quoted(unchecked: Database) -> None:
    def write(tx: Transaction) -> None:
        not_a_directory = add_file(tx, ROOT, b"file")
        add_file(tx, not_a_directory.id, b"a\n\xff'{}")

    await unchecked.write(write)
    details = [problem.detail for problem in await unchecked.check()]
    assert '"a\\n\\udcff\'{}" is in inode 2, which is missing or not a directory' in details


async def test_many_problems_of_a_kind(unchecked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_PER_KIND", 3)

    def write(tx: Transaction) -> None:
        for at in range(5):
            inodes.update(tx, add_file(tx, ROOT, b"%d" % at).id, size_bytes=1)

    await unchecked.write(write)
    problems = await unchecked.check()
    assert {problem.kind for problem in problems} == {"missing-content"}
    assert len(problems) == 4
    assert problems[-1].detail == "and more of this kind"


async def test_malformed_pages_are_a_problem_too(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    database = volume.make(path)
    await database.write(volume.fill)
    await database.write(lambda tx: [add_file(tx, ROOT, b"%05d" % at) for at in range(2000)])
    await database.aclose()
    with path.open("r+b") as file:
        for page in range(20, 40):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    connection = apsw.Connection(str(path))
    found = check.check(Transaction(connection, writable=False, sequence=10), None)
    connection.close()
    assert {problem.kind for problem in found} >= {"integrity"}
