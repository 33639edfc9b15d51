"""What every system that is compared can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchlib.targets import DirectoryTarget


@dataclass(frozen=True, slots=True)
class Server:
    """The S3 server, as systems are told of it."""

    endpoint_url: str
    """May be a proxy's."""
    direct_url: str
    filer: str
    """SeaweedFS's own address for ``weed mount``: host:port.grpc-port."""
    access_key_id: str
    secret_access_key: str


class System(DirectoryTarget):
    """A filesystem that can be mounted, over a bucket of its own; all else of it is below one directory."""

    @abstractmethod
    def make(self) -> None:
        """The bucket, and what else has to be there before the first mount."""

    @abstractmethod
    def mount(self) -> None:
        """Returns when it is usable. Raises :class:`~benchlib.volume.CommandFailed`."""

    @abstractmethod
    def umount(self) -> None:
        """Returns when its processes have ended; nothing that was written is lost."""

    @abstractmethod
    def kill(self) -> None:
        """End its processes at once, whatever hangs; calls in its mount fail from then on."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave nothing mounted and no process, whatever happened."""

    @abstractmethod
    def remove(self) -> None:
        """The bucket and the directory, after :meth:`abandon`."""

    @abstractmethod
    def wait_until_stored(self) -> None:
        """Until the system says that what was written is in S3; at once where close(2) says so."""

    @abstractmethod
    def shows(self, paths: Sequence[Path]) -> bool:
        """Whether S3 has these files, seen past the system: the objects are in the bucket, with the right
        sizes. (What they contain is compared by rows that read them with nothing cached.)"""
