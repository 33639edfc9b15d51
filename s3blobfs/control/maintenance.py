"""The requests of fsck, scrub and gc on a mounted volume."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, TypeVar

from s3blobfs.control.messages import PART_BYTES, Json, MalformedMessage, argument
from s3blobfs.control.server import Call, Handler
from s3blobfs.errors import UsageError
from s3blobfs.maintenance.fsck import fsck
from s3blobfs.maintenance.gc import GcOptions, gc
from s3blobfs.maintenance.scrub import ScrubOptions, scrub
from s3blobfs.maintenance.target import Target

T = TypeVar("T")


class MaintenanceRequests:
    """Runs one tool at a time: they would take each other's findings for damage."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._running: str | None = None

    def handlers(self) -> dict[str, Handler]:
        return {
            "fsck": self._alone("fsck", self.fsck),
            "scrub": self._alone("scrub", self.scrub),
            "gc": self._alone("gc", self.gc),
        }

    async def fsck(self, call: Call) -> Json:
        """``repair``. The list ``problems`` comes in parts."""
        repair = argument(call.arguments, "repair", bool)
        parts = _Parts(call, "problems")
        report = await fsck(self._target, repair=repair, progress=call.progress, lister=parts.add)
        return await parts.ending(report.to_json())

    async def scrub(self, call: Call) -> Json:
        """The fields of :class:`ScrubOptions`. The list ``damages`` comes in parts."""
        options = options_of(ScrubOptions, call.arguments)
        parts = _Parts(call, "damages")
        report = await scrub(self._target, options, progress=call.progress, lister=parts.add)
        return await parts.ending(report.to_json())

    async def gc(self, call: Call) -> Json:
        """The fields of :class:`GcOptions`."""
        report = await gc(self._target, options_of(GcOptions, call.arguments), progress=call.progress)
        return report.to_json()

    def _alone(self, name: str, handler: Callable[[Call], Awaitable[Json]]) -> Handler:
        async def run(call: Call) -> Json:
            if self._running is not None:
                raise UsageError(f"a {self._running} of this volume is running; wait until it has ended")
            self._running = name
            try:
                return await handler(call)
            finally:
                self._running = None

        return run


class _Parts:
    """A list of an answer, sent as it grows."""

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._name = name
        self._entries: list[Json] = []
        self._bytes = 0

    async def add(self, entry: Json) -> None:
        self._entries.append(entry)
        self._bytes += len(json.dumps(entry))
        if self._bytes >= PART_BYTES:
            await self._send()

    async def ending(self, report: Json) -> Json:
        """The rest of the answer, everything in the list being sent."""
        await self._send()
        return report

    async def _send(self) -> None:
        entries, self._entries, self._bytes = self._entries, [], 0
        if entries:
            await self._call.part(self._name, entries)


def options_of(kind: type[T], arguments: Json) -> T:
    """A tool's options from a request; what is left out has its default. Raises :class:`MalformedMessage` for
    values of another type."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in arguments:
            value = arguments[field.name]
            if not _fits(value, str(field.type)):
                raise MalformedMessage(f"argument {field.name!r}: {field.type} expected")
            values[field.name] = value
    return kind(**values)


def _fits(value: object, annotation: str) -> bool:
    """Annotations of options are names of plain types, perhaps ``| None``."""
    name, _, none = annotation.partition(" | ")
    if value is None:
        return none == "None"
    if name == "bool" or isinstance(value, bool):
        return name == "bool" and isinstance(value, bool)
    return isinstance(value, (int, float) if name == "float" else int)
