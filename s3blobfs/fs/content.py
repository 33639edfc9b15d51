"""The content of one regular file in core: where its bytes are now, and the one state table.

                   write                    write
        ┌────────────────────────┐  ┌─────────────────────┐
        │                        ▼  ▼                     │
      EMPTY ◄──── seal(0) ──── DIRTY ──── seal ────► SEALED
                                 ▲                        │
                     write       │                        │ stored
                                 └─────── CLEAN ◄─────────┘

A direct copy puts another blob in the place of any of them: ``CLEAN``. The end of the file leaves ``EMPTY``.

* ``EMPTY``  no bytes anywhere: size 0, no blob, no staged file, no object.
* ``CLEAN``  the bytes are an immutable blob in S3 (and perhaps in the cache).
* ``DIRTY``  the bytes are a staged file that may still change.
* ``SEALED`` the bytes are a staged file that may not change any more; it has a journal row and an upload.

Everything that changes a state is here and in the table; who does so is not (see ``writing.py``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from s3blobfs.tier.staging import StagedFile
from s3blobfs.types import BlobContent
from s3blobfs.writeback.uploader import UploadTicket


class State(enum.Enum):
    EMPTY = "empty"
    CLEAN = "clean"
    DIRTY = "dirty"
    SEALED = "sealed"


class Event(enum.Enum):
    """What happens to a content."""

    STAGE = "stage"
    """A writable staged file with the present bytes (or the wanted part of them) takes over."""
    SEAL = "seal"
    """The staged file is finished and journalled."""
    SEAL_EMPTY = "seal empty"
    """The staged file turned out to have no bytes."""
    STORED = "stored"
    """The upload's object is in S3 and committed in the index."""
    REPLACE = "replace"
    """A direct copy put another blob in place of the content."""
    ABANDON = "abandon"
    """The staged file has lost bytes, which every writer was told: the stored content stays."""
    ABANDON_EMPTY = "abandon empty"
    """The same where nothing is stored."""
    DESTROY = "destroy"
    """The file is gone with its last name and its last handle."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.EMPTY, Event.STAGE): State.DIRTY,
    (State.CLEAN, Event.STAGE): State.DIRTY,
    (State.SEALED, Event.STAGE): State.DIRTY,
    (State.DIRTY, Event.SEAL): State.SEALED,
    (State.DIRTY, Event.SEAL_EMPTY): State.EMPTY,
    (State.SEALED, Event.STORED): State.CLEAN,
    (State.DIRTY, Event.ABANDON): State.CLEAN,
    (State.DIRTY, Event.ABANDON_EMPTY): State.EMPTY,
    (State.EMPTY, Event.REPLACE): State.CLEAN,
    (State.CLEAN, Event.REPLACE): State.CLEAN,
    (State.DIRTY, Event.REPLACE): State.CLEAN,
    (State.SEALED, Event.REPLACE): State.CLEAN,
    (State.EMPTY, Event.DESTROY): State.EMPTY,
    (State.CLEAN, Event.DESTROY): State.EMPTY,
    (State.DIRTY, Event.DESTROY): State.EMPTY,
    (State.SEALED, Event.DESTROY): State.EMPTY,
}
"""Every move there is; any other is a bug and raises ``KeyError``."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """How much a file shows of its blob while a copy is under way."""

    source_blob_id: int
    """What it is a copy of."""
    size_bytes: int


@dataclass(slots=True)
class Content:
    """The content of one in-core file. Changed only under the inode's lock, but for :meth:`stored`,
    which the uploader calls between two checkpoints and which touches a ``SEALED`` content only."""

    state: State
    blob: BlobContent | None = None
    """Set in ``CLEAN`` once it has been needed; the index row knows its id before that."""
    staged: StagedFile | None = None
    """Set exactly in ``DIRTY`` and ``SEALED``."""
    upload_id: int | None = None
    """Set exactly in ``SEALED``: the journal row."""
    prefix: Prefix | None = None
    """Set in ``CLEAN`` only: the file is shorter than its blob, and is cut when it is next sealed."""
    ticket: UploadTicket | None = None
    """The upload of the latest seal; kept after it ended, so that every close hears of a failure."""

    def move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    # -- events --------------------------------------------------------------------------------------

    def stage(self, staged: StagedFile) -> None:
        self.move(Event.STAGE)
        self.staged, self.blob, self.upload_id, self.prefix = staged, None, None, None

    def seal(self, upload_id: int, ticket: UploadTicket, staged: StagedFile) -> None:
        self.move(Event.SEAL)
        self.upload_id, self.ticket, self.staged = upload_id, ticket, staged

    def seal_empty(self) -> None:
        self.move(Event.SEAL_EMPTY)
        self.staged = self.upload_id = self.ticket = None

    def stored(self, upload_id: int, blob: BlobContent) -> bool:
        """An upload ended. False when the content has moved on since (it was written again)."""
        if self.state is not State.SEALED or self.upload_id != upload_id:
            return False
        self.move(Event.STORED)
        self.blob, self.staged, self.upload_id = blob, None, None
        return True

    def abandon(self, *, stored: bool) -> None:
        self.move(Event.ABANDON if stored else Event.ABANDON_EMPTY)
        self.staged = self.upload_id = self.ticket = self.blob = None

    def replace(self) -> None:
        self.move(Event.REPLACE)
        self.blob = self.staged = self.upload_id = self.ticket = self.prefix = None

    def destroy(self) -> StagedFile | None:
        """Answers the staged file, to be discarded."""
        self.move(Event.DESTROY)
        staged = self.staged
        self.blob = self.staged = self.upload_id = self.ticket = self.prefix = None
        return staged

    def show(self, source: BlobContent, size_bytes: int) -> None:
        """Of a copy of ``source``, which is the content, so many bytes are the file's so far."""
        assert self.state is State.CLEAN
        self.prefix = Prefix(source.blob_id, size_bytes) if size_bytes < source.size_bytes else None

    @property
    def in_flux(self) -> bool:
        """Whether the bytes exist (also) outside the index and S3, so that the inode stays in core."""
        return self.staged is not None or self.prefix is not None
