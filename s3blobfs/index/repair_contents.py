"""Mending contents: blobs, their references, the journal, sizes. See :mod:`s3blobfs.index.repair`.

A file whose content is gone gets its earlier one, where the index still knows one; that is what recovery does
as well. Where there is none the file keeps its size and stays unreadable: an empty file in its place would
pass for what was written.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from s3blobfs.index import blobs, dentries, inodes, stores, uploads
from s3blobfs.index.blobs import BlobRow, BlobState
from s3blobfs.index.check import shown
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.repair_names import CannotMend, Subject, add_to_lost_and_found, integer
from s3blobfs.index.stores import DEFAULT_STORE_ID
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, ContentDigests, Keying, StoredContent

_RECOVERED_MODE = stat.S_IFREG | 0o600


@dataclass(frozen=True, slots=True)
class FoundContent:
    """An object that no row names and that says of itself that it is a file's content."""

    store_id: int
    stored: StoredContent
    digests: ContentDigests
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out outside the index, before the transaction."""

    staged_names: Collection[str] | None = None
    """The staged files on the local disk; ``None`` where the tier is not at hand."""
    object_is_there: bool | None = None
    """Of a problem about one blob: whether S3 has its object. ``None``: nobody asked."""
    content: FoundContent | None = None
    """Of a file whose content the index does not know any more: what S3 has of it."""


# --- blobs ---------------------------------------------------------------------------------------------


def blob_on_non_file(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    inode = inodes.find(tx, integer(subject[0]))
    if inode is None or inode.blob_id is None or stat.S_ISREG(inode.mode):
        return None
    _point(tx, inode, None, now_ns)
    return "took the content away from it"


def _missing_blob(tx: Transaction, subject: Subject, now_ns: int, evidence: Evidence) -> str | None:
    inode = inodes.find(tx, integer(subject[0]))
    if inode is None or inode.blob_id is None or blobs.find_id(tx, inode.blob_id) is not None:
        return None
    if evidence.content is not None:
        return _give_back(tx, inodes.with_blob(tx, inode.blob_id), evidence.content, now_ns)
    _point(tx, inode, None, now_ns)
    if uploads.latest_of(tx, inode.id) is not None:
        return "the journal has its content, which counts"
    return _fall_back(tx, inode, now_ns) or "the file has no content now"


def _deleting_blob(tx: Transaction, subject: Subject, now_ns: int, evidence: Evidence) -> str | None:
    inode, row = inodes.find(tx, integer(subject[0])), blobs.find_id(tx, integer(subject[1]))
    if inode is None or row is None or row.state is not BlobState.DELETING or inode.blob_id != row.id:
        return None
    if evidence.object_is_there is None:
        raise CannotMend("S3 was not asked whether the object is there")
    if evidence.object_is_there:
        tx.modify("UPDATE blobs SET state = 'live', refs = 1, unreferenced_ns = NULL WHERE id = ?", (row.id,))
        _settle(tx, row.id, now_ns)
        return "S3 has the object: it is not deleted after all"
    _point(tx, inode, None, now_ns)
    return _fall_back(tx, inode, now_ns) or "S3 does not have the object: the file has no content now"


def blob_references(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    return _settle(tx, integer(subject[0]), now_ns)


def checksums(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """Of a blob: dropped, its bytes are then judged by their digest alone. Of a row of the journal: it is
    hashed anew when it is recovered."""
    row_id = integer(subject[0])
    fitting = f"4 * ((size_bytes + {CHECKSUM_BLOCK_BYTES - 1}) / {CHECKSUM_BLOCK_BYTES})"
    tx.modify(
        "DELETE FROM blob_checksums WHERE blob_id = ? AND length(checksums) <>"  # noqa: S608
        f" (SELECT {fitting} FROM blobs WHERE id = blob_id)",
        (row_id,),
    )
    if tx.changes():
        return "removed the checksums of the blob"
    tx.modify(
        "UPDATE uploads SET state = 'dirty', md5 = NULL, sha256 = NULL, checksums = NULL"  # noqa: S608
        f" WHERE id = ? AND length(checksums) <> {fitting}",
        (row_id,),
    )
    return "the staged file is hashed anew at the next mount" if tx.changes() else None


# --- the journal ---------------------------------------------------------------------------------------


def journal_without_file(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """The content was acknowledged: a file is made for it."""
    row = uploads.find(tx, integer(subject[0]))
    if row is None:
        return None
    inode = inodes.find(tx, row.inode_id)
    if inode is not None and stat.S_ISREG(inode.mode):
        return None
    store_id, object_id = _place(tx, row.store_id)
    made = inodes.insert(
        tx,
        mode=_RECOVERED_MODE,
        uid=os.geteuid(),
        gid=os.getegid(),
        nlink=1,
        now_ns=now_ns,
        store_id=store_id,
        object_id=object_id,
        size_bytes=row.size_bytes,
    )
    path = add_to_lost_and_found(tx, made.id, b"#%d" % row.inode_id, now_ns)
    tx.modify("UPDATE uploads SET inode_id = ?, store_id = ? WHERE id = ?", (made.id, store_id, row.id))
    return f"its content is that of {path} now"


def shared_staged_file(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """The newest row keeps the file."""
    rows: list[Any] = tx.execute(
        "SELECT id, inode_id FROM uploads WHERE staged_name = ? ORDER BY id", (subject[0],)
    ).fetchall()
    older = rows[:-1]
    for upload_id, inode_id in older:
        uploads.finish(tx, upload_id)
        inode = inodes.find(tx, inode_id)
        if inode is not None and uploads.latest_of(tx, inode_id) is None:
            _fall_back(tx, inode, now_ns)
    return f"removed {len(older)} older rows" if older else None


def _missing_staged_file(tx: Transaction, subject: Subject, now_ns: int, evidence: Evidence) -> str | None:
    """As recovery does: of several contents the newest counts that is there."""
    row = uploads.find(tx, integer(subject[0]))
    if row is None or evidence.staged_names is None or row.staged_name in evidence.staged_names:
        return None
    inode = inodes.get(tx, row.inode_id)
    uploads.finish(tx, row.id)
    other = uploads.latest_of(tx, inode.id)
    if other is not None:
        inodes.update(tx, inode.id, size_bytes=other.size_bytes)
        return (
            f"{row.size_bytes} bytes written to {_path(tx, inode.id)} are lost; other staged content counts"
        )
    restored = _fall_back(tx, inode, now_ns)
    if restored is None:
        raise _lost(tx, inode.id)
    return f"{row.size_bytes} bytes written to {_path(tx, inode.id)} are lost: {restored}"


# --- inodes --------------------------------------------------------------------------------------------


def _missing_content(tx: Transaction, subject: Subject, now_ns: int, evidence: Evidence) -> str | None:
    inode = inodes.find(tx, integer(subject[0]))
    if inode is None or not inode.size_bytes or inode.blob_id is not None:
        return None
    if uploads.latest_of(tx, inode.id) is not None:
        return None
    if evidence.content is not None:
        return _give_back(tx, [inode], evidence.content, now_ns)
    restored = _fall_back(tx, inode, now_ns)
    if restored is None:
        raise _lost(tx, inode.id)
    return restored


def size(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    inode = inodes.find(tx, integer(subject[0]))
    if inode is None:
        return None
    if stat.S_ISLNK(inode.mode):
        if inode.target is None:
            raise CannotMend(f"the symbolic link {_path(tx, inode.id)} leads nowhere: remove it")
        size_bytes = len(inode.target)
    else:
        journalled = uploads.latest_of(tx, inode.id)
        row = blobs.find_id(tx, inode.blob_id) if inode.blob_id is not None else None
        if journalled is None and row is None:
            return None
        size_bytes = journalled.size_bytes if journalled is not None else row.digests.size_bytes  # type: ignore[union-attr]
    if size_bytes == inode.size_bytes:
        return None
    inodes.update(tx, inode.id, size_bytes=size_bytes)
    return f"set it to {size_bytes}"


def give_stores(tx: Transaction) -> str | None:
    """Files that go to a store that does not exist: to that of their content, else to ``default``."""
    rows: list[Any] = tx.execute(
        "SELECT id FROM inodes WHERE store_id IS NOT NULL AND store_id NOT IN (SELECT id FROM stores)"
    ).fetchall()
    for (inode_id,) in rows:
        inode = inodes.get(tx, inode_id)
        blob = blobs.find_id(tx, inode.blob_id) if inode.blob_id is not None else None
        store_id, object_id = _place(tx, blob.store_id if blob is not None else DEFAULT_STORE_ID)
        inodes.update(tx, inode_id, store_id=store_id, object_id=inode.object_id or object_id)
    return f"gave {len(rows)} files a store that exists" if rows else None


WITH_EVIDENCE: Mapping[str, Callable[[Transaction, Subject, int, Evidence], str | None]] = {
    "missing-blob": _missing_blob,
    "deleting-blob": _deleting_blob,
    "missing-staged-file": _missing_staged_file,
    "missing-content": _missing_content,
}
"""Kinds whose mending depends on what is in S3, or on the local disk."""


# --- parts ---------------------------------------------------------------------------------------------


def _give_back(tx: Transaction, files: list[InodeRow], content: FoundContent, now_ns: int) -> str:
    """Make the row of a content anew, for every file that had it."""
    row = blobs.adopt(tx, content.store_id, content.stored, content.digests, content.modified_ns)
    for inode in files:
        _point(tx, inode, row.id, now_ns)
    key = shown(content.stored.location.object_key)
    return f"{_path(tx, files[0].id)} has its content again, by what the object {key} says of itself"


def _settle(tx: Transaction, blob_id: int, now_ns: int) -> str | None:
    """Count a blob's references, and give it the state that goes with them. What is marked stays so: that
    its object still exists is not known here."""
    ((users,),) = tx.execute("SELECT count(*) FROM inodes WHERE blob_id = ?", (blob_id,))
    if users:
        state, unreferenced_ns = "'live'", "NULL"
    else:
        state = (
            "CASE WHEN state <> 'live' THEN state"
            " WHEN (SELECT keying FROM stores WHERE stores.id = store_id) = 'digest' THEN 'garbage'"
            " ELSE 'superseded' END"
        )
        unreferenced_ns = f"coalesce(unreferenced_ns, {now_ns:d})"
    tx.modify(
        f"UPDATE blobs SET refs = ?, state = {state}, unreferenced_ns = {unreferenced_ns}"  # noqa: S608
        " WHERE id = ? AND (? = 0 OR state <> 'deleting')",
        (users, blob_id, users),
    )
    return f"counted {users}" if tx.changes() else None


def _point(tx: Transaction, inode: InodeRow, blob_id: int | None, now_ns: int) -> None:
    """Let the inode have another blob, or none; the references of both are right afterwards."""
    inodes.update(tx, inode.id, blob_id=blob_id)
    for each in (inode.blob_id, blob_id):
        if each is not None and blobs.find_id(tx, each) is not None:
            _settle(tx, each, now_ns)


def _fall_back(tx: Transaction, inode: InodeRow, now_ns: int) -> str | None:
    """Give a file the content that S3 has of it; answers what it is, or ``None`` when there is none."""
    inode = inodes.get(tx, inode.id)
    row = blobs.find_id(tx, inode.blob_id) if inode.blob_id is not None else _earlier(tx, inode)
    if row is None:
        return None
    _point(tx, inode, row.id, now_ns)
    inodes.update(tx, inode.id, size_bytes=row.digests.size_bytes)
    return f"{_path(tx, inode.id)} has its earlier content of {row.digests.size_bytes} bytes"


def _earlier(tx: Transaction, inode: InodeRow) -> BlobRow | None:
    """The newest version of the file that is kept."""
    if inode.object_id is None or inode.store_id is None:
        return None
    store = next((each for each in stores.every(tx) if each.id == inode.store_id), None)
    if store is None or store.keying is not Keying.VERSIONED:
        return None
    history = blobs.history(tx, store.id, store.prefix + inode.object_id)
    return next((row for row in reversed(history) if row.state is not BlobState.DELETING), None)


def _place(tx: Transaction, store_id: int) -> tuple[int, str | None]:
    """A store that exists, and a key for a new file in it."""
    known = {store.id: store for store in stores.every(tx)}
    store = known.get(store_id) or known[DEFAULT_STORE_ID]
    return store.id, uuid.uuid4().hex if store.keying is Keying.VERSIONED else None


def _path(tx: Transaction, inode_id: int) -> str:
    path = dentries.path_of(tx, inode_id)
    return shown(path) if path is not None else f"inode {inode_id}"


def _lost(tx: Transaction, inode_id: int) -> CannotMend:
    return CannotMend(
        f"the content of {_path(tx, inode_id)} is lost: bring it back from elsewhere, or remove it"
    )
