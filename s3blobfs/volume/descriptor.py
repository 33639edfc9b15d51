"""The volume's description in its bucket, ``PREFIX/.s3blobfs/volume.json``.

It ties bucket and index together: a mount compares the two, and a lost index is rebuilt from it and the
objects. The index is the authority. A store is added to the index first and to the description second, so
the description never knows a store that its index does not; where it does, the index is an older copy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from s3blobfs.config import VOLUME_OBJECTS_PREFIX, VolumeSettings
from s3blobfs.errors import ObjectAlreadyExists, ObjectNotFound, VolumeMismatch
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.types import DigestAlgorithm, Durability, Keying, StoreConfig

FORMAT = 1
OBJECT_NAME = "volume.json"
DEFAULT_STORE_NAME = "default"
"""The store that mkfs makes."""


@dataclass(frozen=True, slots=True)
class VolumeDescriptor:
    """A volume's settings and stores."""

    settings: VolumeSettings
    stores: tuple[StoreConfig, ...]
    """In the order of their ids."""

    @property
    def title(self) -> str:
        """For messages."""
        created = datetime.fromtimestamp(self.settings.created_ns // 10**9, UTC)
        return f"volume {self.settings.volume_id} (created {created:%Y-%m-%d %H:%M} UTC)"

    def to_json(self) -> bytes:
        settings = self.settings
        document = {
            "format": FORMAT,
            "volume_id": settings.volume_id,
            "bucket": settings.bucket,
            "prefix": settings.prefix,
            "durability": settings.durability.value,
            "created_ns": settings.created_ns,
            "garbage_grace_s": settings.garbage_grace_s,
            "stores": [store_to_json(store) for store in self.stores],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> VolumeDescriptor:
        """Raises :class:`VolumeMismatch`, naming ``where`` it was, for anything but our own format."""
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise VolumeMismatch(
                    f"{where} has format {document['format']!r} and this program knows format {FORMAT}; "
                    "install the newer program that made the volume"
                )
            return cls(
                VolumeSettings(
                    volume_id=document["volume_id"],
                    bucket=document["bucket"],
                    prefix=document["prefix"],
                    durability=Durability(document["durability"]),
                    created_ns=document["created_ns"],
                    garbage_grace_s=document["garbage_grace_s"],
                ),
                tuple(store_from_json(store) for store in document["stores"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise VolumeMismatch(
                f"{where} is not the description of a volume: {error!r}; if it was one, remove that object,"
                " and 's3blobfs recover' writes a new one"
            ) from error


def object_key(prefix: str) -> str:
    return f"{prefix}{VOLUME_OBJECTS_PREFIX}{OBJECT_NAME}"


async def find_descriptor(client: ObjectClient, prefix: str) -> VolumeDescriptor | None:
    """The description of the volume at ``prefix``, or ``None`` where there is no volume.

    Raises :class:`VolumeMismatch` for one that cannot be understood, and what S3 says otherwise."""
    key = object_key(prefix)
    try:
        answer = await client.get(key)
    except ObjectNotFound:
        return None
    return VolumeDescriptor.from_json(answer.data, f"s3://{client.bucket}/{key}")


async def get_descriptor(client: ObjectClient, prefix: str) -> VolumeDescriptor:
    """As :func:`find_descriptor`; no volume is :class:`VolumeMismatch`."""
    found = await find_descriptor(client, prefix)
    if found is None:
        uri = f"s3://{client.bucket}/{prefix}"
        raise VolumeMismatch(f"there is no volume at {uri}; make one with: s3blobfs mkfs {uri}")
    return found


async def check_vacant(client: ObjectClient, prefix: str) -> None:
    """Raises :class:`VolumeMismatch` where a volume exists at ``prefix``."""
    found = await find_descriptor(client, prefix)
    if found is not None:
        raise occupied(found)


async def put_new_descriptor(
    client: ObjectClient, descriptor: VolumeDescriptor, *, conditional_put: bool
) -> None:
    """Claim the bucket's prefix for a new volume; of two at the same time one gets
    :class:`VolumeMismatch`, where the server knows conditional requests."""
    key = object_key(descriptor.settings.prefix)
    try:
        await client.put(key, descriptor.to_json(), if_none_match=conditional_put)
    except ObjectAlreadyExists:
        raise occupied(await get_descriptor(client, descriptor.settings.prefix)) from None


async def replace_descriptor(client: ObjectClient, descriptor: VolumeDescriptor) -> None:
    await client.put(object_key(descriptor.settings.prefix), descriptor.to_json())


def occupied(found: VolumeDescriptor) -> VolumeMismatch:
    uri = found.settings.uri
    return VolumeMismatch(
        f"{uri} already holds {found.title}; mount it (s3blobfs mount {uri} MOUNTPOINT), "
        "or choose another prefix for the new volume"
    )


def compare(in_bucket: VolumeDescriptor, in_index: VolumeDescriptor) -> bool:
    """Check that bucket and index are of one volume; whether the bucket's description is up to date.

    Raises :class:`VolumeMismatch`."""
    ours, theirs = in_index.settings, in_bucket.settings
    if ours.volume_id != theirs.volume_id:
        raise VolumeMismatch(
            f"{theirs.uri} holds {in_bucket.title}, but the index is of {in_index.title} at {ours.uri}; "
            "give the index that belongs to it with --index"
        )
    if (ours.bucket, ours.prefix) != (theirs.bucket, theirs.prefix):
        raise VolumeMismatch(
            f"the index says that {in_index.title} is at {ours.uri}, the bucket says {theirs.uri}; "
            f"mount {ours.uri}"
        )
    known = {store.id: store for store in in_index.stores}
    for store in in_bucket.stores:
        if known.get(store.id) != store:
            raise VolumeMismatch(
                f"the bucket knows the store {store.name!r} at {store.uri} and the index does not: the index "
                "is an older copy; bring back the newest one"
            )
    return in_bucket == replace(in_index, settings=theirs)


def store_to_json(store: StoreConfig) -> dict[str, Any]:
    return {
        "id": store.id,
        "name": store.name,
        "bucket": store.bucket,
        "prefix": store.prefix,
        "keying": store.keying.value,
        "digest_algorithm": store.digest_algorithm.value,
        "cached": store.cached,
        "conditional_put": store.conditional_put,
    }


def store_from_json(document: dict[str, Any]) -> StoreConfig:
    return StoreConfig(
        id=document["id"],
        name=document["name"],
        bucket=document["bucket"],
        prefix=document["prefix"],
        keying=Keying(document["keying"]),
        digest_algorithm=DigestAlgorithm(document["digest_algorithm"]),
        cached=document["cached"],
        conditional_put=document["conditional_put"],
    )
