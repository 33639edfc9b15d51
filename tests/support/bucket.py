"""What a volume's bucket holds, seen by a client of its own, and what its index says of that."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import boto3
import trio
from botocore.config import Config
from mypy_boto3_s3.client import S3Client

from s3blobfs.blobstore.metadata import WRITE_ID
from s3blobfs.config import VOLUME_OBJECTS_PREFIX
from s3blobfs.index.database import Database
from s3blobfs.trace import Tracer
from tests.support.mounted import MountedVolume

Version = tuple[str, str]
"""Key and version id, of which there is none without versions."""


def blobs_of(volume: MountedVolume) -> tuple[set[Version], set[Version]]:
    """Of the index of a volume that is not mounted: the objects it knows, and of these what must exist."""

    async def read() -> list[tuple[str, str, str]]:
        db = Database.open(volume.index, tracer=Tracer(), read_only=True)
        try:
            rows = "SELECT object_key, version_id, state FROM blobs"
            return await db.read(lambda tx: [tuple(row) for row in tx.execute(rows)])
        finally:
            await db.aclose()

    rows = trio.run(read)
    return {row[:2] for row in rows}, {row[:2] for row in rows if row[2] != "deleting"}


def bucket_client(volume: MountedVolume) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=volume.server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=volume.server.access_key_id,
        aws_secret_access_key=volume.server.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def write_ids_of(volume: MountedVolume, versions: Iterable[Version]) -> set[str]:
    """The uploads that versions in a versioned bucket were made by."""
    client = bucket_client(volume)
    heads = [
        client.head_object(Bucket=volume.bucket, Key=key, VersionId=version_id)
        for key, version_id in versions
        if version_id
    ]
    client.close()
    return {head["Metadata"][WRITE_ID] for head in heads}


def objects_of(volume: MountedVolume) -> set[Version]:
    """Every version in the bucket but the volume's own objects. A delete marker fails."""
    client = bucket_client(volume)
    found: set[Version] = set()
    for page in client.get_paginator("list_object_versions").paginate(Bucket=volume.bucket):
        assert not page.get("DeleteMarkers")
        for version in page.get("Versions", []):
            if not version["Key"].startswith(VOLUME_OBJECTS_PREFIX):
                version_id = version.get("VersionId", "null")
                found.add((version["Key"], "" if version_id == "null" else version_id))
    client.close()
    return found


@dataclass(frozen=True)
class Swept:
    """What gc did to a volume that was not mounted."""

    strays: frozenset[Version]
    """Objects that no row of the index named; gone now."""
    deleted: dict[str, int]
    """How many of each kind."""
    versions: int
    """In the bucket now, each named by a row."""


STRAY_KINDS = ("unnamed-object", "unnamed-version")
NAMED_KINDS = ("garbage", "superseded-version")


def sweep(volume: MountedVolume) -> Swept:
    """Run gc as an operator would, without grace, on a volume that is not mounted. Afterwards the bucket
    holds exactly the objects that rows name, and all that went is told by kind; before it, none is missing
    that a row needs."""
    explained, needed = blobs_of(volume)
    before = objects_of(volume)
    assert needed <= before, f"objects are missing: {needed - before}"
    report = json.loads(volume.tool("gc", "--delete", "--grace", "0", "--json").stdout)
    deleted = {kind: tally["count"] for kind, tally in report["deleted"].items() if tally["count"]}
    named, _ = blobs_of(volume)
    after = objects_of(volume)
    assert after == named, f"gc left {after - named}; {named - after} went"
    strays = before - explained
    assert len(strays) == sum(deleted.get(kind, 0) for kind in STRAY_KINDS), (strays, report)
    # What was marked and already deleted when the process was killed is deleted again.
    assert len(explained - named) == sum(deleted.get(kind, 0) for kind in NAMED_KINDS), report
    assert set(deleted) <= {*STRAY_KINDS, *NAMED_KINDS, "stale-upload", "probe"}, report
    return Swept(frozenset(strays), deleted, len(after))
