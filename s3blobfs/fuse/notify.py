"""Telling the kernel what changed without its doing: it keeps names and attributes for minutes otherwise."""

from __future__ import annotations

import errno
import logging
import math
from dataclasses import dataclass

import pyfuse3
import trio

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Notice:
    """Forget a name in a directory or, without a name, what an inode's attributes and pages are."""

    inode_id: int
    name: bytes | None = None


class KernelNotifier:
    """Sends notices from a worker thread, in order: the kernel may answer one only after it got replies to
    requests that the trio thread is still working on. None is ever dropped: a name that the kernel takes to
    be missing would be missing for minutes."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[_Notice | trio.Event](math.inf)
        self._ended = False

    def entry_changed(self, parent_id: int, name: bytes) -> None:
        self._post(_Notice(parent_id, name))

    def inode_changed(self, inode_id: int) -> None:
        self._post(_Notice(inode_id))

    async def delivered(self) -> None:
        """Return when the kernel has taken all that was posted so far, or has unmounted."""
        passed = trio.Event()
        self._post(passed)
        await passed.wait()

    def _post(self, item: _Notice | trio.Event) -> None:
        if not self._ended:
            self._send.send_nowait(item)
        elif isinstance(item, trio.Event):
            item.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async for item in self._receive:
                if isinstance(item, trio.Event):
                    item.set()
                else:
                    await _deliver(item)
        finally:
            self._ended = True
            while self._receive.statistics().current_buffer_used:
                self._post(self._receive.receive_nowait())


async def _deliver(notice: _Notice) -> None:
    try:
        await trio.to_thread.run_sync(_notify, notice, abandon_on_cancel=True)
    except OSError as error:
        # ENOENT: the kernel knows nothing of it. ENODEV, ENOTCONN: it has unmounted.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
            log.warning("the kernel refuses a notice about inode %d: %s", notice.inode_id, error)


def _notify(notice: _Notice) -> None:
    inode = pyfuse3.InodeT(notice.inode_id)
    if notice.name is None:
        pyfuse3.invalidate_inode(inode)
    else:
        pyfuse3.invalidate_entry(inode, pyfuse3.FileNameT(notice.name))
