"""What is to be sent next: a segment that has its bytes, and how it is made."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.errors import VolumeIndexError
from s3blobfs.index.capture import Changes
from s3blobfs.index.copying import PinnedState
from s3blobfs.index.replica import ReplicaRow
from s3blobfs.replica import names
from s3blobfs.replica.history import Tip
from s3blobfs.replica.segment import Kind, Segment, encode, pack
from s3blobfs.replica.snapshot import SnapshotHeader, write_file
from s3blobfs.s3.protocol import ObjectClient


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A segment with its bytes, which do not change any more: an attempt whose answer was lost is known by
    them."""

    segment: Segment
    data: bytes
    digest: str
    snapshot: Path | None = None
    """Of a break: the packed state, to be sent first."""

    @property
    def tip(self) -> Tip:
        return Tip(self.segment.number, self.digest)

    def row(self) -> ReplicaRow:
        """What the index notes before it is sent."""
        segment = self.segment
        return ReplicaRow(
            number=segment.number,
            digest=self.digest,
            previous=segment.previous,
            sequence=segment.sequence,
            schema_version=segment.schema_version,
            claimed=True,
        )

    def discard(self) -> None:
        if self.snapshot is not None:
            self.snapshot.unlink(missing_ok=True)


class Maker:
    """Makes segments and snapshots of one volume. ``directory`` is for files that need not outlive the
    process, on a disk with room for a copy of the index."""

    def __init__(
        self,
        client: ObjectClient,
        prefix: str,
        volume_id: str,
        schema_version: int,
        directory: Path,
        now_ns: Callable[[], int],
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._volume_id = volume_id
        self._schema_version = schema_version
        self.directory = directory
        self._now_ns = now_ns
        self._writer = socket.gethostname()

    def sweep(self) -> None:
        """Make the directory, and remove what a process before left in it. Raises ``OSError``."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        for left in self.directory.iterdir():
            left.unlink()

    async def changes(self, tip: Tip, after_sequence: int, changes: Sequence[Changes]) -> Outgoing:
        payload, payload_bytes = await trio.to_thread.run_sync(pack, changes)
        return self._outgoing(
            tip,
            Kind.CHANGES,
            after_sequence,
            changes[-1].sequence,
            changes[-1].made_ns,
            payload,
            payload_bytes,
        )

    def mark(self, tip: Tip, sequence: int) -> Outgoing:
        return self._outgoing(tip, Kind.MARK, sequence, sequence, self._now_ns())

    async def break_(self, tip: Tip, after_sequence: int, pinned: PinnedState) -> Outgoing:
        """Closes the pinned state. Raises ``OSError``."""
        made_ns = self._now_ns()
        segment, data, digest = self._encoded(tip, Kind.BREAK, after_sequence, pinned.sequence, made_ns)
        path = await self._packed(Tip(segment.number, digest), made_ns, pinned)
        return Outgoing(segment, data, digest, path)

    async def send_snapshot_of(self, tip: Tip, made_ns: int, pinned: PinnedState) -> int:
        """Make and send the snapshot behind a segment that is in the bucket; answers its size in bytes.
        Closes the pinned state. Raises what S3 does, ``OSError``."""
        path = await self._packed(tip, made_ns, pinned)
        try:
            return await self.send_snapshot(tip.number, path)
        finally:
            path.unlink(missing_ok=True)

    async def send_snapshot(self, number: int, path: Path) -> int:
        size_bytes = path.stat().st_size
        await self._client.put(names.new_snapshot_key(self._prefix, number), path)
        return size_bytes

    async def _packed(self, tip: Tip, made_ns: int, pinned: PinnedState) -> Path:
        database = self.directory / f"{tip.number}.db"
        packed = self.directory / f"{tip.number}.snapshot"
        try:
            try:
                database.unlink(missing_ok=True)
                packed.unlink(missing_ok=True)
                await pinned.copy_to(database)
            except VolumeIndexError as error:
                # Of the copy's disk, most likely; if it is of the index's, the next write says so.
                raise OSError(errno.EIO, str(error)) from error
            finally:
                pinned.close()
            header = SnapshotHeader(
                volume_id=self._volume_id,
                number=tip.number,
                digest=tip.digest,
                sequence=pinned.sequence,
                schema_version=self._schema_version,
                made_ns=made_ns,
                database_bytes=database.stat().st_size,
            )
            await trio.to_thread.run_sync(write_file, database, header, packed)
        except BaseException:
            packed.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                database.unlink()
        return packed

    def _outgoing(
        self,
        tip: Tip,
        kind: Kind,
        after_sequence: int,
        sequence: int,
        made_ns: int,
        payload: bytes = b"",
        payload_bytes: int = 0,
    ) -> Outgoing:
        return Outgoing(*self._encoded(tip, kind, after_sequence, sequence, made_ns, payload, payload_bytes))

    def _encoded(
        self,
        tip: Tip,
        kind: Kind,
        after_sequence: int,
        sequence: int,
        made_ns: int,
        payload: bytes = b"",
        payload_bytes: int = 0,
    ) -> tuple[Segment, bytes, str]:
        segment = Segment(
            number=tip.number + 1,
            kind=kind,
            volume_id=self._volume_id,
            previous=tip.digest,
            after_sequence=after_sequence,
            sequence=sequence,
            schema_version=self._schema_version,
            made_ns=made_ns,
            writer=self._writer,
            payload=payload,
            payload_bytes=payload_bytes,
        )
        return segment, *encode(segment)
