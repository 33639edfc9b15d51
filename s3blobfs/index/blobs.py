"""The tables ``blobs`` and ``blob_checksums``: what is stored in S3, and who counts on it.

Whether a blob may be referred to again and whether its object may be deleted are decided here, by one row in
one transaction: :func:`adopt` and :func:`add_ref` make references, :func:`drop_ref` and :func:`mark_due`
lead to DELETING, from which there is no way back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from s3blobfs.errors import BlobIsDeleting, DamagedContent, VolumeIndexError
from s3blobfs.index.transaction import Transaction, one
from s3blobfs.types import BlobContent, BlobLocation, ContentDigests, Keying, StoredContent


class BlobState(enum.Enum):
    LIVE = "live"
    """Inodes refer to it."""
    SUPERSEDED = "superseded"
    """An earlier version in a versioned store: no inode refers to it, kept until retention removes it."""
    GARBAGE = "garbage"
    """No inode refers to it; kept for its grace, in case the same content comes back."""
    DELETING = "deleting"
    """Marked: its object may be gone at any moment."""


@dataclass(frozen=True, slots=True)
class BlobRow:
    """One row; the schema says what each column means."""

    id: int
    store_id: int
    location: BlobLocation
    etag: str
    digests: ContentDigests
    """With checksums only where the function that returns the row says so."""
    refs: int
    state: BlobState
    created_ns: int
    unreferenced_ns: int | None

    def content(self) -> BlobContent:
        """For readers; of a row that has its checksums."""
        return BlobContent(self.id, self.store_id, self.location, self.etag, self.digests)


_COLUMNS = (
    "id, store_id, object_key, version_id, cache_name, etag, size_bytes, md5, sha256, refs, state,"
    " created_ns, unreferenced_ns"
)
_SELECT = f"SELECT {_COLUMNS}, x'' FROM blobs"  # noqa: S608
_SELECT_WITH_CHECKSUMS = (
    f"SELECT {_COLUMNS}, coalesce(checksums, x'')"  # noqa: S608
    " FROM blobs LEFT JOIN blob_checksums ON blob_id = id"
)
_OF_FILES = (
    f"SELECT cookie, dentries.inode_id, {', '.join(f'blobs.{each}' for each in _COLUMNS.split(', '))},"  # noqa: S608
    " coalesce(checksums, x'') FROM dentries INDEXED BY dentries_in_order"
    " CROSS JOIN inodes ON inodes.id = dentries.inode_id"
    " LEFT JOIN blobs ON blobs.id = inodes.blob_id"
    " LEFT JOIN blob_checksums ON blob_checksums.blob_id = blobs.id"
    " WHERE parent_id = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)
"""As in :mod:`s3blobfs.index.dentries`, the order of the loops is fixed."""
_RETURNING = f" RETURNING {_COLUMNS}, x''"
_INSERT = (
    f"INSERT INTO blobs ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, 1, 'live', ?, NULL)"  # noqa: S608
    " ON CONFLICT (store_id, object_key, version_id) DO NOTHING"
)


def get(tx: Transaction, blob_id: int) -> BlobRow:
    """With checksums. Raises :class:`VolumeIndexError`: whoever has an id has it from a reference, and what
    is referred to exists."""
    return _existing(one(tx.execute(_SELECT_WITH_CHECKSUMS + " WHERE id = ?", (blob_id,))), blob_id)


def find_id(tx: Transaction, blob_id: int) -> BlobRow | None:
    """With checksums."""
    row = one(tx.execute(_SELECT_WITH_CHECKSUMS + " WHERE id = ?", (blob_id,)))
    return _row(row) if row is not None else None


def of_files(
    tx: Transaction, parent: int, after_cookie: int, limit: int
) -> list[tuple[int, int, BlobRow | None]]:
    """``(cookie, inode id, blob)`` of the next ``limit`` entries of a directory in the order of its listing;
    no blob of what is no file or has no bytes. With checksums."""
    return [
        (row[0], row[1], _row(row[2:]) if row[2] is not None else None)
        for row in tx.execute(_OF_FILES, (parent, after_cookie, limit))
    ]


def find(tx: Transaction, store_id: int, object_key: str, version_id: str | None) -> BlobRow | None:
    """With checksums."""
    row = one(
        tx.execute(
            _SELECT_WITH_CHECKSUMS + " WHERE store_id = ? AND object_key = ? AND version_id = ?",
            (store_id, object_key, version_id or ""),
        )
    )
    return _row(row) if row is not None else None


def find_by_digest(tx: Transaction, sha256: bytes, size_bytes: int) -> list[BlobRow]:
    """Every blob with this content, in any store and state, the LIVE ones first. With checksums."""
    rows = tx.execute(
        _SELECT_WITH_CHECKSUMS + " WHERE sha256 = ? AND size_bytes = ? ORDER BY state <> 'live', id",
        (sha256, size_bytes),
    )
    return [_row(row) for row in rows]


def history(tx: Transaction, store_id: int, object_key: str) -> list[BlobRow]:
    """Every blob under a key, the oldest version first. Without checksums."""
    rows = tx.execute(_SELECT + " WHERE store_id = ? AND object_key = ? ORDER BY id", (store_id, object_key))
    return [_row(row) for row in rows]


# --- references ----------------------------------------------------------------------------------------


def adopt(
    tx: Transaction, store_id: int, stored: StoredContent, digests: ContentDigests, now_ns: int
) -> BlobRow:
    """Take a content that is in S3 into the index, with one reference more than it had. With checksums.

    Raises :class:`BlobIsDeleting` when its object is being deleted (upload again once the row is gone), and
    :class:`DamagedContent` when the index knows another content under this location.
    """
    location = stored.location
    tx.modify(
        _INSERT,
        (
            store_id,
            location.object_key,
            location.version_id or "",
            location.cache_name,
            stored.etag,
            digests.size_bytes,
            digests.md5,
            digests.sha256,
            now_ns,
        ),
    )
    if tx.changes():
        blob_id = tx.last_id()
        _store_checksums(tx, blob_id, digests)
        return BlobRow(blob_id, store_id, location, stored.etag, digests, 1, BlobState.LIVE, now_ns, None)
    known = find(tx, store_id, location.object_key, location.version_id)
    assert known is not None, "the index has a row of that name"
    if (known.digests.size_bytes, known.digests.sha256) != (digests.size_bytes, digests.sha256):
        raise DamagedContent(
            f"{location.object_key} is known to hold {known.digests.size_bytes} bytes with the SHA-256 "
            f"{known.digests.sha256.hex()}, not {digests.size_bytes} bytes with {digests.sha256.hex()}"
        )
    add_ref(tx, known.id)
    # The object may have been made anew since (deleted by somebody else, uploaded by us just now): the same
    # bytes, but ranged GETs with the former ETag would be refused.
    tx.modify("UPDATE blobs SET etag = ? WHERE id = ?", (stored.etag, known.id))
    if not known.digests.checksums:
        _store_checksums(tx, known.id, digests)
    return get(tx, known.id)


def add_ref(tx: Transaction, blob_id: int) -> BlobRow:
    """One more inode refers to the blob, which is LIVE from now on. Without checksums.

    Raises :class:`BlobIsDeleting`."""
    row = one(
        tx.modify(
            "UPDATE blobs SET refs = refs + 1, state = 'live', unreferenced_ns = NULL"  # noqa: S608
            " WHERE id = ? AND state <> 'deleting'" + _RETURNING,
            (blob_id,),
        )
    )
    if row is None:
        raise BlobIsDeleting(f"{get(tx, blob_id).location.object_key} is being deleted")
    return _row(row)


def move(tx: Transaction, blob_id: int, stored: StoredContent) -> BlobRow:
    """The content was stored anew, perhaps elsewhere: the row names that object from now on. With checksums.

    Raises :class:`BlobIsDeleting` when nobody wants it any more, and :class:`DamagedContent` when another row
    names that object."""
    location = stored.location
    other = find(tx, get(tx, blob_id).store_id, location.object_key, location.version_id)
    if other is not None and other.id != blob_id:
        raise DamagedContent(f"{location.object_key} is the object of blob {other.id} already")
    tx.modify(
        "UPDATE blobs SET object_key = ?, version_id = ?, cache_name = ?, etag = ?"
        " WHERE id = ? AND state <> 'deleting'",
        (location.object_key, location.version_id or "", location.cache_name, stored.etag, blob_id),
    )
    if not tx.changes():
        raise BlobIsDeleting(f"blob {blob_id} is not wanted any more")
    return get(tx, blob_id)


def set_checksums(tx: Transaction, blob_id: int, checksums: bytes) -> None:
    """In place of those that are known, if any."""
    tx.modify("INSERT OR REPLACE INTO blob_checksums VALUES (?, ?)", (blob_id, checksums))


def drop_ref(tx: Transaction, blob_id: int, now_ns: int, *, superseded: bool) -> BlobRow:
    """One inode less refers to the blob. Without checksums.

    With the last reference a blob of a digest store becomes GARBAGE. One of a versioned store becomes
    SUPERSEDED when the file has a newer version, else (the file was deleted) DELETING. Raises
    :class:`VolumeIndexError` when there was no reference."""
    row = one(
        tx.modify(
            "UPDATE blobs SET refs = refs - 1,"  # noqa: S608
            " state = CASE WHEN refs > 1 THEN state"
            "  WHEN (SELECT keying FROM stores WHERE stores.id = store_id) = ? THEN 'garbage'"
            "  WHEN ? THEN 'superseded' ELSE 'deleting' END,"
            " unreferenced_ns = CASE WHEN refs > 1 THEN NULL ELSE ? END"
            " WHERE id = ? AND refs > 0" + _RETURNING,
            (Keying.DIGEST.value, int(superseded), now_ns, blob_id),
        )
    )
    if row is None:
        raise VolumeIndexError(f"blob {blob_id} has no reference to drop")
    return _row(row)


# --- deletion ------------------------------------------------------------------------------------------


def mark_due(tx: Transaction, before_ns: int, limit: int) -> list[BlobRow]:
    """Mark as DELETING what has been GARBAGE since ``before_ns`` or longer, at most ``limit`` blobs, the
    oldest first, and return them. Without checksums."""
    rows = tx.modify(
        "UPDATE blobs SET state = 'deleting' WHERE id IN ("  # noqa: S608
        " SELECT id FROM blobs WHERE state = 'garbage' AND unreferenced_ns <= ?"
        " ORDER BY unreferenced_ns LIMIT ?)" + _RETURNING,
        (before_ns, limit),
    ).fetchall()
    return sorted((_row(row) for row in rows), key=lambda row: row.id)


def next_due_ns(tx: Transaction) -> int | None:
    """When the GARBAGE that is the oldest became so; ``None`` when there is none."""
    ((oldest,),) = tx.execute("SELECT min(unreferenced_ns) FROM blobs WHERE state = 'garbage'")
    return oldest  # type: ignore[no-any-return]


def has_future_garbage(tx: Transaction, now_ns: int) -> bool:
    """Whether there is GARBAGE since a time that has not come: the clock was put back."""
    ((found,),) = tx.execute(
        "SELECT EXISTS (SELECT 1 FROM blobs WHERE state = 'garbage' AND unreferenced_ns > ?)", (now_ns,)
    )
    return bool(found)


def mark_future_garbage(tx: Transaction, now_ns: int) -> None:
    """Let its grace begin now: otherwise it would last until that time comes."""
    tx.modify(
        "UPDATE blobs SET unreferenced_ns = ? WHERE state = 'garbage' AND unreferenced_ns > ?",
        (now_ns, now_ns),
    )


def deleting(tx: Transaction, limit: int, after_id: int = 0) -> list[BlobRow]:
    """Blobs marked for deletion, in the order of ids. Without checksums."""
    rows = tx.execute(_SELECT + " WHERE state = 'deleting' AND id > ? ORDER BY id LIMIT ?", (after_id, limit))
    return [_row(row) for row in rows]


def forget(tx: Transaction, blob_ids: Iterable[int]) -> None:
    """Remove rows whose objects are deleted. A row that is not DELETING stays."""
    for blob_id in blob_ids:
        tx.modify("DELETE FROM blobs WHERE id = ? AND state = 'deleting'", (blob_id,))


# --- all of them ---------------------------------------------------------------------------------------


def kept(tx: Transaction, after_id: int, last_id: int, limit: int) -> list[BlobRow]:
    """Blobs that are LIVE or SUPERSEDED, with ids from ``after_id`` (exclusive) to ``last_id``, in the order
    of ids. Without checksums."""
    rows = tx.execute(
        _SELECT + " WHERE id > ? AND id <= ? AND state IN ('live', 'superseded') ORDER BY id LIMIT ?",
        (after_id, last_id, limit),
    )
    return [_row(row) for row in rows]


def count_kept(tx: Transaction, after_id: int, last_id: int) -> int:
    """How many :func:`kept` would answer without a limit. Reads all of them."""
    ((count,),) = tx.execute(
        "SELECT count(*) FROM blobs WHERE id > ? AND id <= ? AND state IN ('live', 'superseded')",
        (after_id, last_id),
    )
    return count  # type: ignore[no-any-return]


# --- rows ----------------------------------------------------------------------------------------------


def _store_checksums(tx: Transaction, blob_id: int, digests: ContentDigests) -> None:
    if digests.checksums:
        tx.modify("INSERT INTO blob_checksums VALUES (?, ?)", (blob_id, digests.checksums))


def _existing(row: Any | None, blob_id: int) -> BlobRow:
    if row is None:
        raise VolumeIndexError(f"there is no blob {blob_id}")
    return _row(row)


def _row(row: Any) -> BlobRow:
    return BlobRow(
        id=row[0],
        store_id=row[1],
        location=BlobLocation(object_key=row[2], version_id=row[3] or None, cache_name=row[4]),
        etag=row[5],
        digests=ContentDigests(size_bytes=row[6], md5=row[7], sha256=row[8], checksums=row[13]),
        refs=row[9],
        state=BlobState(row[10]),
        created_ns=row[11],
        unreferenced_ns=row[12],
    )
