"""The shipper of a mount, put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from s3blobfs.config import IndexCopyOptions, VolumeSettings
from s3blobfs.index.database import Database
from s3blobfs.replica.history import History, join
from s3blobfs.replica.options import Limits
from s3blobfs.replica.outgoing import Maker
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.protocol import ObjectClient


async def open_shipper(
    db: Database,
    client: ObjectClient,
    volume: VolumeSettings,
    *,
    options: IndexCopyOptions,
    conditional: bool,
    directory: Path,
    on_fenced: Callable[[str], None],
    limits: Limits | None = None,
    now_ns: Callable[[], int] = time.time_ns,
) -> Shipper:
    """Compare index and bucket, and begin to capture: to be called before the first write of a mount.

    ``conditional``: the server honours ``If-None-Match``. ``directory`` is for files of the moment. Raises
    what :func:`~s3blobfs.replica.history.join` does."""
    history = History(client, volume.prefix, volume.volume_id)
    joined = await join(db, history, take_over=options.take_over)
    maker = Maker(client, volume.prefix, volume.volume_id, db.schema_version, directory, now_ns)
    return Shipper(
        db,
        client,
        maker,
        history,
        joined,
        prefix=volume.prefix,
        options=options,
        conditional=conditional,
        on_fenced=on_fenced,
        limits=limits,
        now_ns=now_ns,
    )
