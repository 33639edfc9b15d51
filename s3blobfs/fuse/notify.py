"""Telling the kernel what changed without its doing: it keeps names and attributes for minutes otherwise."""

from __future__ import annotations

import errno
import logging

import pyfuse3
import trio

log = logging.getLogger(__name__)

QUEUE_LENGTH = 1024


class KernelNotifier:
    """Sends notices from a worker thread, in order: the kernel may answer one only after it got replies to
    requests that the trio thread is still working on."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[int, bytes | None]](QUEUE_LENGTH)

    def entry_changed(self, parent_id: int, name: bytes) -> None:
        self._post(parent_id, name)

    def inode_changed(self, inode_id: int) -> None:
        self._post(inode_id, None)

    def _post(self, inode_id: int, name: bytes | None) -> None:
        try:
            self._send.send_nowait((inode_id, name))
        except trio.WouldBlock:
            log.warning("the kernel is slow to take notices: one about inode %d is lost", inode_id)

    async def run(self) -> None:
        """Until cancelled."""
        async for inode_id, name in self._receive:
            try:
                await trio.to_thread.run_sync(_notify, inode_id, name, abandon_on_cancel=True)
            except OSError as error:
                # ENOENT: the kernel knows nothing of it. ENODEV, ENOTCONN: it has unmounted.
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                    log.warning("the kernel refuses a notice about inode %d: %s", inode_id, error)


def _notify(inode_id: int, name: bytes | None) -> None:
    if name is None:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode_id))
    else:
        pyfuse3.invalidate_entry(pyfuse3.InodeT(inode_id), pyfuse3.FileNameT(name))
