"""Mending the tree: names, directories, link counts. See :mod:`s3blobfs.index.repair`."""

from __future__ import annotations

import os
import stat

from s3blobfs.errors import VolumeIndexError
from s3blobfs.index import dentries, inodes
from s3blobfs.index.check import shown
from s3blobfs.index.inodes import ROOT_INODE_ID, InodeRow
from s3blobfs.index.transaction import Transaction, Value

LOST_AND_FOUND = b"lost+found"
_DIRECTORY_MODE = stat.S_IFDIR | 0o700
_ROOT_MODE = stat.S_IFDIR | 0o755

Subject = tuple[Value, ...]


class CannotMend(VolumeIndexError):
    """A problem that no defined step mends; the message says what to do instead."""


def integer(value: Value) -> int:
    """A column of ours that is an integer."""
    assert isinstance(value, int), value
    return value


def binary(value: Value) -> bytes:
    """A column of ours that is a BLOB."""
    assert isinstance(value, bytes), value
    return value


# --- kinds ---------------------------------------------------------------------------------------------


def root(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """A root without entries but those that still name it as their directory."""
    found = inodes.find(tx, ROOT_INODE_ID)
    if found is not None and stat.S_ISDIR(found.mode):
        return None
    if found is None:
        tx.modify(
            "INSERT INTO inodes (id, mode, uid, gid, nlink, size_bytes, atime_ns, mtime_ns, ctime_ns, rdev,"
            " change) VALUES (?, ?, ?, ?, 2, 0, ?, ?, ?, 0, ?)",
            (ROOT_INODE_ID, _ROOT_MODE, os.geteuid(), os.getegid(), now_ns, now_ns, now_ns, tx.sequence),
        )
    else:
        tx.modify(
            "UPDATE inodes SET mode = ?, nlink = 2, size_bytes = 0, rdev = 0, target = NULL, blob_id = NULL,"
            " store_id = NULL, object_id = NULL, change = ? WHERE id = ?",
            (_ROOT_MODE, tx.sequence, ROOT_INODE_ID),
        )
    recount(tx, ROOT_INODE_ID)
    return "made the root directory anew"


def dangling_name(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    name, parent_id, inode_id = subject
    if inodes.find(tx, integer(inode_id)) is not None:
        return None
    tx.modify("DELETE FROM dentries WHERE parent_id = ? AND name = ?", (parent_id, name))
    return "removed the name: nothing is left of what it stood for" if tx.changes() else None


def name_outside_directory(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    name, parent_id = binary(subject[0]), integer(subject[1])
    inode_id = dentries.find(tx, parent_id, name)
    parent = inodes.find(tx, parent_id)
    if inode_id is None or (parent is not None and stat.S_ISDIR(parent.mode)):
        return None
    dentries.remove(tx, parent_id, name)
    inode = inodes.find(tx, inode_id)
    if inode is None:
        return "removed the name"
    if dentries.names_of(tx, inode_id):
        recount(tx, inode_id)
        return "removed the name: the file has another one"
    return _reconnect(tx, inode, now_ns)


def directory_names(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """A directory keeps its oldest name that does not lead into itself; the root has none."""
    inode_id = integer(subject[0])
    names = dentries.names_of(tx, inode_id)
    if inode_id == ROOT_INODE_ID:
        kept = None
    elif len(names) <= 1:
        return None
    else:
        outside = (each for each in names if not dentries.is_ancestor(tx, inode_id, each[0]))
        kept = next(outside, names[0])
    doomed = [each for each in names if each != kept]
    for parent_id, name in doomed:
        dentries.remove(tx, parent_id, name)
        recount(tx, parent_id)
    removed = ", ".join(f"{shown(name)} in directory {parent_id}" for parent_id, name in doomed)
    return f"removed {removed}" if doomed else None


def removed_directory(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    directory = inodes.find(tx, integer(subject[0]))
    if directory is None or directory.nlink or dentries.is_empty(tx, directory.id):
        return None
    if dentries.names_of(tx, directory.id):
        recount(tx, directory.id)
        return "counted its links anew: it has a name"
    return _reconnect(tx, directory, now_ns)


def unnamed_inode(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    inode = inodes.find(tx, integer(subject[0]))
    if inode is None or inode.id == ROOT_INODE_ID or dentries.names_of(tx, inode.id):
        return None
    if _is_empty(tx, inode):
        inodes.remove(tx, inode.id)
        return "removed it: it was empty"
    return _reconnect(tx, inode, now_ns)


def unreachable_directory(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    """Climb until a directory comes again: that one is in the cycle, which is cut there. What is below
    something removed or missing is come by when that is mended."""
    inode_id = integer(subject[0])
    passed: set[int] = set()
    while inode_id not in passed:
        passed.add(inode_id)
        parent = dentries.parent_of(tx, inode_id)
        if parent is None or inode_id == ROOT_INODE_ID:
            return None
        inode_id = parent
    directory = inodes.find(tx, inode_id)
    if directory is None:
        return None
    for parent_id, name in dentries.names_of(tx, inode_id):
        dentries.remove(tx, parent_id, name)
        recount(tx, parent_id)
    return f"cut the cycle at inode {inode_id}: {_reconnect(tx, directory, now_ns)}"


def link_count(tx: Transaction, subject: Subject, now_ns: int) -> str | None:
    inode_id = integer(subject[0])
    before = inodes.find(tx, inode_id)
    after = recount(tx, inode_id)
    return f"set it to {after}" if before is not None and before.nlink != after else None


# --- parts ---------------------------------------------------------------------------------------------


def recount(tx: Transaction, inode_id: int) -> int | None:
    """Set the link count to what it has to be; answers it, or ``None`` where there is no such inode."""
    inode = inodes.find(tx, inode_id)
    if inode is None:
        return None
    if stat.S_ISDIR(inode.mode):
        ((below,),) = tx.execute(
            "SELECT count(*) FROM dentries JOIN inodes ON id = inode_id"
            " WHERE parent_id = ? AND (mode & 0xf000) = 0x4000",
            (inode_id,),
        )
        nlink = 2 + below
    else:
        nlink = len(dentries.names_of(tx, inode_id))
    if nlink != inode.nlink:
        tx.modify("UPDATE inodes SET nlink = ?, change = ? WHERE id = ?", (nlink, tx.sequence, inode_id))
    return nlink  # type: ignore[no-any-return]


def add_to_lost_and_found(tx: Transaction, inode_id: int, name: bytes, now_ns: int) -> str:
    """Give an inode a name there; answers its path. The link counts are the caller's."""
    directory_id = _lost_and_found(tx, now_ns)
    unique, at = name, 1
    while dentries.find(tx, directory_id, unique) is not None:
        at += 1
        unique = b"%s-%d" % (name, at)
    dentries.insert(tx, directory_id, unique, inode_id)
    recount(tx, directory_id)
    return shown(dentries.path_of(tx, inode_id))


def _reconnect(tx: Transaction, inode: InodeRow, now_ns: int) -> str:
    path = add_to_lost_and_found(tx, inode.id, b"#%d" % inode.id, now_ns)
    recount(tx, inode.id)
    return f"it is {path} now"


def _lost_and_found(tx: Transaction, now_ns: int) -> int:
    name, at = LOST_AND_FOUND, 1
    while (found := dentries.lookup(tx, ROOT_INODE_ID, name)) is not None:
        if stat.S_ISDIR(found.mode):
            return found.id
        at += 1
        name = b"%s-%d" % (LOST_AND_FOUND, at)
    made = inodes.insert(tx, mode=_DIRECTORY_MODE, uid=os.geteuid(), gid=os.getegid(), nlink=2, now_ns=now_ns)
    dentries.insert(tx, ROOT_INODE_ID, name, made.id)
    recount(tx, ROOT_INODE_ID)
    return made.id


def _is_empty(tx: Transaction, inode: InodeRow) -> bool:
    """Whether nothing is lost with it."""
    if stat.S_ISDIR(inode.mode):
        return dentries.is_empty(tx, inode.id)
    if not stat.S_ISREG(inode.mode) or inode.size_bytes or inode.blob_id is not None:
        return False
    journalled = tx.execute("SELECT 1 FROM uploads WHERE inode_id = ? LIMIT 1", (inode.id,)).fetchone()
    return journalled is None
