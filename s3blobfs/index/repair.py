"""Mending what :mod:`s3blobfs.index.check` finds: a defined step for each kind of problem.

A mending is made of one problem in one transaction. It looks again before it changes anything, for an earlier
mending may have settled the problem by the way; and it makes nothing up: what was lost stays lost and is
said to be. Names and contents that nothing leads to any more go to the directory ``lost+found``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from s3blobfs.index import repair_contents, repair_names
from s3blobfs.index.check import Problem
from s3blobfs.index.repair_contents import Evidence, FoundContent
from s3blobfs.index.repair_names import CannotMend
from s3blobfs.index.transaction import Transaction, Value

__all__ = ["LIVE_KINDS", "ORDER", "CannotMend", "Evidence", "FoundContent", "mend"]

_Subject = tuple[Value, ...]
_Mending = Callable[[Transaction, _Subject, int], str | None]


@dataclass(frozen=True, slots=True)
class _Of:
    """How problems of a kind are mended."""

    mending: _Mending
    live: bool = False
    """Whether it may be done while the volume is mounted: it concerns nothing that the mount or the kernel
    keeps a copy of."""


def mend(tx: Transaction, problem: Problem, now_ns: int, evidence: Evidence) -> str | None:
    """Mend one problem; answers what was done, or ``None`` when it is not there any more.

    Raises :class:`CannotMend`, saying what to do instead."""
    of_contents = repair_contents.WITH_EVIDENCE.get(problem.kind)
    if of_contents is not None:
        return of_contents(tx, problem.subject, now_ns, evidence)
    return _MENDINGS[problem.kind].mending(tx, problem.subject, now_ns)


# --- what stands alone ---------------------------------------------------------------------------------


def _integrity(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    """SQLite's own indexes can be made anew; its tables cannot."""
    (answer,) = subject
    if "index" not in str(answer):
        raise CannotMend("restore the index's file from a copy, or recover it from the bucket")
    tx.modify("REINDEX")
    return "made SQLite's indexes anew"


def _foreign_key(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    """What no other kind covers. The rows that refer to inodes and blobs are found one by one as well."""
    table, referred = subject
    if (table, referred) == ("blob_checksums", "blobs"):
        tx.modify("DELETE FROM blob_checksums WHERE blob_id NOT IN (SELECT id FROM blobs)")
        return f"removed the checksums of {tx.changes()} contents that do not exist"
    if (table, referred) == ("inodes", "stores"):
        return repair_contents.give_stores(tx)
    if (table, referred) == ("uploads", "stores"):
        tx.modify(
            "UPDATE uploads SET store_id = (SELECT store_id FROM inodes WHERE inodes.id = inode_id)"
            " WHERE store_id NOT IN (SELECT id FROM stores)"
            " AND EXISTS (SELECT 1 FROM inodes JOIN stores ON stores.id = inodes.store_id"
            "  WHERE inodes.id = inode_id)"
        )
        return f"gave {tx.changes()} rows of the journal the store of their file" if tx.changes() else None
    if (table, referred) == ("blobs", "stores"):
        raise CannotMend("these contents are in a store that the index does not know: recover the index")
    return None  # another kind's


def _xattr(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    name, inode_id = subject
    tx.modify(
        "DELETE FROM xattrs WHERE inode_id = ? AND name = ?"
        " AND NOT EXISTS (SELECT 1 FROM inodes WHERE id = inode_id)",
        (inode_id, name),
    )
    return "removed the attribute" if tx.changes() else None


def _binding(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    tx.modify("DELETE FROM store_bindings WHERE directory_id = ?", (subject[0],))
    return "removed the binding: the directory follows its parent" if tx.changes() else None


def _change(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    tx.modify(
        "UPDATE inodes SET change = ? WHERE id = ? AND change > ?", (tx.sequence, subject[0], tx.sequence)
    )
    return "set it to the number of this transaction" if tx.changes() else None


def _usage(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    tx.modify(
        "UPDATE counters SET (inodes, bytes_high, bytes_low) ="
        " (SELECT count(*), coalesce(sum(size_bytes >> 32), 0), coalesce(sum(size_bytes & 0xffffffff), 0)"
        "  FROM inodes)"
    )
    return "counted anew"


def _with_evidence(tx: Transaction, subject: _Subject, now_ns: int) -> str | None:
    raise AssertionError("mended by repair_contents.WITH_EVIDENCE")


_MENDINGS: Mapping[str, _Of] = {
    # Indexes first, since every query relies on them; then the tree from its root, so that there are paths to
    # report; then contents; then what is counted, which all of that changes.
    "integrity": _Of(_integrity),
    "root": _Of(repair_names.root),
    "dangling-name": _Of(repair_names.dangling_name, live=True),
    "name-outside-directory": _Of(repair_names.name_outside_directory),
    "directory-names": _Of(repair_names.directory_names),
    "removed-directory": _Of(repair_names.removed_directory),
    "unnamed-inode": _Of(repair_names.unnamed_inode),
    "unreachable-directory": _Of(repair_names.unreachable_directory),
    "foreign-key": _Of(_foreign_key),
    "blob-on-non-file": _Of(repair_contents.blob_on_non_file),
    "missing-blob": _Of(_with_evidence),
    "deleting-blob": _Of(_with_evidence),
    "journal-without-file": _Of(repair_contents.journal_without_file),
    "shared-staged-file": _Of(repair_contents.shared_staged_file),
    "missing-staged-file": _Of(_with_evidence),
    "checksums": _Of(repair_contents.checksums),
    "missing-content": _Of(_with_evidence),
    "size": _Of(repair_contents.size),
    "blob-references": _Of(repair_contents.blob_references, live=True),
    "blob-state": _Of(repair_contents.blob_references, live=True),
    "link-count": _Of(repair_names.link_count),
    "xattr-without-inode": _Of(_xattr, live=True),
    "binding": _Of(_binding, live=True),
    "change": _Of(_change),
    "usage": _Of(_usage, live=True),
}

ORDER: Mapping[str, int] = {kind: at for at, kind in enumerate(_MENDINGS)}
"""Every kind, to its turn."""

LIVE_KINDS: frozenset[str] = frozenset(kind for kind, of in _MENDINGS.items() if of.live)
"""Kinds that can be mended while the volume is mounted."""
