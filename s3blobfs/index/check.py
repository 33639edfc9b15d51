"""The invariants of the index, each a query for what breaks it.

What one row or one foreign key can guarantee is a constraint in the schema; it is asked here all the same,
because a check is for indexes in which something happened that cannot happen.
"""

# The queries are put together from the constants below, not from data.
# ruff: noqa: S608

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import apsw

from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.index.transaction import Transaction, Value
from s3blobfs.types import CHECKSUM_BLOCK_BYTES

MAX_PER_KIND = 1000
"""So many problems of a kind are named; one more says that there are others."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with the index."""

    kind: str
    """A word for programs; the same for all problems that one query finds."""
    detail: str
    """A sentence for people."""
    subject: tuple[Value, ...] = ()
    """The row that the kind's query found, its id first: what :mod:`s3blobfs.index.repair` works on."""


def check(tx: Transaction, staged_names: Collection[str] | None) -> list[Problem]:
    """Everything that is wrong; nothing is, in an index that was only ever used through this package.

    ``staged_names`` are the files in the staging area of the local tier; ``None`` where it is not at hand.
    Reads the whole index: seconds for millions of files. SQLite's own errors are problems, too."""
    found: list[Problem] = []
    try:
        for check_ in (_integrity, _foreign_keys, _invariants, _reachability, _usage):
            found += check_(tx)
        found += _staged_files(tx, staged_names)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        found.append(Problem("integrity", f"the rest cannot be read: {error}"))
    return found


# --- what a query can tell -----------------------------------------------------------------------------

_IS_DIRECTORY = "(mode & 0xf000) = 0x4000"
_IS_FILE = "(mode & 0xf000) = 0x8000"
_IS_SYMLINK = "(mode & 0xf000) = 0xa000"
_CHECKSUMS_BYTES = f"4 * ((size_bytes + {CHECKSUM_BLOCK_BYTES - 1}) / {CHECKSUM_BLOCK_BYTES})"

_QUERIES: tuple[tuple[str, str, str], ...] = (
    (
        "root",
        "the root (inode {}) is missing or not a directory",
        f"SELECT {ROOT_INODE_ID} WHERE NOT EXISTS"
        f" (SELECT 1 FROM inodes WHERE id = {ROOT_INODE_ID} AND {_IS_DIRECTORY})",
    ),
    (
        "dangling-name",
        "{} in directory {} names inode {}, which does not exist",
        "SELECT name, parent_id, inode_id FROM dentries"
        " WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE id = inode_id)",
    ),
    (
        "name-outside-directory",
        "{} is in inode {}, which is missing or not a directory",
        "SELECT name, parent_id FROM dentries"
        f" WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE id = parent_id AND {_IS_DIRECTORY})",
    ),
    (
        "unnamed-inode",
        "inode {} has no name, but a link count of {}",
        f"SELECT id, nlink FROM inodes WHERE nlink > 0 AND id <> {ROOT_INODE_ID}"
        " AND NOT EXISTS (SELECT 1 FROM dentries WHERE inode_id = id)",
    ),
    (
        "link-count",
        "inode {} has a link count of {} and {} names",
        "SELECT id, nlink, count(*) AS names FROM dentries JOIN inodes ON id = inode_id"
        f" WHERE NOT {_IS_DIRECTORY} GROUP BY id HAVING nlink <> names",
    ),
    (
        "link-count",
        "directory {} has a link count of {} and {} subdirectories",
        "SELECT id, nlink, subdirectories FROM"
        " (SELECT id, nlink, (SELECT count(*) FROM dentries JOIN inodes AS child ON child.id = inode_id"
        "   WHERE parent_id = inodes.id AND (child.mode & 0xf000) = 0x4000) AS subdirectories"
        f"  FROM inodes WHERE {_IS_DIRECTORY} AND"
        f"  (id = {ROOT_INODE_ID} OR EXISTS (SELECT 1 FROM dentries WHERE inode_id = id)))"
        " WHERE nlink <> 2 + subdirectories",
    ),
    (
        "directory-names",
        "directory {} has {} names",
        "SELECT id, count(*) AS names FROM dentries JOIN inodes ON id = inode_id"
        f" WHERE {_IS_DIRECTORY} GROUP BY id HAVING names > (id <> {ROOT_INODE_ID})",
    ),
    (
        "removed-directory",
        "directory {} is removed and has entries",
        f"SELECT id FROM inodes WHERE nlink = 0 AND {_IS_DIRECTORY}"
        " AND EXISTS (SELECT 1 FROM dentries WHERE parent_id = id)",
    ),
    (
        "change",
        "inode {} has change {}, which is not yet given",
        "SELECT id, change FROM inodes WHERE change > ?",
    ),
    (
        "blob-on-non-file",
        "inode {} is not a regular file and has blob {}",
        f"SELECT id, blob_id FROM inodes WHERE blob_id IS NOT NULL AND NOT {_IS_FILE}",
    ),
    (
        "missing-blob",
        "inode {} has blob {}, which does not exist",
        "SELECT id, blob_id FROM inodes WHERE blob_id IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.id = blob_id)",
    ),
    (
        "deleting-blob",
        "inode {} has blob {}, which is being deleted",
        "SELECT inodes.id, blob_id FROM inodes JOIN blobs ON blobs.id = blob_id WHERE state = 'deleting'",
    ),
    (
        "missing-content",
        "inode {} has {} bytes, but neither a blob nor a row in the journal",
        f"SELECT id, size_bytes FROM inodes WHERE {_IS_FILE} AND size_bytes > 0 AND blob_id IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM uploads WHERE inode_id = inodes.id)",
    ),
    (
        "size",
        "inode {} has {} bytes and its content {}",
        "SELECT inodes.id, inodes.size_bytes, coalesce(uploads.size_bytes, blobs.size_bytes) AS content_bytes"
        " FROM inodes LEFT JOIN blobs ON blobs.id = blob_id LEFT JOIN uploads ON uploads.id ="
        "  (SELECT max(latest.id) FROM uploads AS latest WHERE latest.inode_id = inodes.id)"
        f" WHERE {_IS_FILE} AND inodes.size_bytes <> content_bytes",
    ),
    (
        "size",
        "symbolic link {} has {} bytes and its target {}",
        "SELECT id, size_bytes, length(target) FROM inodes"
        f" WHERE {_IS_SYMLINK} AND size_bytes IS NOT length(target)",
    ),
    (
        "blob-references",
        "blob {} counts {} references and {} inodes have it",
        "SELECT id, refs, users FROM (SELECT id, refs, (SELECT count(*) FROM inodes WHERE blob_id = blobs.id)"
        " AS users FROM blobs) WHERE refs <> users",
    ),
    (
        "blob-state",
        "blob {} is {} with {} references",
        "SELECT id, state, refs FROM blobs"
        " WHERE (state = 'live') <> (refs > 0) OR (state = 'live') <> (unreferenced_ns IS NULL)",
    ),
    (
        "checksums",
        "blob {} has {} bytes of checksums, which does not fit its {} bytes",
        "SELECT id, length(checksums), size_bytes FROM blob_checksums JOIN blobs ON id = blob_id"
        f" WHERE length(checksums) <> {_CHECKSUMS_BYTES}",
    ),
    (
        "checksums",
        "the journal's row {} has {} bytes of checksums, which does not fit its {} bytes",
        "SELECT id, length(checksums), size_bytes FROM uploads"
        f" WHERE length(checksums) <> {_CHECKSUMS_BYTES}",
    ),
    (
        "journal-without-file",
        "the journal's row {} is for inode {}, which is missing or not a regular file",
        "SELECT id, inode_id FROM uploads"
        f" WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE inodes.id = inode_id AND {_IS_FILE})",
    ),
    (
        "shared-staged-file",
        "the journal names the staged file {} in {} rows",
        "SELECT staged_name, count(*) FROM uploads GROUP BY staged_name HAVING count(*) > 1",
    ),
    (
        "xattr-without-inode",
        "the extended attribute {} is of inode {}, which does not exist",
        "SELECT name, inode_id FROM xattrs WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE id = inode_id)",
    ),
    (
        "binding",
        "inode {} is bound to store {}: it is not a directory, or the store does not exist",
        "SELECT directory_id, store_id FROM store_bindings"
        f" WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE inodes.id = directory_id AND {_IS_DIRECTORY})"
        " OR NOT EXISTS (SELECT 1 FROM stores WHERE stores.id = store_bindings.store_id)",
    ),
)


def _invariants(tx: Transaction) -> Iterator[Problem]:
    for kind, sentence, sql in _QUERIES:
        yield from _named(tx, kind, sentence, sql, (tx.sequence,) if "?" in sql else ())


def _reachability(tx: Transaction) -> Iterator[Problem]:
    """A directory that has a name and cannot be come by from the root is in a cycle, or below one, or below
    something removed."""
    yield from _named(
        tx,
        "unreachable-directory",
        "directory {} cannot be reached from the root",
        f"WITH RECURSIVE reached (id) AS (VALUES ({ROOT_INODE_ID}) UNION"
        " SELECT inode_id FROM reached JOIN dentries ON parent_id = reached.id"
        f"  JOIN inodes ON inodes.id = inode_id WHERE {_IS_DIRECTORY})"
        f" SELECT id FROM inodes WHERE {_IS_DIRECTORY} AND id NOT IN reached"
        "  AND EXISTS (SELECT 1 FROM dentries WHERE inode_id = inodes.id)",
    )


def _usage(tx: Transaction) -> Iterator[Problem]:
    # Summed in two parts, as the counters are: the whole may exceed 64 bits.
    yield from _named(
        tx,
        "usage",
        "the counters say {} inodes with {} * 2^32 + {} bytes, and it is {} with {} * 2^32 + {}",
        "SELECT * FROM (SELECT inodes, bytes_high, bytes_low FROM counters),"
        " (SELECT count(*) AS truly, coalesce(sum(size_bytes >> 32), 0) AS high,"
        "  coalesce(sum(size_bytes & 0xffffffff), 0) AS low FROM inodes)"
        " WHERE inodes <> truly OR bytes_high <> high OR bytes_low <> low",
    )


def _staged_files(tx: Transaction, staged_names: Collection[str] | None) -> Iterator[Problem]:
    if staged_names is None:
        return
    present = frozenset(staged_names)
    for upload_id, name in tx.execute("SELECT id, staged_name FROM uploads ORDER BY id"):
        if name not in present:
            yield Problem(
                "missing-staged-file",
                f"the journal's row {upload_id} has no staged file {shown(name)}",
                (upload_id,),
            )


# --- what SQLite can tell ------------------------------------------------------------------------------


def _integrity(tx: Transaction) -> Iterator[Problem]:
    """Pages, indexes and the constraints of single rows."""
    for (answer,) in tx.execute("PRAGMA integrity_check"):
        if answer != "ok":
            yield Problem("integrity", answer, (answer,))


def _foreign_keys(tx: Transaction) -> Iterator[Problem]:
    stray: Counter[tuple[str, str]] = Counter()
    for table, _row_id, referred, _key in tx.execute("PRAGMA foreign_key_check"):
        stray[table, referred] += 1
    for (table, referred), rows in stray.items():
        yield Problem(
            "foreign-key",
            f"{rows} rows of {table} refer to rows of {referred} that do not exist",
            (table, referred),
        )


def _named(
    tx: Transaction, kind: str, sentence: str, sql: str, parameters: tuple[int, ...] = ()
) -> Iterator[Problem]:
    rows: list[Any] = tx.execute(f"{sql} LIMIT {MAX_PER_KIND + 1}", parameters).fetchall()
    for row in rows[:MAX_PER_KIND]:
        yield Problem(kind, sentence.format(*map(shown, row)), tuple(row))
    if len(rows) > MAX_PER_KIND:
        yield Problem(kind, "and more of this kind")


def shown(value: Any) -> str:
    """Names are data: quoted, so that none can look like a part of the sentence."""
    if isinstance(value, bytes):
        return repr(os.fsdecode(value))
    return repr(value) if isinstance(value, str) else str(value)
