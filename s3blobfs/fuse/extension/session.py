"""The extension of one mount: how much of it there is, and in which order its parts are used."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Iterator

import pyfuse3

from s3blobfs.config import FuseExtension
from s3blobfs.errors import UsageError
from s3blobfs.fuse.extension.eager import eager_loop
from s3blobfs.fuse.extension.handshake import ADDED, ALWAYS, DeviceNotFound, Handshake
from s3blobfs.fuse.extension.protocol import InitFlag

log = logging.getLogger(__name__)


class Level(enum.Enum):
    """How much of the extension a mount has; the value is what ``status`` shows."""

    OFF = "off"
    INIT = "init only"
    """FUSE_INIT answered here, and the eager loop."""


def _choices_of(operations: pyfuse3.Operations) -> InitFlag:
    """What pyfuse3 asks the kernel for on behalf of these operations."""
    chosen = InitFlag(0)
    if operations.supports_dot_lookup:
        chosen |= InitFlag.EXPORT_SUPPORT
    if operations.enable_writeback_cache:
        chosen |= InitFlag.WRITEBACK_CACHE
    if operations.enable_acl:
        chosen |= InitFlag.POSIX_ACL
    return chosen


class Extension:
    """Used once: :meth:`prepare`, ``pyfuse3.init``, :meth:`negotiate`, ``pyfuse3.main`` inside :meth:`loop`,
    with :meth:`connected` called by ``Operations.init``, and :meth:`close` in the end."""

    def __init__(self, wanted: FuseExtension) -> None:
        self._wanted = wanted
        self._handshake: Handshake | None = None
        self.level = Level.OFF
        self.reason = "" if wanted is not FuseExtension.OFF else "not wanted"
        """Why there is no more of it than :attr:`level`."""

    @property
    def status(self) -> str:
        """For ``status`` and the log."""
        return f"{self.level.value} ({self.reason})" if self.reason else self.level.value

    def prepare(self) -> None:
        """Find out what can be had. Fails never: what cannot be had is left out."""
        if self._wanted is FuseExtension.OFF:
            return
        try:
            self._handshake = Handshake()
        except OSError as error:
            self.reason = f"what is open cannot be listed: {error.strerror}"

    def negotiate(self, operations: pyfuse3.Operations) -> None:
        """Tell the kernel what is wanted.

        :class:`UsageError` when the connection is of no use any more."""
        handshake = self._handshake
        if handshake is not None:
            try:
                handshake.answer(ALWAYS | ADDED | _choices_of(operations))
                self.level = Level.INIT
            except DeviceNotFound as error:
                self._handshake = None
                self.reason = str(error)
            except OSError as error:
                raise UsageError(
                    f"the kernel's greeting cannot be answered ({error.strerror}); mount with"
                    " --fuse-extension off"
                ) from error
        log.info("FUSE extension: %s", self.status)

    def connected(self) -> None:
        """libfuse has read the greeting."""
        if self._handshake is not None:
            self._handshake.hand_over()

    @contextlib.contextmanager
    def loop(self) -> Iterator[None]:
        """``pyfuse3.main`` inside runs as it should."""
        if self.level is Level.OFF:
            yield
        else:
            with eager_loop():
                yield

    def close(self) -> None:
        """Leave nothing open. May be called again."""
        if self._handshake is not None:
            self._handshake.close()
