"""Opening a store, and making sure beforehand that its bucket can be one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from s3blobfs.blobstore.digest import DigestBlobStore
from s3blobfs.blobstore.probing import probe_key
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.blobstore.versioned import VersionedBlobStore, enable_versioning_command
from s3blobfs.errors import ObjectAlreadyExists, PermanentS3Error, UsageError
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.trace import Tracer
from s3blobfs.types import Keying, StoreConfig

logger = logging.getLogger(__name__)

_PROBE = b"probe of s3blobfs; may be deleted\n"


@dataclass(frozen=True, slots=True)
class StoreCapabilities:
    """What :func:`prepare_store` found out."""

    conditional_put: bool
    """``If-None-Match: *`` is honoured: a PUT to a key that is taken is refused."""
    versioning: bool
    """The bucket keeps versions. In a ``digest`` store it means that deleted blobs stay as noncurrent
    versions, and are paid for, until a lifecycle rule removes them."""


def open_store(config: StoreConfig, client: ObjectClient, tracer: Tracer) -> BlobStore:
    """The store of ``config``; costs no request."""
    kind = VersionedBlobStore if config.keying is Keying.VERSIONED else DigestBlobStore
    return kind(config, client, tracer)


async def prepare_store(
    client: ObjectClient,
    *,
    prefix: str,
    keying: Keying,
    create_bucket: bool = False,
    enable_versioning: bool = False,
) -> StoreCapabilities:
    """Check that a store with this keying can be made below ``prefix`` (empty, or ending in ``/``).

    With ``create_bucket`` a missing bucket is created, with versioning if the keying asks for it;
    ``enable_versioning`` turns it on in a bucket that exists. Writing, reading and deleting are tried with
    a probe object below ``.s3blobfs/``, of which nothing is left. Raises
    :class:`~s3blobfs.errors.UsageError` for what the user can mend, and what S3 says otherwise."""
    versioned = keying is Keying.VERSIONED
    created = await _ensure_bucket(client, create_bucket)
    versioning = await client.versioning_enabled()
    if versioned and not versioning:
        if not (created or enable_versioning):
            raise UsageError(
                f"bucket {client.bucket} has versioning off, and a store with versioned keys needs it. "
                f"Turn it on ({enable_versioning_command(client.bucket)}), "
                "or choose --mode digest, or let --create-bucket make a new bucket"
            )
        await client.enable_versioning()
        versioning = await client.versioning_enabled()
    async with probe_key(client, prefix) as key:
        conditional_put = await _probe(client, key, versioned)
    return StoreCapabilities(conditional_put=conditional_put, versioning=versioning)


async def _ensure_bucket(client: ObjectClient, create: bool) -> bool:
    """Whether it was created."""
    if await client.bucket_exists():
        return False
    if not create:
        raise UsageError(f"bucket {client.bucket} does not exist; create it first, or pass --create-bucket")
    await client.create_bucket()
    return True


async def _probe(client: ObjectClient, key: str, versioned: bool) -> bool:
    """Write and read ``key``; whether a conditional PUT to it was then refused."""
    receipt = await client.put(key, _PROBE)
    if versioned and receipt.version_id is None:
        raise UsageError(
            f"bucket {client.bucket} says that versioning is on, but gave no version id to an object; "
            "choose --mode digest"
        )
    answer = await client.get(key, version_id=receipt.version_id)
    if answer.data != _PROBE:
        raise UsageError(f"bucket {client.bucket} does not give back the bytes that were put into it")
    try:
        await client.put(key, _PROBE, if_none_match=True)
    except ObjectAlreadyExists:
        return True
    except PermanentS3Error as error:
        # Servers that do not know the condition refuse it in ways of their own (501, 304).
        logger.info("conditional PUT is not supported in bucket %s: %s", client.bucket, error)
    return False
