"""The state table of a file's content: every state meets every event."""

from __future__ import annotations

import pytest

from s3blobfs.fs.content import TRANSITIONS, Content, Event, State
from s3blobfs.types import BlobContent, BlobLocation, ContentDigests

ALLOWED = {
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
"""Written down a second time, so that a change of the table is a change of its test."""


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_each_event_in_each_state(state: State, event: Event) -> None:
    content = Content(state)
    if (state, event) in ALLOWED:
        content.move(event)
        assert content.state is ALLOWED[state, event]
    else:
        with pytest.raises(KeyError):
            content.move(event)
        assert content.state is state


def test_the_table_says_nothing_else() -> None:
    assert TRANSITIONS == ALLOWED


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State)


def test_an_upload_of_an_earlier_content_changes_nothing() -> None:
    blob = BlobContent(1, 1, BlobLocation("key", None, "key"), "etag", ContentDigests(1, b"", b"", b""))
    sealed = Content(State.SEALED, upload_id=7)
    assert not sealed.stored(6, blob)
    assert (sealed.state, sealed.upload_id, sealed.blob) == (State.SEALED, 7, None)
    dirty = Content(State.DIRTY)
    assert not dirty.stored(7, blob)
    assert dirty.state is State.DIRTY
    assert sealed.stored(7, blob)
    assert (sealed.state, sealed.upload_id, sealed.blob) == (State.CLEAN, None, blob)
