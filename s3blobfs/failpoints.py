"""Named points between the steps of storing, deleting and copying, at which a test can end the process.

What a step leaves on the disk, in the index and in S3 is only worth something if the process may die right
after it. Each point stands exactly between two such steps; :func:`reached` costs a comparison with ``None``
as long as nothing is armed.

A process is armed by its environment, once, when a mount begins: ``S3BLOBFS_FAILPOINT=put-answered:2`` lets
it send itself SIGKILL when it reaches that point for the second time. Tests in the same process arm it with
:func:`armed`.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from s3blobfs.errors import UsageError

VARIABLE = "S3BLOBFS_FAILPOINT"

logger = logging.getLogger(__name__)


class Failpoint(enum.Enum):
    """A point that is passed. The value is its name in the environment."""

    STAGED = "staged"
    """Bytes of a write are in the staged file; nothing else knows of them."""
    SHARED = "shared"
    """A staged file that a journal row names has a second name, for what it will be."""
    EXTENDED = "extended"
    """Bytes are appended to a staged file behind what a journal row names of it."""
    PARTED = "parted"
    """A content that is to be changed before its end has a file of its own in place of a shared one."""
    SEALED = "sealed"
    """The staged file is final, with its digests and its last name; there is no journal row."""
    JOURNALLED = "journalled"
    """The journal row is written; the upload is not queued."""
    PUT_SENT = "put-sent"
    """The journal row outlives the process; the object is on its way from now on."""
    PART_SENT = "part-sent"
    """One part of a large object is in S3; others are not."""
    PART_COPIED = "part-copied"
    """S3 has copied one part of a large object from the file's earlier content; others are not there."""
    EARLY_SENT = "early-sent"
    """A part of a file that is still being written is in S3; nothing else knows of it."""
    EARLY_COMPLETED = "early-completed"
    """An object of which parts were sent early is in S3, and does not say yet what it is."""
    EARLY_TAGGED = "early-tagged"
    """It says so; no blob's row names it."""
    PUT_ANSWERED = "put-answered"
    """The object is in S3; no blob's row names it."""
    COMMITTED = "committed"
    """The blob's row is on disk and the journal row gone; the staged file is in its old place."""
    PROMOTED = "promoted"
    """The staged file is a cache entry, or removed; nobody who waits has been told."""
    MARKED = "marked"
    """Blobs are marked as DELETING, on disk; their objects are there."""
    DELETED = "deleted"
    """Their objects are gone; the rows are there."""
    FORGOTTEN = "forgotten"
    """Their rows are removed, not yet on disk."""
    COPIED = "copied"
    """S3 has made the copy of an object; no row names it."""
    LINKED = "linked"
    """The copy is committed, and the cached file has its second name; the caller has not been told."""


Action = Callable[[Failpoint], None]

_action: Action | None = None


def reached(point: Failpoint) -> None:
    """The process has come to this point."""
    if _action is not None:
        _action(point)


@contextmanager
def armed(point: Failpoint, action: Callable[[], None], *, nth: int = 1) -> Iterator[None]:
    """Inside, ``action`` is called when ``point`` is reached for the ``nth`` time, from 1; it may raise."""
    global _action
    before, _action = _action, _at(point, nth, action)
    try:
        yield
    finally:
        _action = before


def arm_from(environment: Mapping[str, str]) -> None:
    """Arm this process for good if its environment asks for it. Raises :class:`UsageError` for what is no
    failpoint: a test that never kills must not pass for one that did."""
    global _action
    wanted = environment.get(VARIABLE)
    if wanted is None:
        return
    name, colon, count = wanted.partition(":")
    try:
        point, nth = Failpoint(name), int(count) if colon else 1
    except ValueError as error:
        names = ", ".join(each.value for each in Failpoint)
        raise UsageError(f"{VARIABLE}={wanted}: write NAME or NAME:COUNT, with one of {names}") from error
    logger.warning("%s=%s: this process will kill itself", VARIABLE, wanted)
    _action = _at(point, nth, _kill)


def _at(wanted: Failpoint, nth: int, action: Callable[[], None]) -> Action:
    passed = 0

    def at(point: Failpoint) -> None:
        nonlocal passed
        if point is wanted:
            passed += 1
            if passed == nth:
                action()

    return at


def _kill() -> None:
    """As ``kill -9`` by somebody else: nothing is flushed, closed or unwound."""
    os.kill(os.getpid(), signal.SIGKILL)
