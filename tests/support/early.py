"""Objects as early uploads leave them, made of ordinary ones."""

from __future__ import annotations

import time
from dataclasses import replace

from s3blobfs.blobstore import metadata
from s3blobfs.s3.fake import FakeBucket
from s3blobfs.types import ContentDigests, ObjectHint


def as_sent_early(
    bucket: FakeBucket, *, tagged: bool = True, mode: int | None = None, done_ns: int | None = None
) -> None:
    """What the stamps of a bucket's objects say of their content, tags say, or nothing does. ``mode``: what
    it became while the file was written. ``done_ns``: when the tag was put."""
    for key, history in bucket.versions.items():
        for at, version in enumerate(history):
            stamp = metadata.decode(version.info.metadata)
            if stamp.md5 is None or stamp.sha256 is None or stamp.mode is None or stamp.mtime_ns is None:
                continue
            plain = dict(version.info.metadata)
            for name in (metadata.SIZE, metadata.MD5, metadata.SHA256):
                del plain[name]
            now = stamp.mode if mode is None else mode
            hint = ObjectHint(stamp.inode_id or 0, b"", now, stamp.uid or 0, stamp.gid or 0, stamp.mtime_ns)
            digests = ContentDigests(version.info.size_bytes, stamp.md5, stamp.sha256, b"")
            bucket.versions[key][at] = replace(
                version,
                info=replace(version.info, metadata={**plain, metadata.DIGESTS: "tag"}),
                tags=metadata.encode_tag(digests, hint, time.time_ns() if done_ns is None else done_ns)
                if tagged
                else {},
            )
