"""Between pyfuse3's records and the filesystem's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyfuse3

from s3blobfs.config import NAME_MAX_BYTES
from s3blobfs.fs.attributes import AttributeChanges, Attributes, Caller, FilesystemUsage
from s3blobfs.fs.listing import DirectoryEntry

PREFERRED_IO_BYTES = 128 * 1024
"""st_blksize: what tools read and write at once."""

STATFS_BLOCK_BYTES = 4096


def entry_attributes(
    attributes: Attributes, entry_timeout_s: float, attr_timeout_s: float
) -> pyfuse3.EntryAttributes:
    """Generation stays 0: inode ids are never used twice."""
    entry = _blank_entry(entry_timeout_s, attr_timeout_s)
    # In the order of Attributes; at once, as it is done for most requests.
    (
        entry.st_ino, entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_rdev, entry.st_size,
        entry.st_blocks, entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns,
    ) = attributes  # fmt: skip
    return cast("pyfuse3.EntryAttributes", entry)


def reply_entries(
    token: pyfuse3.ReaddirToken,
    entries: Sequence[DirectoryEntry],
    entry_timeout_s: float,
    attr_timeout_s: float,
) -> int:
    """Answer a listing; how many entries the kernel had room for."""
    reply = pyfuse3.readdir_reply
    entry = _blank_entry(entry_timeout_s, attr_timeout_s)  # one for all, since each is copied into the answer
    for number, listed in enumerate(entries):
        (
            cookie, name, entry.st_ino, entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid,
            entry.st_rdev, entry.st_size, entry.st_blocks, entry.st_atime_ns, entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = listed  # fmt: skip
        if not reply(token, pyfuse3.FileNameT(name), entry, cookie):
            return number
    return len(entries)


def _blank_entry(entry_timeout_s: float, attr_timeout_s: float) -> Any:
    """An ``EntryAttributes``; not typed so, since its fields have types of their own for plain numbers."""
    entry = pyfuse3.EntryAttributes()
    entry.st_blksize = PREFERRED_IO_BYTES
    entry.entry_timeout = entry_timeout_s
    entry.attr_timeout = attr_timeout_s
    return entry


def absent_entry(entry_timeout_s: float) -> pyfuse3.EntryAttributes:
    """Inode 0: the kernel remembers that there is no such name."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = entry_timeout_s
    return entry


def attribute_changes(
    attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, caller: Caller
) -> AttributeChanges:
    """ctime is not the kernel's to set: it is the time of the change itself.

    With HANDLE_KILLPRIV_V2 set-id bits are ours to drop: when the owner changes, when somebody who may not
    keep them changes the size, and when there is nothing else to change, which is how the kernel tells that
    such a one writes. Without it the kernel does so itself, by the mode."""
    owner = fields.update_uid or fields.update_gid
    only_told = not (
        owner or fields.update_size or fields.update_mode or fields.update_atime or fields.update_mtime
    )
    return AttributeChanges(
        mode=attr.st_mode & 0o7777 if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size_bytes=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        drops_set_id=owner or only_told or (fields.update_size and not caller.privileged),
    )


def caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(uid=ctx.uid, gid=ctx.gid, pid=ctx.pid, umask=ctx.umask)


def caller_in_groups(ctx: pyfuse3.RequestContext) -> Caller:
    """With the supplementary groups, which the kernel does not tell: read from ``/proc``. None, if the
    caller is gone by now."""
    try:
        groups = frozenset(pyfuse3.get_sup_groups(ctx.pid))
    except (OSError, RuntimeError):
        groups = frozenset()
    return Caller(uid=ctx.uid, gid=ctx.gid, pid=ctx.pid, groups=groups, umask=ctx.umask)


def statvfs(usage: FilesystemUsage) -> pyfuse3.StatvfsData:
    data = pyfuse3.StatvfsData()
    data.f_bsize = PREFERRED_IO_BYTES
    data.f_frsize = STATFS_BLOCK_BYTES
    used = -(-usage.used_bytes // STATFS_BLOCK_BYTES)
    free = usage.free_bytes // STATFS_BLOCK_BYTES
    data.f_blocks = used + free
    data.f_bfree = data.f_bavail = free
    data.f_files = usage.used_inodes + usage.free_inodes
    data.f_ffree = data.f_favail = usage.free_inodes
    data.f_namemax = NAME_MAX_BYTES
    return data
