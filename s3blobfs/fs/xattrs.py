"""Extended attributes: those of users, kept in the index, and our own, made up when asked for.

``user.s3blobfs.*`` is ours, read-only and not listed, so that tools which copy attributes do not carry it
elsewhere. The namespaces ``user.``, ``trusted.`` and ``security.`` are kept (xattr(7)), and of ``system.``
the two ACLs, which the mode bits follow; the rest is refused with ``EOPNOTSUPP``.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Final

from s3blobfs.errors import FilesystemError
from s3blobfs.fs import acl
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.content import State
from s3blobfs.fs.core import Core
from s3blobfs.fs.incore import InCoreInode
from s3blobfs.fs.reading import Reading
from s3blobfs.index import inodes, xattrs
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.transaction import Transaction

OUR_NAMESPACE: Final = b"user.s3blobfs."
KEPT_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
CAPABILITY: Final = b"security.capability"
NAME_MAX_BYTES: Final = 255
VALUE_MAX_BYTES: Final = 64 * 1024
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of <linux/limits.h>."""


class ExtendedAttributes:
    def __init__(self, core: Core, reading: Reading, control_path: str | None) -> None:
        self._core = core
        self._reading = reading
        self._control_path = control_path

    async def get(self, inode: InCoreInode, name: bytes) -> bytes:
        """getxattr(2); ``ENODATA`` when there is none of that name."""
        if name.startswith(OUR_NAMESPACE):
            value = await self._ours(inode, name[len(OUR_NAMESPACE) :])
        else:
            value = (await self._core.xattrs_of(inode)).get(name)
        if value is None:
            raise FilesystemError(errno.ENODATA)
        return value

    async def names(self, inode: InCoreInode) -> list[bytes]:
        """listxattr(2)."""
        return list(await self._core.xattrs_of(inode))

    async def set(self, inode: InCoreInode, name: bytes, value: bytes, caller: Caller) -> None:
        """setxattr(2): make or replace."""
        if name in acl.NAMES:
            strips = not acl.may_keep_set_group_id(inode.row.mode, inode.row.gid, caller)
            await self._set_acl(inode, name, acl.Acl.decode(value), strips_set_group_id=strips)
            return
        _check_changeable(name)
        if len(name) > NAME_MAX_BYTES:
            raise FilesystemError(errno.ERANGE)
        if len(value) > VALUE_MAX_BYTES:
            raise FilesystemError(errno.E2BIG)
        if name.startswith(b"user.") and not (stat.S_ISREG(inode.row.mode) or inode.is_directory):
            raise FilesystemError(errno.EPERM)  # xattr(7)
        known = await self._core.xattrs_of(inode)

        def transaction(tx: Transaction) -> InodeRow:
            xattrs.set(tx, inode.id, name, value)
            return inodes.update(tx, inode.id, ctime_ns=self._core.now_ns())

        inode.apply(await self._change(inode, transaction))
        known[name] = value

    async def remove(self, inode: InCoreInode, name: bytes) -> None:
        """removexattr(2); ``ENODATA`` when there is none of that name, unless it is an ACL's."""
        if name in acl.NAMES:
            await self._set_acl(inode, name, None)
            return
        _check_changeable(name)
        known = await self._core.xattrs_of(inode)

        def transaction(tx: Transaction) -> InodeRow:
            if not xattrs.remove(tx, inode.id, name):
                raise FilesystemError(errno.ENODATA)
            return inodes.update(tx, inode.id, ctime_ns=self._core.now_ns())

        inode.apply(await self._change(inode, transaction))
        known.pop(name, None)

    async def drop_capability(self, inode: InCoreInode) -> None:
        """File capabilities (capabilities(7)) go with the content that they were given to, whoever changes
        it. The kernel sees to that, except for O_TRUNC where the filesystem truncates with open."""
        known = await self._core.xattrs_of(inode)
        if CAPABILITY not in known or inode.removed:
            return

        def transaction(tx: Transaction) -> InodeRow:
            xattrs.remove(tx, inode.id, CAPABILITY)  # unless somebody else has just done so
            return inodes.update(tx, inode.id, ctime_ns=self._core.now_ns())

        inode.apply(await self._change(inode, transaction))
        known.pop(CAPABILITY, None)

    async def _set_acl(
        self, inode: InCoreInode, name: bytes, wanted: acl.Acl | None, *, strips_set_group_id: bool = False
    ) -> None:
        """Keep a list, or none, and the mode that goes with it. An access ACL that the mode can express is
        the mode, as on ext4; ``EACCES`` for a default ACL of what is no directory."""
        if stat.S_ISLNK(inode.row.mode):
            raise FilesystemError(errno.EOPNOTSUPP)
        if name == acl.DEFAULT and wanted is not None and not inode.is_directory:
            raise FilesystemError(errno.EACCES)
        known = await self._core.xattrs_of(inode)
        async with inode.lock:
            mode = inode.row.mode
            if name == acl.ACCESS and wanted is not None:
                mode = mode & ~0o777 | wanted.permission_bits
                if strips_set_group_id:
                    mode &= ~stat.S_ISGID
                wanted = None if wanted.is_minimal else wanted
            value = None if wanted is None else wanted.encode()

            def transaction(tx: Transaction) -> InodeRow:
                if value is None:
                    xattrs.remove(tx, inode.id, name)
                else:
                    xattrs.set(tx, inode.id, name, value)
                return inodes.update(tx, inode.id, mode=mode, ctime_ns=self._core.now_ns())

            inode.apply(await self._change(inode, transaction))
            if value is None:
                known.pop(name, None)
            else:
                known[name] = value

    async def _change(self, inode: InCoreInode, transaction: Callable[[Transaction], InodeRow]) -> InodeRow:
        self._core.refuse_if_read_only()
        if inode.removed:
            raise FilesystemError(errno.ENOENT)
        return await self._core.db.write(transaction)

    async def _ours(self, inode: InCoreInode, name: bytes) -> bytes | None:
        if name == b"control":
            return self._control_path.encode() if self._control_path and inode.id == 1 else None
        content = inode.content
        if content is None:
            return None
        if name == b"store" and inode.row.store_id is not None:
            return self._core.stores[inode.row.store_id].config.name.encode()
        if name == b"state":
            return self._state(inode).encode()
        if content.state is not State.CLEAN:
            return None
        blob = await self._reading.blob(inode)
        values = {
            b"key": blob.location.object_key,
            b"version_id": blob.location.version_id,
            b"digest": blob.digests.md5.hex(),
            b"sha256": blob.digests.sha256.hex(),
        }
        value = values.get(name)
        return None if value is None else value.encode()

    def _state(self, inode: InCoreInode) -> str:
        content = inode.content
        assert content is not None
        if content.state is State.SEALED:
            return self._core.uploader.state_of(inode.id) or "staged"
        return "staged" if content.state is State.DIRTY else "stored"


def _check_changeable(name: bytes) -> None:
    if name.startswith(OUR_NAMESPACE):
        raise FilesystemError(errno.EPERM)
    if not name.startswith(KEPT_NAMESPACES):
        raise FilesystemError(errno.EOPNOTSUPP)
