"""A volume's description when its object in the bucket is lost: put together from what else is there.

The copy of the index, where any of it is left, names the volume. Which stores there are, and how they key
their objects, the objects tell: the name of each, compared with the digests in its stamp. What nothing tells
is taken as mkfs would make it, unless the operator states it; every such assumption is said.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from s3blobfs.blobstore import metadata
from s3blobfs.blobstore.open import prepare_store
from s3blobfs.config import VOLUME_OBJECTS_PREFIX, VolumeSettings
from s3blobfs.errors import DamagedContent, ObjectNotFound, UsageError, VolumeMismatch
from s3blobfs.replica import names
from s3blobfs.replica.segment import decode
from s3blobfs.replica.snapshot import read_header
from s3blobfs.replica.stored import for_each
from s3blobfs.s3.protocol import ObjectClient, ObjectInfo
from s3blobfs.types import DigestAlgorithm, Durability, Keying, StoreConfig
from s3blobfs.volume.descriptor import DEFAULT_STORE_NAME, VolumeDescriptor

SAMPLES = 32
"""Objects of a store that are asked."""
STORES_MAX = 100
"""Prefixes that are looked at."""

_OURS = re.compile("[0-9a-f]{32}(-[0-9a-f]{64})?|[0-9a-f]{64}(-[0-9a-f]{32})?")
"""Names that this program gives."""
_OBJECT_ID_DIGITS = 32

T = TypeVar("T")
Kind = tuple[Keying, DigestAlgorithm]


@dataclass(frozen=True, slots=True)
class Stated:
    """What the operator knows of the volume; ``None``: nothing. Of the store ``default``, but for the
    durability."""

    keying: Keying | None = None
    digest_algorithm: DigestAlgorithm | None = None
    cached: bool | None = None
    durability: Durability | None = None

    @property
    def is_empty(self) -> bool:
        return self == Stated()


@dataclass(slots=True)
class Derived:
    """A description, and where it comes from."""

    descriptor: VolumeDescriptor
    conditional_put: bool
    remarks: list[str] = field(default_factory=list)


async def find_volume_id(client: ObjectClient, prefix: str) -> str | None:
    """The volume whose index is copied to that prefix; ``None`` when nothing readable says so. Raises what
    S3 does."""
    for key in await _numbered(client, names.segments_prefix(prefix)):
        try:
            return decode((await client.get(key.key)).data, key.key)[0].volume_id
        except (DamagedContent, ObjectNotFound):
            continue
    for info in await _numbered(client, names.snapshots_prefix(prefix)):
        try:
            return (await read_header(client, info)).volume_id
        except (DamagedContent, ObjectNotFound):
            continue
    return None


async def _numbered(client: ObjectClient, prefix: str) -> list[ObjectInfo]:
    """The newest first."""
    return sorted(
        [info async for info in client.list_objects(prefix)], key=lambda each: each.key, reverse=True
    )


async def derive(
    client: ObjectClient,
    prefix: str,
    stated: Stated,
    progress: Callable[[int], None] = lambda listed: None,
) -> Derived:
    """``progress`` is told of objects listed. Writes nothing but a probe, which it removes.

    Raises :class:`UsageError` where the objects do not tell how they are keyed, and what S3 does."""
    volume_id = await find_volume_id(client, prefix)
    remarks = []
    if volume_id is None:
        volume_id = uuid.uuid4().hex
        remarks.append(f"nothing names the volume any more: it is volume {volume_id} from now on")
    samples = await _samples(client, prefix, progress)
    kinds = {group: await _kinds(client, group, keys) for group, keys in samples.items()}
    kinds = {group: votes for group, votes in kinds.items() if votes}
    keying, algorithm = _default_kind(client.bucket, prefix, kinds, stated, remarks)
    cached = _assumed("cached", stated.cached, True, remarks)
    durability = _assumed("durability", stated.durability, Durability.S3, remarks)
    capabilities = await prepare_store(client, prefix=prefix, keying=keying)
    conditional = capabilities.conditional_put
    stores = [
        StoreConfig(1, DEFAULT_STORE_NAME, client.bucket, prefix, keying, algorithm, cached, conditional)
    ]
    for group, votes in sorted(kinds.items()):
        if group == prefix:
            continue
        ((kind, count),) = votes.most_common(1)
        name = group.removeprefix(prefix).rstrip("/")
        remarks.append(
            f"store {name!r}, made of s3://{client.bucket}/{group}: {_text(kind)}, as {count} of"
            f" {votes.total()} objects say that were asked"
        )
        stores.append(StoreConfig(len(stores) + 1, name, client.bucket, group, *kind, cached, conditional))
    remarks.append("stores in other buckets, and which directories use which store, are not known any more")
    volume = VolumeSettings(volume_id, client.bucket, prefix, durability, time.time_ns())
    return Derived(VolumeDescriptor(volume, tuple(stores)), conditional, remarks)


def _default_kind(
    bucket: str, prefix: str, kinds: dict[str, Counter[Kind]], stated: Stated, remarks: list[str]
) -> Kind:
    uri = f"s3://{bucket}/{prefix}"
    votes = kinds.get(prefix)
    if stated.keying is not None or stated.digest_algorithm is not None:
        kind = stated.keying or Keying.DIGEST, stated.digest_algorithm or DigestAlgorithm.MD5
        if votes is not None and kind not in votes:
            raise UsageError(
                f"the objects of {uri} are not {_text(kind)}, but {_listed(votes)}: state that, or nothing"
            )
        return kind
    if votes is None:
        if not kinds:
            raise UsageError(
                f"there is no volume at {uri}, nor any object that this program wrote. If that is the right"
                " place all the same, state --mode"
            )
        kind = Keying.DIGEST, DigestAlgorithm.MD5
        remarks.append(f"store 'default' has no object: assumed {_text(kind)}, as mkfs makes it")
        return kind
    if len(votes) > 1:
        raise UsageError(
            f"the objects of {uri} are of several kinds: {_listed(votes)}; state --mode and --digest"
        )
    (kind,) = votes
    remarks.append(f"store 'default': {_text(kind)}, as all {votes.total()} objects say that were asked")
    return kind


def _assumed(name: str, stated: T | None, default: T, remarks: list[str]) -> T:
    if stated is not None:
        return stated
    remarks.append(f"{name}: assumed as mkfs makes it; state it if it was otherwise")
    return default


def _text(kind: Kind) -> str:
    keying, algorithm = kind
    return f"digest ({algorithm.value})" if keying is Keying.DIGEST else "versioned"


def _listed(votes: Counter[Kind]) -> str:
    return ", ".join(f"{count} {_text(kind)}" for kind, count in votes.most_common())


# --- looking at objects --------------------------------------------------------------------------------


async def _samples(
    client: ObjectClient, prefix: str, progress: Callable[[int], None]
) -> dict[str, list[str]]:
    """Keys that look like ours, by the prefix before their name; not those of other volumes below."""
    groups: dict[str, list[str]] = {}
    nested: set[str] = set()
    listed = 0
    async for info in client.list_objects(prefix):
        listed += 1
        if listed % 1000 == 0:
            progress(listed)
        below, mark, _ = info.key.removeprefix(prefix).partition(f"/{VOLUME_OBJECTS_PREFIX}")
        if mark:
            nested.add(f"{prefix}{below}/")
        directory, slash, name = info.key.rpartition("/")
        if not _OURS.fullmatch(name):
            continue
        group = groups.setdefault(directory + slash, [])
        if len(group) < SAMPLES:
            group.append(info.key)
        if len(groups) > STORES_MAX:
            raise UsageError(f"there are more than {STORES_MAX} prefixes below {prefix!r} that may be stores")
    progress(listed)
    own = f"{prefix}{VOLUME_OBJECTS_PREFIX}"
    return {
        group: keys
        for group, keys in groups.items()
        if not group.startswith((own, *nested) if nested else own)
    }


async def _kinds(client: ObjectClient, group: str, keys: list[str]) -> Counter[Kind]:
    async def ask(key: str) -> Kind | None:
        try:
            return _kind(key.removeprefix(group), await client.head(key))
        except ObjectNotFound:
            return None

    return Counter(kind for kind in await for_each(keys, ask) if kind is not None)


def _kind(name: str, info: ObjectInfo) -> Kind | None:
    stamp = metadata.decode(info.metadata)
    if not stamp.is_ours:
        return None
    if stamp.md5 is not None and stamp.sha256 is not None:
        md5, sha256 = stamp.md5.hex(), stamp.sha256.hex()
        if name in (md5, f"{md5}-{sha256}"):
            return Keying.DIGEST, DigestAlgorithm.MD5
        if name in (sha256, f"{sha256}-{md5}"):
            return Keying.DIGEST, DigestAlgorithm.SHA256
    if len(name) == _OBJECT_ID_DIGITS and info.version_id is not None:
        return Keying.VERSIONED, DigestAlgorithm.MD5
    return None


def check_place(descriptor: VolumeDescriptor, bucket: str, prefix: str) -> None:
    """Raises :class:`VolumeMismatch` for the description of a volume that is elsewhere."""
    volume = descriptor.settings
    if (volume.bucket, volume.prefix) != (bucket, prefix):
        raise VolumeMismatch(
            f"the copy of the index in s3://{bucket}/{prefix} is of {descriptor.title} at {volume.uri}:"
            " recover that"
        )
