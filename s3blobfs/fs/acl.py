"""POSIX access control lists (acl(5)): what they look like as extended attributes, and how they and the mode
bits follow each other.

The kernel enforces them (it asks for ``FUSE_POSIX_ACL`` to be agreed on, and then reads
``system.posix_acl_access`` where it checks permissions). Keeping lists and mode in step, and handing a
directory's default list on to what is made in it, are the filesystem's part. The rules are those of the
kernel's ``fs/posix_acl.c``; the layout of the value is ``struct posix_acl_xattr_header`` and its entries
(<linux/posix_acl_xattr.h>).
"""

from __future__ import annotations

import enum
import errno
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias

from s3blobfs.errors import FilesystemError
from s3blobfs.fs.attributes import Caller

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_ALL: Final = 0o7

_BitChange: TypeAlias = Callable[[int, int], int]
"""New permissions of an entry, from its own and those that the mode has for it."""


class Tag(enum.IntEnum):
    """Whom an entry is for. The values are those on the wire, and also the order of entries in a list."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED: Final = (Tag.USER, Tag.GROUP)
_SINGLE: Final = (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.MASK, Tag.OTHER)


@dataclass(frozen=True, slots=True)
class Entry:
    tag: Tag
    permissions: int
    """As in a mode: 4 read, 2 write, 1 execute."""
    id: int = _NO_ID
    """Of the user or group, for those two tags."""


@dataclass(frozen=True, slots=True)
class Acl:
    """A valid list."""

    entries: tuple[Entry, ...]

    @classmethod
    def decode(cls, value: bytes) -> Self | None:
        """The list in an extended attribute; ``None`` for one without entries, which means to have no list.

        ``EOPNOTSUPP`` for another version, ``EINVAL`` for what is not a valid list (``posix_acl_valid``)."""
        if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
            raise FilesystemError(errno.EINVAL)
        if _HEADER.unpack_from(value)[0] != _VERSION:
            raise FilesystemError(errno.EOPNOTSUPP)
        try:
            entries = tuple(
                Entry(Tag(tag), permissions, id_ if tag in _NAMED else _NO_ID)
                for tag, permissions, id_ in _ENTRY.iter_unpack(value[_HEADER.size :])
            )
        except ValueError as error:
            raise FilesystemError(errno.EINVAL) from error
        if not entries:
            return None
        if not _is_valid(entries):
            raise FilesystemError(errno.EINVAL)
        return cls(entries)

    def encode(self) -> bytes:
        return _HEADER.pack(_VERSION) + b"".join(
            _ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in self.entries
        )

    @property
    def is_minimal(self) -> bool:
        """Says no more than permission bits do."""
        return len(self.entries) == 3

    @property
    def permission_bits(self) -> int:
        """The nine permission bits of a file with this list: the group's are the mask's, if there is one."""
        bits = 0
        for entry in self.entries:
            if entry.tag in _NAMED or (entry.tag is Tag.GROUP_OBJ and self._has_mask):
                continue
            bits |= entry.permissions << _SHIFT[entry.tag]
        return bits

    def with_permission_bits(self, mode: int) -> Self:
        """The list after chmod(2) to ``mode``."""
        return self._map_bits(lambda _, bits: bits, mode)

    def inherited(self, mode: int) -> tuple[Self | None, int]:
        """What is made with ``mode`` in a directory with this default list: its access list (``None`` if the
        mode says it all) and its mode. The umask has no part in it (umask(2))."""
        made = self._map_bits(lambda permissions, bits: permissions & bits, mode)
        return None if made.is_minimal else made, mode & ~0o777 | made.permission_bits

    def allows(self, uid: int, gid: int, mask: int, caller: Caller) -> bool:
        """Whether ``mask`` (of ``os.R_OK``, …) is granted on a file of owner ``uid`` and group ``gid``; the
        algorithm of acl(5)."""
        limit = next((entry.permissions for entry in self.entries if entry.tag is Tag.MASK), _ALL)
        group_matched = False
        for entry in self.entries:
            match entry.tag:
                case Tag.USER_OBJ if caller.uid == uid:
                    return entry.permissions & mask == mask
                case Tag.USER if caller.uid == entry.id:
                    return entry.permissions & limit & mask == mask
                case Tag.GROUP_OBJ | Tag.GROUP if caller.in_group(
                    gid if entry.tag is Tag.GROUP_OBJ else entry.id
                ):
                    group_matched = True
                    if entry.permissions & limit & mask == mask:
                        return True
                case Tag.OTHER:
                    return not group_matched and entry.permissions & mask == mask
        return False

    @property
    def _has_mask(self) -> bool:
        return any(entry.tag is Tag.MASK for entry in self.entries)

    def _map_bits(self, change: _BitChange, mode: int) -> Self:
        """Change the entries that the permission bits of ``mode`` stand for."""
        spared = (*_NAMED, Tag.GROUP_OBJ) if self._has_mask else _NAMED
        return replace(
            self,
            entries=tuple(
                entry
                if entry.tag in spared
                else replace(entry, permissions=change(entry.permissions, mode >> _SHIFT[entry.tag] & _ALL))
                for entry in self.entries
            ),
        )


_SHIFT: Final = {Tag.USER_OBJ: 6, Tag.GROUP_OBJ: 3, Tag.MASK: 3, Tag.OTHER: 0}


def may_keep_set_group_id(mode: int, gid: int, caller: Caller) -> bool:
    """Whether a caller that sets an access list leaves the set-group-ID bit of the file as it is
    (``posix_acl_update_mode``)."""
    return not mode & stat.S_ISGID or caller.privileged or caller.in_group(gid)


def _is_valid(entries: Iterable[Entry]) -> bool:
    """In order, each of the single tags at most once, the three that the mode has at least once, and a mask
    where somebody is named."""
    entries = tuple(entries)
    tags = [entry.tag for entry in entries]
    return (
        tags == sorted(tags)
        and all(tags.count(tag) <= 1 for tag in _SINGLE)
        and {Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER} <= set(tags)
        and (Tag.MASK in tags or not any(tag in _NAMED for tag in tags))
        and all(entry.permissions & ~_ALL == 0 for entry in entries)
        and all(entry.id != _NO_ID for entry in entries if entry.tag in _NAMED)
    )
