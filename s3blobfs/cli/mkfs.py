"""``s3blobfs mkfs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio

from s3blobfs.app import make_volume
from s3blobfs.cli.params import DIGEST, DURABILITY, KEYING, PATH, s3_options, s3_uri, take_s3_options
from s3blobfs.types import DigestAlgorithm, Durability, Keying
from s3blobfs.volume.making import NewVolume


@click.command()
@click.argument("uri", type=s3_uri, metavar="s3://BUCKET[/PREFIX]")
@click.option(
    "--mode", "keying", type=KEYING, default=Keying.DIGEST.value, show_default=True,
    help="How objects are keyed. digest: by their content, which is stored once. versioned: one key per "
    "file for life, and a version of it for every change; needs a bucket with versioning.",
)  # fmt: skip
@click.option(
    "--digest", type=DIGEST, default=DigestAlgorithm.MD5.value, show_default=True,
    help="The digest that becomes the key with --mode digest.",
)  # fmt: skip
@click.option(
    "--cache/--no-cache", "cached", default=True, show_default=True,
    help="Whether whole files are kept in the local cache.",
)  # fmt: skip
@click.option(
    "--durability", type=DURABILITY, default=Durability.S3.value, show_default=True,
    help="What close() waits for: the object in S3, or the local disk, with the upload behind.",
)  # fmt: skip
@click.option(
    "--index", "index_path", type=PATH, help="Where the index is made; in the state directory if not given."
)
@click.option("--create-bucket", is_flag=True, help="Make the bucket if there is none.")
@click.option(
    "--versioning", is_flag=True,
    help="Turn the bucket's versioning on; a new bucket of a versioned volume has it anyway.",
)  # fmt: skip
@s3_options
def mkfs(uri: tuple[str, str], index_path: Path | None, **values: Any) -> None:
    """Make a volume in a bucket, or below a prefix of one.

    The volume's index, which holds names and attributes, is a file on this machine; the contents of files
    are objects of the bucket.

    \b
    Examples:
        s3blobfs mkfs s3://my-bucket --create-bucket
        s3blobfs mkfs s3://my-bucket/projects --mode versioned
        s3blobfs mkfs s3://test --endpoint-url http://127.0.0.1:8333 --create-bucket
    """
    bucket, prefix = uri
    s3 = take_s3_options(values)
    made = trio.run(
        make_volume,
        NewVolume(
            bucket=bucket,
            prefix=prefix,
            keying=Keying(values["keying"]),
            digest_algorithm=DigestAlgorithm(values["digest"]),
            cached=values["cached"],
            durability=Durability(values["durability"]),
            index_path=index_path.absolute() if index_path else None,
            create_bucket=values["create_bucket"],
            enable_versioning=values["versioning"],
            s3=s3,
        ),
    )
    volume_uri = made.settings.uri
    click.echo(f"made volume {made.settings.volume_id} at {volume_uri}; its index is {made.index_path}")
    options = f" --index {index_path}" if index_path else ""
    click.echo(f"mount it with: s3blobfs mount{options} {volume_uri} MOUNTPOINT")
