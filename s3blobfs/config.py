"""Options, with their defaults and limits in one place.

Three kinds: how S3 is reached (:class:`S3Options`, never stored), how a mount behaves
(:class:`MountOptions`, never stored) and what a volume is (:class:`VolumeSettings`, stored in the index
and, for the sake of recovery, in the bucket). Credentials are in none of them: they come from the AWS chain.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from s3blobfs.errors import UsageError
from s3blobfs.types import Durability

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
DAY_S = 86400.0

VOLUME_OBJECTS_PREFIX = ".s3blobfs/"
"""Below the volume's prefix: settings and, later, index segments. Every other object is a blob."""

NAME_MAX_BYTES = 255
"""limits.h NAME_MAX on Linux."""
SYMLINK_TARGET_MAX_BYTES = 4095
"""PATH_MAX less the terminating NUL."""
OBJECT_MAX_BYTES = 5 * TIB
"""The largest S3 object."""
PASSTHROUGH_MIN_BYTES = 1 * MIB
"""Smaller files are open and read in less time by the ordinary way (docs/performance.md)."""


class FuseExtension(enum.Enum):
    """How much of what pyfuse3 does not bind a mount may use (docs/fuse-extension.md)."""

    AUTO = "auto"
    """As much as can be had."""
    INIT = "init"
    """Nothing that changes a loaded library."""
    OFF = "off"
    """pyfuse3 alone."""


class Encryption(enum.Enum):
    """Server-side encryption asked for with each PUT and copy."""

    NONE = "none"
    SSE_S3 = "AES256"
    SSE_KMS = "aws:kms"


@dataclass(frozen=True, slots=True)
class S3Options:
    """How S3 is reached."""

    endpoint_url: str | None = None
    """``None``: AWS."""
    region: str | None = None
    """``None``: from the AWS configuration, else ``us-east-1``."""
    path_style: bool | None = None
    """``None``: path-style exactly when an endpoint is given."""
    profile: str | None = None
    ca_bundle: Path | None = None
    """PEM file of certificate authorities to trust (obstore adds it to the system's, boto3 replaces them)."""
    encryption: Encryption = Encryption.NONE
    kms_key_id: str | None = None
    storage_class: str | None = None
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 60.0
    """One attempt without progress being finished."""
    total_timeout_s: float = 180.0
    """All attempts of one call together."""
    max_attempts: int = 6
    backoff_base_s: float = 0.1
    backoff_max_s: float = 10.0
    max_threads: int = 32
    """Requests in flight; each occupies one worker thread."""
    multipart_threshold_bytes: int = 32 * MIB
    part_size_bytes: int = 16 * MIB
    """Raised as far as 10,000 parts need."""
    part_concurrency: int = 8


@dataclass(frozen=True, slots=True)
class TierOptions:
    """The local tier's limits."""

    directory: Path
    size_limit_bytes: int = 10 * GIB
    """Hard: staged, filling and cached bytes together."""
    min_free_bytes: int = 256 * MIB
    """Left free on the tier's disk."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Reading what is not in the cache."""

    small_file_bytes: int = 4 * MIB
    """Up to here a file comes in one GET."""
    window_bytes: int = 4 * MIB
    """A ranged GET's size when reading on; a multiple of ``types.CHECKSUM_BLOCK_BYTES``."""
    parallel_windows: int = 8
    """Windows in flight or waiting to be read, per reader."""
    memory_limit_bytes: int = 128 * MIB
    """All readers' windows together."""
    siblings: int = 64
    """Files of a directory that are fetched ahead, at most, when it is read in the order of its listing;
    0: none."""
    sibling_bytes: int = 256 * KIB
    """Larger ones are not."""
    siblings_bytes: int = 8 * MIB
    """Of all that are on their way, in all directories."""


@dataclass(frozen=True, slots=True)
class IndexCopyOptions:
    """The copy of the index in the bucket."""

    lag_s: float = 1.0
    """A change is in the bucket after about this time, while S3 answers."""
    sync: bool = False
    """With durability ``s3``, close and fsync wait for that, too."""
    retention_s: float = 7 * DAY_S
    """How far back ``recover --at`` reaches."""
    take_over: bool = False
    """Go on from this index, whatever the bucket has of another."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What may wait for its upload while nobody waits for S3 (durability ``disk``); see
    :mod:`s3blobfs.writeback.admission`."""

    size_bytes: int = 4 * GIB
    files: int = 10_000
    age_s: float = 3600.0
    """Of the one that waits longest, when writers begin to be slowed."""

    def __post_init__(self) -> None:
        """Raises :class:`UsageError` for a limit that nothing could keep."""
        if self.size_bytes < 1 or self.files < 1 or self.age_s <= 0:
            raise UsageError("the limits of the queue of uploads are larger than 0")


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """What a volume is; written once by mkfs."""

    volume_id: str
    """UUID, 32 hexadecimal digits."""
    bucket: str
    prefix: str
    durability: Durability
    created_ns: int
    garbage_grace_s: float = 3600.0
    """How long a blob of a ``digest`` store that no inode refers to is kept."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class AccessTimes:
    """Of what reads renew the access time; where they do, as with ``relatime`` (mount(8))."""

    files: bool = True
    directories: bool = True


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How one mount behaves."""

    mountpoint: Path
    index_path: Path
    tier: TierOptions
    s3: S3Options = field(default_factory=S3Options)
    read: ReadOptions = field(default_factory=ReadOptions)
    durability: Durability | None = None
    """``None``: the volume's."""
    read_only: bool = False
    allow_other: bool = False
    access_times: AccessTimes = field(default_factory=AccessTimes)
    trace_file: Path | None = None
    trace_client: str = "client"
    entry_timeout_s: float = 300.0
    attr_timeout_s: float = 300.0
    """Long: this process is the only writer and tells the kernel what changed behind its back."""
    index_copy: IndexCopyOptions = field(default_factory=IndexCopyOptions)
    queue: QueueOptions = field(default_factory=QueueOptions)
    early_upload: bool = True
    """Send large files of ``versioned`` stores while they are written."""
    commit_delay_s: float = 0.05
    """How long metadata changes wait for company in one index commit."""
    fuse_extension: FuseExtension = FuseExtension.AUTO
    passthrough_min_bytes: int | None = PASSTHROUGH_MIN_BYTES
    """Files of the cache that are not smaller are read by the kernel itself, where it can; ``None``: none."""
    fuse_options: tuple[str, ...] = ()
    """Passed on to the kernel's mount(8) options: noexec, nosuid, nodev …"""


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}


def parse_size(text: str) -> int:
    """Bytes of ``10G``, ``512MiB``, ``1.5t`` … (powers of 1024). Raises :class:`UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a size: {text!r}; write for example 512M or 10G")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """``(bucket, prefix)`` of ``s3://BUCKET[/PREFIX]``; the prefix is empty or ends in ``/``.

    Raises :class:`UsageError` for anything else."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])(?:/(.*))?", uri, re.DOTALL)
    if match is None:
        raise UsageError(f"not an S3 address: {uri!r}; write s3://BUCKET or s3://BUCKET/PREFIX")
    prefix = (match[2] or "").strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise UsageError(f"the prefix of {uri!r} has an empty, '.' or '..' component")
    return match[1], f"{prefix}/" if prefix else ""


def state_home() -> Path:
    """``$XDG_STATE_HOME/s3blobfs`` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "s3blobfs"
