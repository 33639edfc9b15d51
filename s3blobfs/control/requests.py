"""What a mounted volume answers on its control socket, apart from its stores (:mod:`.stores`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import trio

from s3blobfs.blobstore.keys import VERSION_SEPARATOR, digest_location, subject, versioned_location
from s3blobfs.control.messages import ControlError, Json, argument
from s3blobfs.control.server import Call, Handler
from s3blobfs.control.tracefile import TraceRecorder
from s3blobfs.errors import ObjectNotFound, UsageError
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.facade import Filesystem
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Arrow, Local, Party, Tracer
from s3blobfs.types import BlobLocation, Keying, StoreConfig
from s3blobfs.volume.clients import BucketClients


class UnmountWatch:
    """Tells those who wait for the unmount how far it is, and how it ended."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Json], None]] = []
        self._progress: Json = {"state": "mounted"}
        self._ended = trio.Event()
        self._error: str | None = None
        self._left: Json = {"files_left": 0, "bytes_left": 0}
        self.detach = False
        """Somebody asked not to wait for S3 when it is unmounted."""

    def report(self, files_left: int, bytes_left: int, last_error: str | None) -> None:
        self._progress = {
            "state": "storing",
            "files_left": files_left,
            "bytes_left": bytes_left,
            "last_error": last_error,
        }
        for listener in self._listeners:
            listener(self._progress)

    def detached(self, files_left: int, bytes_left: int) -> None:
        """What stays staged for the next mount."""
        self._left = {"files_left": files_left, "bytes_left": bytes_left}

    def end(self, error: str | None) -> None:
        """Everything is in S3, or detached, and closed; or ``error`` says why not. The first call counts."""
        if not self._ended.is_set():
            self._error = error
            self._ended.set()

    async def wait(self, call: Call) -> Json:
        """The request ``unmount``: the client unmounts, and waits here for what follows. The first report
        tells it that it is being listened to. ``detach``: do not wait for S3. Answers what is left."""
        self.detach = self.detach or call.arguments.get("detach") is True
        call.progress(self._progress)
        self._listeners.append(call.progress)
        try:
            await self._ended.wait()
        finally:
            self._listeners.remove(call.progress)
        if self._error is not None:
            raise ControlError(self._error)
        return self._left


@dataclass(frozen=True, slots=True)
class MountRequests:
    """Requests about files and traces, and the description of the mount."""

    filesystem: Filesystem
    tier: Tier
    tracer: Tracer
    recorder: TraceRecorder
    clients: BucketClients
    describe: Callable[[], Json]
    """What ``status`` shows."""

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": self.status,
            "sync": self.sync,
            "copy": self.copy,
            "trace.section": self.trace_section,
            "trace.start": self.trace_start,
            "trace.stop": self.trace_stop,
            "trace.blob": self.trace_blob,
        }

    async def status(self, _: Call) -> Json:
        return self.describe()

    async def sync(self, call: Call) -> Json:
        """``inode``: a file, or null for the whole volume."""
        inode_id = call.arguments.get("inode")
        if inode_id is not None:
            inode_id = argument(call.arguments, "inode", int)

        def report(files_left: int, bytes_left: int) -> None:
            call.progress({"files_left": files_left, "bytes_left": bytes_left})

        await self.filesystem.sync(inode_id, report)
        return {}

    async def copy(self, call: Call) -> Json:
        """``source``, ``parent``: inodes; ``name``; ``replace``. The copy belongs to who asks."""
        inode_id = await self.filesystem.copy_file(
            argument(call.arguments, "source", int),
            argument(call.arguments, "parent", int),
            os.fsencode(argument(call.arguments, "name", str)),
            replace=argument(call.arguments, "replace", bool),
            caller=Caller(call.peer.uid, call.peer.gid, call.peer.pid),
        )
        await self.filesystem.kernel_notified()
        return {"inode": inode_id}

    # -- traces ----------------------------------------------------------------------------------------

    async def trace_section(self, call: Call) -> Json:
        """``title``."""
        if not self.tracer.drawing:
            raise UsageError("no trace is being drawn; begin one with: s3blobfs trace MOUNTPOINT start FILE")
        self.tracer.section(argument(call.arguments, "title", str))
        return {}

    async def trace_start(self, call: Call) -> Json:
        """``file``: an absolute path."""
        path = Path(argument(call.arguments, "file", str))
        if not path.is_absolute():
            raise UsageError(f"{path} is not an absolute path")
        self.recorder.start(path)
        return {}

    async def trace_stop(self, _: Call) -> Json:
        return {"file": str(path) if (path := self.recorder.stop()) else None}

    async def trace_blob(self, call: Call) -> Json:
        """``blob``: ``id@version`` or a digest; ``store``: its name. Looks for it in the cache and in S3,
        and draws what it finds."""
        name = argument(call.arguments, "store", str)
        store = next(
            (each.config for each in self.filesystem.stores.values() if each.config.name == name), None
        )
        if store is None:
            raise UsageError(f"the volume has no store {name!r}")
        location = _location(store, argument(call.arguments, "blob", str))
        cached: bool | None = None
        if store.cached:
            cached = self.tier.cache.contains(store.id, location.cache_name)
            self._draw(Local.CACHE, "exists" if cached else "missing", location.cache_name)
        client = self.clients.of(store.bucket)
        size_bytes: int | None = None
        try:
            info = await client.head(location.object_key, version_id=location.version_id)
            size_bytes = info.size_bytes
        except ObjectNotFound:
            pass
        found = "missing" if size_bytes is None else f"exists ({size_bytes} bytes)"
        self._draw(Party.S3, found, subject(location))
        return {"cached": cached, "stored": size_bytes is not None, "size_bytes": size_bytes}

    def _draw(self, where: Party | Local, found: str, note: str) -> None:
        self.tracer.step(Party.CLIENT, Arrow.FROM_DASHED, where, found, note)


def _location(store: StoreConfig, blob: str) -> BlobLocation:
    if store.keying is Keying.DIGEST:
        return digest_location(store.prefix, blob)
    object_id, separator, version_id = blob.partition(VERSION_SEPARATOR)
    if not separator:
        raise UsageError(f"a blob of the store {store.name!r} is ID{VERSION_SEPARATOR}VERSION")
    return versioned_location(store.prefix, object_id, unquote(version_id))
