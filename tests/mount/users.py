"""Acting as somebody else, for tests that run as root."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def as_user(uid: int, gid: int, do: Callable[[], T]) -> T:
    """Call ``do`` with these ids, and without root's rights to files, in a thread of its own: file system
    ids are a thread's (setfsuid(2)). What the kernel sees of it is what it sees of that user's process."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def act() -> None:
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        try:
            if (_libc.setfsuid(-1), _libc.setfsgid(-1)) != (uid, gid):
                raise PermissionError("cannot act as another user")
            answers.append(do())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
