"""The other end of a conversation is gone."""

from __future__ import annotations

import socket

import pytest

from s3blobfs.control.client import Conversation
from s3blobfs.control.messages import ControlError


@pytest.mark.parametrize("read_before", [True, False], ids=["after it read", "before it read"])
def test_the_mount_is_killed_while_it_works(*, read_before: bool) -> None:
    """What it did not read is told by ECONNRESET (unix(7)), otherwise there is the end of the stream."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"request\n")
    if read_before:
        theirs.recv(100)
    theirs.close()
    with Conversation(ours) as conversation, pytest.raises(ControlError, match="ended before it answered"):
        conversation.wait(lambda _: None)
