"""The schema, and how an older one becomes it. The comments in the SQL are the authoritative description of
every table and column; SQLite keeps them, so ``.schema`` in any SQLite shell shows them beside the data.

Conventions that hold throughout:

* Times are nanoseconds since 1970 as signed 64-bit integers, earlier times negative.
* Sizes are bytes, 0 … 2^63-1.
* Ids are never used twice (AUTOINCREMENT), so that whoever remembers one of something removed finds nothing
  rather than something else.
* Names given by users are BLOBs: Linux file names have no encoding.
* Every table is STRICT. A constraint states what no code path can ever leave behind; what spans tables and
  cannot be a constraint is a query of ``check.py``.

A change of the schema is a new entry at the end of :data:`MIGRATIONS`; the earlier ones never change, for
they are what indexes in use were made with. A new index runs through all of them, so that there is one
schema and not two that ought to be alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from s3blobfs.errors import IndexDamaged, IndexTooNew, IndexUnavailable

APPLICATION_ID = 0x53334246
"""``S3BF``, in the header of the file (``PRAGMA application_id``): file(1) and we can tell it is an index."""

_VERSION_1 = """
CREATE TABLE volume (
    -- What the volume is: one row, written by mkfs.
    only            INTEGER PRIMARY KEY CHECK (only = 1),
    -- UUID, 32 hexadecimal digits; the same is in the volume's settings object in the bucket, so that an
    -- index is never used with another volume's bucket.
    volume_id       TEXT    NOT NULL,
    -- Where the store 'default' and the volume's own objects live.
    bucket          TEXT    NOT NULL,
    prefix          TEXT    NOT NULL,
    -- What close() waits for: 's3' or 'disk'. A mount may choose otherwise for itself.
    durability      TEXT    NOT NULL,
    created_ns      INTEGER NOT NULL,
    -- Seconds that a blob without references is kept in a digest store: the same content often comes back.
    garbage_grace_s REAL    NOT NULL CHECK (garbage_grace_s >= 0)
) STRICT;

CREATE TABLE counters (
    -- What must be known at once and would otherwise be counted: one row. 'sequence' is written with each
    -- commit; the rest is kept by the triggers below, so no statement can forget it.
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    -- The number of the last write transaction that was committed. inodes.change is never larger.
    sequence   INTEGER NOT NULL,
    -- Rows of 'inodes'.
    inodes     INTEGER NOT NULL,
    -- The sum of inodes.size_bytes is bytes_high * 2^32 + bytes_low. In two parts, each a sum of parts,
    -- because two sparse files can exceed 64 bits together. bytes_low may exceed 2^32.
    bytes_high INTEGER NOT NULL,
    bytes_low  INTEGER NOT NULL
) STRICT;
INSERT INTO counters VALUES (1, 0, 0, 0, 0);

CREATE TABLE stores (
    -- Where blobs live and how they are keyed. Fixed once made; id 1 is the store 'default'.
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    -- How the command line calls it.
    name             TEXT    NOT NULL UNIQUE,
    bucket           TEXT    NOT NULL,
    -- Before every object key: empty, or ending in '/'.
    prefix           TEXT    NOT NULL CHECK (prefix = '' OR prefix LIKE '%/'),
    -- 'digest': the key is the content's digest. 'versioned': a file has one key, a change makes a version.
    keying           TEXT    NOT NULL CHECK (keying IN ('digest', 'versioned')),
    -- 'md5' or 'sha256'; without meaning in a versioned store.
    digest_algorithm TEXT    NOT NULL CHECK (digest_algorithm IN ('md5', 'sha256')),
    -- Whether the local tier keeps copies of what was read or written.
    cached           INTEGER NOT NULL CHECK (cached IN (0, 1)),
    -- Whether the server honours If-None-Match on a PUT; found out when the store was made.
    conditional_put  INTEGER NOT NULL CHECK (conditional_put IN (0, 1)),
    -- Two stores over the same keys would delete each other's objects.
    UNIQUE (bucket, prefix)
) STRICT;

CREATE TABLE inodes (
    -- A file, directory, symbolic link, device, pipe or socket; id 1 is the root directory. It exists as long
    -- as it has a name or is open: a row with nlink = 0 is an orphan, removed on last close or at next mount.
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- st_mode: file type and permission bits. The type never changes.
    mode       INTEGER NOT NULL,
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    -- Names of a file; of a directory 2 and one for each subdirectory, or 0 once it is removed.
    nlink      INTEGER NOT NULL CHECK (nlink >= 0),
    -- Of a regular file, the size of its stored content: its blob's, or while it has a row in 'uploads' that
    -- row's. What an open file has beyond that is not in the index. Of a symbolic link, the target's length.
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    atime_ns   INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    -- The device that a device node stands for, as st_rdev; else 0.
    rdev       INTEGER NOT NULL,
    -- Where a symbolic link leads; NULL for everything else.
    target     BLOB,
    -- The store that takes the content of a regular file, chosen by the directory in which it was made.
    -- A rename leaves it alone. NULL for everything but regular files.
    store_id   INTEGER REFERENCES stores,
    -- The key, without the store's prefix, that a versioned store gave the file for life; NULL otherwise.
    object_id  TEXT,
    -- The stored content; NULL while there is none (an empty file, or one that was never stored yet).
    blob_id    INTEGER REFERENCES blobs,
    -- counters.sequence of the transaction that changed the row last. Tells an outdated copy from a current
    -- one, and is st_change / STATX_CHANGE_COOKIE.
    change     INTEGER NOT NULL,
    CHECK (blob_id IS NULL OR store_id IS NOT NULL)
) STRICT;
-- Who refers to a blob; of use to check and needed by the foreign key when a blob's row is removed.
CREATE INDEX inodes_by_blob ON inodes (blob_id) WHERE blob_id IS NOT NULL;
-- What mount has to clean up, without reading the table.
CREATE INDEX inodes_orphaned ON inodes (id) WHERE nlink = 0;

CREATE TRIGGER inodes_counted AFTER INSERT ON inodes BEGIN
    UPDATE counters SET inodes = inodes + 1,
        bytes_high = bytes_high + (new.size_bytes >> 32),
        bytes_low = bytes_low + (new.size_bytes & 0xffffffff);
END;
CREATE TRIGGER inodes_discounted AFTER DELETE ON inodes BEGIN
    UPDATE counters SET inodes = inodes - 1,
        bytes_high = bytes_high - (old.size_bytes >> 32),
        bytes_low = bytes_low - (old.size_bytes & 0xffffffff);
END;
CREATE TRIGGER inodes_resized AFTER UPDATE OF size_bytes ON inodes
WHEN new.size_bytes <> old.size_bytes BEGIN
    UPDATE counters SET
        bytes_high = bytes_high - (old.size_bytes >> 32) + (new.size_bytes >> 32),
        bytes_low = bytes_low - (old.size_bytes & 0xffffffff) + (new.size_bytes & 0xffffffff);
END;

CREATE TABLE dentries (
    -- A name: what 'name' in directory 'parent_id' is. The root has none.
    -- The place within a directory listing. Rises with the age of the entry and stays when others come and go
    -- or when it is renamed, so a listing in progress can go on after any of them.
    cookie    INTEGER PRIMARY KEY AUTOINCREMENT,
    parent_id INTEGER NOT NULL REFERENCES inodes,
    -- 1 to 255 bytes without '/' and NUL, and neither '.' nor '..'.
    name      BLOB    NOT NULL CHECK (length(name) BETWEEN 1 AND 255 AND instr(name, x'2f') = 0
                                      AND instr(name, x'00') = 0 AND name NOT IN (x'2e', x'2e2e')),
    inode_id  INTEGER NOT NULL REFERENCES inodes,
    UNIQUE (parent_id, name)
) STRICT;
-- Listings in cookie order (an index ends in the row id).
CREATE INDEX dentries_in_order ON dentries (parent_id);
-- The names of an inode: paths upwards, and the foreign key.
CREATE INDEX dentries_by_inode ON dentries (inode_id);

CREATE TABLE store_bindings (
    -- Files made in this directory or below it, down to the next binding, get this store. Without any, as at
    -- the root, the store 'default'. The binding goes with the directory when that is renamed or removed.
    directory_id INTEGER PRIMARY KEY REFERENCES inodes ON DELETE CASCADE,
    store_id     INTEGER NOT NULL REFERENCES stores
) STRICT;

CREATE TABLE xattrs (
    -- Extended attributes; they go with their inode.
    inode_id INTEGER NOT NULL REFERENCES inodes ON DELETE CASCADE,
    -- With its namespace: 'user.comment'.
    name     BLOB    NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    value    BLOB    NOT NULL,
    PRIMARY KEY (inode_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE blobs (
    -- A content that is in S3, whole and immutable. The row is made after the object and removed after it.
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    store_id        INTEGER NOT NULL REFERENCES stores,
    -- The full key, the store's prefix included.
    object_key      TEXT    NOT NULL,
    -- S3's version id in a versioned store; empty in a digest store (not NULL, which is never equal to NULL
    -- and so would escape the uniqueness below).
    version_id      TEXT    NOT NULL,
    -- The file's name in the local cache.
    cache_name      TEXT    NOT NULL,
    -- Sent as If-Match with ranged GETs; opaque.
    etag            TEXT    NOT NULL,
    size_bytes      INTEGER NOT NULL CHECK (size_bytes >= 0),
    md5             BLOB    NOT NULL CHECK (length(md5) = 16),
    sha256          BLOB    NOT NULL CHECK (length(sha256) = 32),
    -- How many rows of 'inodes' name this blob.
    refs            INTEGER NOT NULL CHECK (refs >= 0),
    -- 'live': refs > 0. All others have refs = 0.
    -- 'superseded': an earlier version in a versioned store, kept until retention removes it.
    -- 'garbage': kept for its grace, in case the same content comes back.
    -- 'deleting': its object may be gone at any moment; never referred to again.
    state           TEXT    NOT NULL CHECK (state IN ('live', 'superseded', 'garbage', 'deleting')),
    created_ns      INTEGER NOT NULL,
    -- When the last reference went; NULL while live.
    unreferenced_ns INTEGER,
    UNIQUE (store_id, object_key, version_id),
    CHECK ((state = 'live') = (refs > 0)),
    CHECK ((state = 'live') = (unreferenced_ns IS NULL))
) STRICT;
-- Is this content stored already, anywhere?
CREATE INDEX blobs_by_sha256 ON blobs (sha256);
-- What the reaper has to do, without reading the table.
CREATE INDEX blobs_garbage ON blobs (unreferenced_ns) WHERE state = 'garbage';
CREATE INDEX blobs_deleting ON blobs (id) WHERE state = 'deleting';

CREATE TABLE blob_checksums (
    -- Apart from 'blobs' so that its rows stay small: this may be megabytes. None for empty content, and none
    -- where the checksums are not known.
    blob_id   INTEGER PRIMARY KEY REFERENCES blobs ON DELETE CASCADE,
    -- CRC-32 of each block of the content, big-endian, 4 bytes each.
    checksums BLOB    NOT NULL
) STRICT;

CREATE TABLE uploads (
    -- The journal: contents that are whole in the local tier and not yet in S3. The ids are in the order in
    -- which they were staged; of several for one inode only the newest counts.
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    inode_id    INTEGER NOT NULL REFERENCES inodes,
    -- The store it goes to.
    store_id    INTEGER NOT NULL REFERENCES stores,
    -- The staged file in the local tier. One row has it to itself.
    staged_name TEXT    NOT NULL,
    size_bytes  INTEGER NOT NULL CHECK (size_bytes >= 0),
    -- Sent with the PUT, so that after an answer was lost the object can be known for ours.
    write_id    TEXT    NOT NULL,
    -- 'sealed': closed, the content final. 'dirty': synced to disk while still open for writing.
    state       TEXT    NOT NULL CHECK (state IN ('sealed', 'dirty')),
    created_ns  INTEGER NOT NULL,
    -- How often the upload failed, and how the last time.
    attempts    INTEGER NOT NULL,
    last_error  TEXT,
    -- The digests of a sealed content; NULL together for a dirty one. Checksums last: they may be long, and
    -- a column before them can be read without them.
    md5         BLOB CHECK (length(md5) = 16),
    sha256      BLOB CHECK (length(sha256) = 32),
    checksums   BLOB,
    CHECK ((state = 'sealed') = (md5 IS NOT NULL)),
    CHECK ((md5 IS NULL) = (sha256 IS NULL) AND (md5 IS NULL) = (checksums IS NULL))
) STRICT;
CREATE INDEX uploads_by_inode ON uploads (inode_id);
"""

_VERSION_2 = """
CREATE TABLE replica (
    -- How far the copy of this index in the bucket is: one row, from the first segment on. It is about this
    -- very file, so it is never part of what is sent, and a copy of the file begins without it.
    only           INTEGER PRIMARY KEY CHECK (only = 1),
    -- The segment that was sent last, or was about to be: written before each is sent.
    number         INTEGER NOT NULL CHECK (number >= 0),
    -- Its digest, and that of the one before it, in hexadecimal; empty where there is none.
    digest         TEXT    NOT NULL,
    previous       TEXT    NOT NULL,
    -- counters.sequence of the state that it completes.
    sequence       INTEGER NOT NULL,
    -- PRAGMA user_version of that state: changes do not reach across a migration.
    schema_version INTEGER NOT NULL,
    -- 0 in an index that was just recovered: its first mount makes itself known in the bucket, so that the
    -- machine it was recovered from, should it still run, hears of it.
    claimed        INTEGER NOT NULL CHECK (claimed IN (0, 1))
) STRICT;
"""

_VERSION_3 = """
CREATE TABLE scrubs (
    -- The comparison of blobs with their objects that is under way, or was the last one: one row at most.
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    -- 'head': what S3 says of each object. 'read': every byte.
    depth      TEXT    NOT NULL CHECK (depth IN ('head', 'read')),
    started_ns INTEGER NOT NULL,
    -- NULL until it has come to its end.
    ended_ns   INTEGER,
    -- Blobs up to this id are done, of those up to 'last_id', which was the newest when it began.
    cursor     INTEGER NOT NULL,
    last_id    INTEGER NOT NULL,
    -- How many were compared, and how many bytes were read for that.
    blobs      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL
) STRICT;

CREATE TABLE damages (
    -- A log: what was found wrong with objects, and what became of it.
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The blob, and where its object was. The log outlives the row, hence no foreign key.
    blob_id    INTEGER NOT NULL,
    store_id   INTEGER NOT NULL,
    object_key TEXT    NOT NULL,
    version_id TEXT    NOT NULL,
    -- A word for programs, and a sentence for people.
    kind       TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    found_ns   INTEGER NOT NULL,
    -- NULL as long as the object is damaged; then when, and by what, that ended.
    closed_ns  INTEGER,
    outcome    TEXT,
    CHECK ((closed_ns IS NULL) = (outcome IS NULL))
) STRICT;
CREATE UNIQUE INDEX damages_open ON damages (blob_id) WHERE closed_ns IS NULL;
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3)
"""Entry n takes an index from version n to n + 1; version 0 is an empty database."""


def migrate(connection: apsw.Connection, migrations: Sequence[str]) -> None:
    """Bring the index to the newest version, wholly or (after an error or a crash) not at all.

    Raises :class:`IndexTooNew`, and :class:`IndexDamaged` where the data do not fit the new schema.
    """
    newest, version = len(migrations), known_version(connection, migrations)
    if version == newest:
        return
    # A migration may rebuild a table, which foreign keys would take for removing its rows; SQLite ignores
    # this pragma inside a transaction.
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        connection.execute("BEGIN EXCLUSIVE")
        try:
            for sql in migrations[version:]:
                connection.execute(sql).fetchall()
            violated = connection.execute("PRAGMA foreign_key_check").fetchall()
            if violated:
                raise IndexDamaged(f"the index cannot be migrated: its table {violated[0][0]} has stray rows")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {newest}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def require_newest(connection: apsw.Connection, migrations: Sequence[str]) -> None:
    """For an index that must not be written to. Raises :class:`IndexTooNew`, :class:`IndexUnavailable`."""
    if known_version(connection, migrations) < len(migrations):
        raise IndexUnavailable("the index is of an older version; open it for writing once to migrate it")


def require_ours(connection: apsw.Connection) -> None:
    """That a file from elsewhere has the tables, indexes and triggers of its version and nothing else: what a
    schema says is run by whoever writes to the file. Raises :class:`IndexDamaged`, :class:`IndexTooNew`."""
    version = known_version(connection, MIGRATIONS)
    model = apsw.Connection(":memory:")
    try:
        for sql in MIGRATIONS[:version]:
            model.execute(sql).fetchall()
        query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
        expected, found = model.execute(query).fetchall(), connection.execute(query).fetchall()
    finally:
        model.close(True)
    if found != expected:
        strange = sorted(str(each[1])[:40] for each in set(found) ^ set(expected))
        raise IndexDamaged(f"the schema is not that of an index of ours: see {', '.join(strange[:5])}")


def known_version(connection: apsw.Connection, migrations: Sequence[str]) -> int:
    """Raises :class:`IndexTooNew`."""
    version: int = connection.pragma("user_version")
    if version > len(migrations):
        raise IndexTooNew(
            f"the index has version {version} and this program knows versions up to {len(migrations)}; "
            "install the newer program that wrote it"
        )
    return version
