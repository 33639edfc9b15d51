"""A file of the local tier that is opened while it is used, and has a name as long as it is wanted."""

from __future__ import annotations

from pathlib import Path

from s3blobfs.tier.layout import Directory, TierLayout
from s3blobfs.tier.localio import SharedFd


class HeldFile:
    """Names and the descriptor; what the file is for is the subclass's affair."""

    def __init__(self, layout: TierLayout, directory: Directory, name: str, file: SharedFd | None) -> None:
        self._layout = layout
        self._directory = directory
        self._file = file
        self._pins = 0
        self.name = name
        self.gone = False
        """Not the tier's any more under this object: removed, or somebody else's."""
        self.removed = False
        """It has no name."""

    @property
    def path(self) -> Path:
        """Where the file is now."""
        return self._directory.path / self.name

    @property
    def _where(self) -> str:
        return self._directory.locate(self.name)

    @property
    def writable(self) -> bool:
        raise NotImplementedError

    @property
    def fd(self) -> int:
        """Open for reading, and for writing as long as it may be changed; opened again when it was closed
        meanwhile. Good as long as the file is pinned."""
        return self._opened().fd

    def pin(self) -> None:
        """A handle uses the file: its bytes stay readable, also when it is discarded or evicted."""
        self._opened()
        self._pins += 1

    def unpin(self) -> None:
        """A handle is done; the last one closes the descriptor."""
        assert self._pins > 0, "unpinned more often than pinned"
        self._pins -= 1
        self.close_if_idle()

    def opened(self) -> SharedFd:
        """Keeps the descriptor for one operation, as a context manager; what was open stays open for the next
        one."""
        return self._opened().acquire()

    def _opened(self) -> SharedFd:
        if self._file is None:
            if self.removed:
                raise RuntimeError(f"{self.name} is discarded")
            try:
                self._file = SharedFd(self._directory.open(self.name, writable=self.writable))
            except OSError as error:
                raise self._layout.error(error, f"opening {self._where}") from error
        return self._file

    def close_if_idle(self) -> None:
        """Close the descriptor if no handle has the file pinned; it is opened again when needed."""
        if self._pins == 0 and self._file is not None:
            file, self._file = self._file, None
            if self.removed:  # this frees the blocks
                self._layout.release(file, self._length)
                self._freed()
            else:
                file.release()

    @property
    def _length(self) -> int:
        raise NotImplementedError

    def _freed(self) -> None:
        """The last descriptor of a removed file is closed."""
        raise NotImplementedError
