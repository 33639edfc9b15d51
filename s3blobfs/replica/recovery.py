"""Bringing a volume's index back from its bucket onto a machine that has none.

    what the bucket says  ──►  a file beside the index  ──►  checked  ──►  journal settled
        ──►  compared with the stores  ──►  renamed

Until the last step the index's own name is untouched, so an interrupted recovery is simply begun again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3blobfs.blobstore.open import open_store
from s3blobfs.blobstore.protocol import BlobStore
from s3blobfs.errors import BlobIsDeleting, IndexDamaged, UsageError
from s3blobfs.index import blobs, explain, inodes, replica, scrubs, stores, uploads
from s3blobfs.index.blobs import BlobRow
from s3blobfs.index.check import Problem
from s3blobfs.index.connect import sync_directory
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import InodeRow
from s3blobfs.index.replica import ReplicaRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.unstaged import LostContent, forget_staged
from s3blobfs.index.uploads import UploadRow
from s3blobfs.replica.history import Tip
from s3blobfs.replica.reading import Reader, Reconstruction
from s3blobfs.replica.restoring import Restored, restore
from s3blobfs.replica.segment import time_text
from s3blobfs.replica.survey import Counter, Remaining, Surveyor
from s3blobfs.s3.protocol import ObjectClient
from s3blobfs.trace import Tracer
from s3blobfs.types import ContentDigests, Keying, StoredContent

logger = logging.getLogger(__name__)

_SUFFIXES = ("", "-wal", "-shm", "-journal")
MISSING = "missing"
"""As scrub calls an object that is not there."""
ALL_FILES = 2**62


GONE_MAX = 5
"""Of contents that are gone, in the line of an error."""


@dataclass(frozen=True, slots=True)
class GoneContent:
    """A file whose content the recovered state names, and S3 does not have any more."""

    path: bytes | None
    """``None`` where no name leads to the file."""
    size_bytes: int
    object_key: str
    version_id: str | None
    remaining: tuple[Remaining, ...]
    """Other versions of its object that S3 has."""


class ContentsGone(IndexDamaged):
    """The state asked for names contents that S3 does not have any more."""

    def __init__(self, gone: list[GoneContent]) -> None:
        named = ", ".join(_shown(each.path) for each in gone[:GONE_MAX])
        more = f" and {len(gone) - GONE_MAX} more" if len(gone) > GONE_MAX else ""
        super().__init__(
            f"the contents of {len(gone)} files of that state are not in S3 any more: {named}{more}."
            " --partial recovers it without them"
        )
        self.gone = gone


@dataclass(slots=True)
class Recovered:
    """What a recovery brought back, and what it could not."""

    reconstruction: Reconstruction
    files: int = 0
    bytes: int = 0
    lost: list[LostContent] = field(default_factory=list)
    """Contents that were staged on the machine that is gone."""
    found: int = 0
    """Contents whose object was in S3 already, though the index did not know yet."""
    restored: list[Restored] = field(default_factory=list)
    """Objects that were stored after the last state of the index that reached the bucket."""
    gone: list[GoneContent] = field(default_factory=list)
    """Accepted by ``partial``. The files are there and cannot be read."""
    problems: list[Problem] = field(default_factory=list)
    """Of the recovered index."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    at_ns: int | None = None
    """``None``: the newest state."""
    partial: bool = False
    """Accept an earlier state where that one cannot be reached, and files whose content is gone."""
    restore_unnamed: bool = True
    """Of the newest state: take in what was stored after it."""


async def recover_index(
    reader: Reader,
    target: Path,
    client_of: Callable[[str], ObjectClient],
    request: Request,
    *,
    now_ns: Callable[[], int],
    progress: Counter = lambda done, total: None,
) -> Recovered:
    """Make ``target`` the volume's index. The caller holds the volume's lock, and has seen to it that there
    is none. ``progress`` is told of the objects that are compared.

    Raises :class:`IndexDamaged`, naming all that is wrong, when the state asked for cannot be reached and
    ``partial`` does not accept less, :class:`ContentsGone` where contents are missing; what S3, the disk and
    the index raise."""
    building = target.with_name(f"{target.name}.recovering")
    remove_index(building)
    try:
        result = await reader.reconstruct(building, request.at_ns)
        if not result.snapshot or not (result.complete or request.partial):
            raise IndexDamaged(_refusal(result))
        recovered = Recovered(result)
        db = Database.open(building, tracer=Tracer())
        try:
            recovered.problems = await db.check()
            if not recovered.problems:
                await _settle(db, client_of, request, recovered, now_ns(), progress)
                recovered.problems = await db.check()
            usage = await db.read(inodes.usage)
            recovered.files, recovered.bytes = usage.inodes, usage.bytes
            await db.note(lambda tx: replica.store(tx, _row(result, db)))
        finally:
            await db.aclose()
        if recovered.problems:
            listed = "; ".join(problem.detail for problem in recovered.problems[:5])
            raise IndexDamaged(f"the recovered index has {len(recovered.problems)} problems: {listed}")
        put_in_place(building, target)
        return recovered
    finally:
        remove_index(building)


async def _settle(
    db: Database,
    client_of: Callable[[str], ObjectClient],
    request: Request,
    recovered: Recovered,
    now_ns: int,
    progress: Counter,
) -> None:
    """Bring index and stores together."""
    configs = await db.read(stores.every)
    opened = {config.id: open_store(config, client_of(config.bucket), Tracer()) for config in configs}
    recovered.found = await _adopt_stored(db, opened, now_ns)
    restoring = request.restore_unnamed and request.at_ns is None
    since_ns = recovered.reconstruction.known_until_ns if restoring else None
    survey = await Surveyor(db, configs, client_of, since_ns=since_ns, progress=progress).run()
    recovered.restored = await restore(db, survey.unnamed, now_ns)
    recovered.lost = await db.write(forget_staged) if await _is_journalled(db) else []
    recovered.gone = [
        each for row, remaining in survey.gone for each in await _described(db, row, tuple(remaining))
    ]
    if recovered.gone and not request.partial:
        raise ContentsGone(recovered.gone)

    def note(tx: Transaction) -> None:
        explain.mark_superseded(tx, survey.gone_earlier)
        for row, _ in survey.gone:
            scrubs.note_damage(tx, row, MISSING, "it was not there when the index was recovered", now_ns)

    if survey.gone or survey.gone_earlier:
        await db.write(note)


async def _described(db: Database, row: BlobRow, remaining: tuple[Remaining, ...]) -> list[GoneContent]:
    """One for each file that has the content now: another may have been restored in its place."""
    paths, files = await db.read(lambda tx: scrubs.paths_of(tx, row.id, ALL_FILES))
    unnamed: list[bytes | None] = [None] * (files - len(paths))
    location = row.location
    return [
        GoneContent(path, row.digests.size_bytes, location.object_key, location.version_id, remaining)
        for path in [*paths, *unnamed]
    ]


def put_in_place(building: Path, target: Path) -> None:
    """Give a closed index its name. Raises ``OSError``."""
    fd = os.open(building, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    building.rename(target)
    sync_directory(target.parent)


def remove_index(path: Path) -> None:
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def set_aside(paths: list[Path], now_ns: int) -> list[Path]:
    """Rename what is there of these, each beside itself; answers the new names. Raises
    :class:`UsageError`."""
    moved = []
    for path in paths:
        if not path.exists():
            continue
        aside = path.with_name(f"{path.name}.before-recovery-{now_ns // 10**9}")
        try:
            path.rename(aside)
        except OSError as error:
            raise UsageError(f"cannot move {path} aside: {error.strerror}") from error
        moved.append(aside)
    return moved


def index_files(index: Path) -> list[Path]:
    """The files of SQLite's that make an index."""
    return [index.with_name(index.name + suffix) for suffix in _SUFFIXES]


def tip_row(tip: Tip, *, sequence: int, schema_version: int) -> ReplicaRow:
    """For an index that goes on behind ``tip``, whatever that holds, and has not been mounted yet."""
    return ReplicaRow(tip.number, tip.digest, "", sequence, schema_version, claimed=False)


def _row(result: Reconstruction, db: Database) -> ReplicaRow:
    # Another sequence than the index's makes its first mount send a snapshot of where it goes on from.
    goes_on = result.is_newest and result.sequence == db.sequence
    return tip_row(result.newest, sequence=db.sequence if goes_on else -1, schema_version=db.schema_version)


def _refusal(result: Reconstruction) -> str:
    listed = "; ".join(result.problems)
    if not result.snapshot:
        return (
            f"the index cannot be recovered: {listed}. 's3blobfs recover --from-objects' rebuilds a tree from"
            " what the objects say of themselves"
        )
    return (
        f"the state asked for cannot be reached: {listed}. --partial recovers the state of"
        f" {time_text(result.made_ns)} (after {result.segments} segments)"
    )


# --- contents on their way ----------------------------------------------------------------------------


def _shown(path: bytes | None) -> str:
    return repr(os.fsdecode(path)) if path is not None else "a file without a name"


async def _is_journalled(db: Database) -> bool:
    return (await db.read(uploads.pending)).files > 0


async def _adopt_stored(db: Database, opened: Mapping[int, BlobStore], now_ns: int) -> int:
    """Of journalled contents the object may be in S3 all the same: the machine was lost between its PUT and
    the copy of the commit. Answers how many are."""
    found = 0
    # What still changed when the machine was lost has no object.
    newest = {row.inode_id: row for row in await db.read(uploads.every) if row.digests is not None}
    for row in newest.values():
        inode = await db.read(lambda tx, row=row: inodes.find(tx, row.inode_id))  # type: ignore[misc]
        store = opened.get(row.store_id)
        assert row.digests is not None
        if inode is None or store is None:
            continue
        if store.config.keying is Keying.VERSIONED and inode.object_id is None:
            continue
        stored = await store.find_write(row.digests, object_id=inode.object_id, write_id=row.write_id)
        if stored is not None:
            found += await _adopt(db, row, row.digests, stored, now_ns)
    return found


async def _adopt(
    db: Database, row: UploadRow, digests: ContentDigests, stored: StoredContent, now_ns: int
) -> bool:
    def transaction(tx: Transaction) -> InodeRow:
        before = inodes.get(tx, row.inode_id)
        blob = blobs.adopt(tx, row.store_id, stored, digests, now_ns)
        for each in uploads.of_inode(tx, row.inode_id):
            if each.id <= row.id:
                uploads.finish(tx, each.id)
        after = inodes.update(tx, row.inode_id, blob_id=blob.id)
        if before.blob_id is not None:
            blobs.drop_ref(tx, before.blob_id, now_ns, superseded=True)
        return after

    try:
        await db.write(transaction)
    except BlobIsDeleting as error:
        logger.info("%s: its content counts as lost", error)
        return False
    return True
