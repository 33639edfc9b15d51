"""What a mount runs beside the kernel's requests, and what becomes of all when one of these cannot go on.

A bug in one of them must not take the files away from those who read them, nor leave a bare directory to
those who write: the volume stays mounted and is changed no more. So it is when another mount has gone on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

logger = logging.getLogger(__name__)


class Service(Protocol):
    """Runs until cancelled; ``task_status`` is told when it has begun."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None: ...


class Background:
    """Of one mount."""

    def __init__(self, log_path: Path, refuse_changes: Callable[[], None]) -> None:
        """``log_path`` is where a user finds what went wrong; ``refuse_changes`` is called when the first
        reason to give up comes."""
        self._log_path = log_path
        self._refuse_changes = refuse_changes
        self._writers: list[trio.CancelScope] = []
        self.given_up: str | None = None
        """Why nothing is changed any more, and what to do."""

    def give_up(self, reason: str) -> None:
        """Change nothing any more, neither here nor in the bucket; what is there can still be read."""
        if self.given_up is not None:
            return
        self.given_up = reason
        self._refuse_changes()
        for scope in self._writers:
            scope.cancel()

    async def run(
        self, what: str, service: Service, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a service that goes on when others have given up. ``what`` names it to users."""
        try:
            await service(task_status=task_status)
        except Exception:
            logger.exception("%s ended by a bug", what)
            self.give_up(
                f"{what} ended by a bug, which {self._log_path} shows; nothing can be changed here any more,"
                " and what is not in S3 yet stays staged: unmount, and mount again"
            )

    async def run_writer(
        self, what: str, service: Service, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a service that changes the bucket: until anything is given up."""
        with trio.CancelScope() as scope:
            self._writers.append(scope)
            if self.given_up is not None:
                scope.cancel()
            await self.run(what, service, task_status)
