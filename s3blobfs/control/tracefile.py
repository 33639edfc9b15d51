"""A trace written to a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TextIO

from s3blobfs.errors import UsageError
from s3blobfs.trace import Local, Tracer
from s3blobfs.volume.paths import PRIVATE_FILE_MODE

logger = logging.getLogger(__name__)


class TraceRecorder:
    """Lets a tracer draw into a file; one at a time."""

    def __init__(self, tracer: Tracer, local: Local) -> None:
        self._tracer = tracer
        self._local = local
        self._file: TextIO | None = None
        self.path: Path | None = None
        """Where it draws now."""

    def start(self, path: Path) -> None:
        """Begin a diagram in ``path``, in place of what it held.

        Raises :class:`UsageError` while another one is drawn, and for a file that cannot be written."""
        if self.path is not None:
            raise UsageError(f"a trace is being written to {self.path}; end it first")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            # A line at a time, so that the file is whole whenever somebody looks.
            self._file = os.fdopen(os.open(path, flags, PRIVATE_FILE_MODE), "w", buffering=1)
        except OSError as error:
            raise UsageError(f"cannot write the trace {path}: {error.strerror}") from error
        self.path = path
        self._tracer.start_steps(self._write, self._local)

    def stop(self) -> Path | None:
        """End the diagram, if there is one; answers where it is."""
        path, self.path = self.path, None
        if path is not None:
            self._tracer.stop_steps()
        self._close()
        return path

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(f"{line}\n")
        except OSError as error:
            logger.error("the trace %s ends here: %s", self.path, error)
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except OSError as error:
            logger.error("the trace %s is not whole: %s", self.path, error)
