"""The table ``volume``: what the volume is, one row."""

from __future__ import annotations

from s3blobfs.config import VolumeSettings
from s3blobfs.errors import IndexDamaged
from s3blobfs.index.transaction import Transaction
from s3blobfs.types import Durability


def load(tx: Transaction) -> VolumeSettings:
    """Raises :class:`IndexDamaged` while there are none: mkfs was interrupted."""
    row = tx.execute(
        "SELECT volume_id, bucket, prefix, durability, created_ns, garbage_grace_s FROM volume"
    ).fetchone()
    if row is None:
        raise IndexDamaged("the index holds no volume: mkfs did not finish; remove the file and run it again")
    return VolumeSettings(
        volume_id=row[0],
        bucket=row[1],
        prefix=row[2],
        durability=Durability(row[3]),
        created_ns=row[4],
        garbage_grace_s=row[5],
    )


def store(tx: Transaction, settings: VolumeSettings) -> None:
    """Write the settings, in place of earlier ones."""
    tx.modify(
        "INSERT OR REPLACE INTO volume VALUES (1, ?, ?, ?, ?, ?, ?)",
        (
            settings.volume_id,
            settings.bucket,
            settings.prefix,
            settings.durability.value,
            settings.created_ns,
            settings.garbage_grace_s,
        ),
    )
