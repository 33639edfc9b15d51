"""The extension of one mount: how much of it there is, and in which order its parts are used."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Iterator

import pyfuse3
import trio

from s3blobfs.config import FuseExtension
from s3blobfs.errors import UsageError
from s3blobfs.fuse.extension.backing import KernelFiles, answer_to_open
from s3blobfs.fuse.extension.eager import eager_loop
from s3blobfs.fuse.extension.handshake import ADDED, ALWAYS, DeviceNotFound, Handshake
from s3blobfs.fuse.extension.hooks import CannotHook, Hooks
from s3blobfs.fuse.extension.libfuse import OpenBit
from s3blobfs.fuse.extension.protocol import InitFlag
from s3blobfs.fuse.extension.unbound import UnboundOperations, UnboundRequests

log = logging.getLogger(__name__)


class Level(enum.Enum):
    """How much of the extension a mount has; the value is what ``status`` shows."""

    OFF = "off"
    INIT = "init only"
    """FUSE_INIT answered here, and the eager loop."""
    FULL = "full"
    """Operations, too, that pyfuse3 does not bind, and bits of the answers to open."""


def _choices_of(operations: pyfuse3.Operations) -> InitFlag:
    """What pyfuse3 asks the kernel for on behalf of these operations."""
    chosen = InitFlag(0)
    if operations.supports_dot_lookup:
        chosen |= InitFlag.EXPORT_SUPPORT
    if operations.enable_writeback_cache:
        chosen |= InitFlag.WRITEBACK_CACHE
    if operations.enable_acl:
        chosen |= InitFlag.POSIX_ACL | InitFlag.DONT_MASK
    return chosen


class Extension:
    """Used once: :meth:`prepare`, ``pyfuse3.init``, :meth:`negotiate`, ``pyfuse3.main`` inside :meth:`loop`,
    with :meth:`connected` called by ``Operations.init``, and :meth:`close` in the end."""

    def __init__(self, wanted: FuseExtension, *, passthrough: bool = True) -> None:
        """``passthrough``: that, too, is wanted."""
        self._wanted = wanted
        self._kernel_files: KernelFiles | None = None
        self._no_passthrough = "" if passthrough else "it is not wanted"
        self._handshake: Handshake | None = None
        self._hooks: Hooks | None = None
        self._unbound: UnboundRequests | None = None
        self.level = Level.OFF
        self.reason = "" if wanted is FuseExtension.AUTO else "no more is wanted"
        """Why there is no more of it than :attr:`level`."""

    @property
    def status(self) -> str:
        """For ``status`` and the log."""
        return f"{self.level.value} ({self.reason})" if self.reason else self.level.value

    @property
    def passthrough_status(self) -> str:
        """For ``status`` and the log."""
        if self.level is Level.OFF:
            return "off (it takes all of the extension)"
        return f"off ({self._no_passthrough})" if self._no_passthrough else "on"

    @property
    def kernel_files(self) -> KernelFiles | None:
        """By which files can be shown to the kernel; ``None`` where it does not look at them."""
        return self._kernel_files

    def _try_passthrough(self, handshake: Handshake) -> None:
        if self._no_passthrough:
            return
        if self.level is not Level.FULL:
            self._no_passthrough = "it takes all of the extension"
            return
        files = KernelFiles(handshake)
        try:
            files.probe()
        except OSError as error:
            self._no_passthrough = str(error.strerror)
        else:
            self._kernel_files = files

    def leave_passthrough(self, reason: str) -> None:
        """It is not used after all."""
        self._no_passthrough = reason
        self._kernel_files = None

    def prepare(self, unbound: UnboundOperations | None = None) -> None:
        """Find out what can be had, for handlers of what pyfuse3 does not bind, if there are any. Fails
        never: what cannot be had is left out."""
        if self._wanted is FuseExtension.OFF:
            return
        try:
            self._handshake = Handshake()
        except OSError as error:
            self.reason = f"what is open cannot be listed: {error.strerror}"
            return
        if self._wanted is FuseExtension.AUTO and unbound is not None:
            requests = UnboundRequests(unbound)
            try:
                self._hooks = Hooks(requests.table())
            except CannotHook as error:
                self.reason = str(error)
            else:
                requests.library = self._hooks.libfuse
                self._unbound = requests

    def negotiate(self, operations: pyfuse3.Operations) -> None:
        """Tell the kernel what is wanted.

        :class:`UsageError` when the connection is of no use any more."""
        handshake = self._handshake
        if handshake is not None:
            try:
                wanted = ALWAYS | ADDED | _choices_of(operations)
                self.level = self._level_reached()
                if self.level is Level.FULL and not self._no_passthrough:
                    wanted |= InitFlag.PASSTHROUGH
                handshake.answer(wanted)
                self._try_passthrough(handshake)
            except DeviceNotFound as error:
                self._handshake = None
                self.level = Level.OFF
                self.reason = str(error)
            except OSError as error:
                raise UsageError(
                    f"the kernel's greeting cannot be answered ({error.strerror}); mount with"
                    " --fuse-extension off"
                ) from error
        log.info("FUSE extension: %s", self.status)

    def _level_reached(self) -> Level:
        if self._hooks is None:
            return Level.INIT
        if not self._hooks.complete:
            self.reason = "pyfuse3 binds by itself what was to be added"
            return Level.INIT
        return Level.FULL

    def answer_open(self, handle: int, number: int, *, only_mappings: bool, reads_only: bool) -> None:
        """Before open is answered: the handle uses a file that :attr:`kernel_files` has registered."""
        assert self._hooks is not None
        self._hooks.whole_answers[handle] = answer_to_open(
            handle, number, only_mappings=only_mappings, reads_only=reads_only
        )

    def add_to_answer(self, handle: int, bits: OpenBit) -> None:
        """Of open or opendir, before it is given."""
        if self.level is Level.FULL:
            assert self._hooks is not None
            self._hooks.answers[handle] = bits

    def connected(self) -> None:
        """libfuse has read the greeting."""
        if self._handshake is not None:
            self._handshake.hand_over()

    @contextlib.contextmanager
    def loop(self, nursery: trio.Nursery) -> Iterator[None]:
        """``pyfuse3.main`` inside runs as it should. What pyfuse3 does not bind runs in the nursery, which
        must have ended before ``pyfuse3.close``."""
        if self._unbound is not None:
            self._unbound.nursery = nursery
        if self.level is Level.OFF:
            yield
        else:
            with eager_loop():
                yield

    def close(self) -> None:
        """Leave nothing open and nothing changed, after ``pyfuse3.close``."""
        if self._kernel_files is not None:
            self._kernel_files.close()
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        if self._handshake is not None:
            self._handshake.close()
