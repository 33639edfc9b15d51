"""Staged files: bytes, digests, accounts, names, steps."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3blobfs.config import GIB, MIB
from s3blobfs.errors import DamagedContent, TierFull, TierUnavailable
from s3blobfs.tier.cache import Cache
from s3blobfs.tier.digest import content_digests
from s3blobfs.tier.small import SMALL_MAX_BYTES
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from tests.tier.conftest import MakeTier
from tests.tier.kit import BLOCK, random_bytes

EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * MIB + 3]


async def staged_with(tier: Tier, data: bytes, local: Local = Local.CACHE) -> StagedFile:
    staged = await tier.staging.create(local)
    for at in range(0, len(data), 128 * 1024):
        await staged.write(at, data[at : at + 128 * 1024])
    return staged


# --- bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", EDGES)
async def test_what_is_written_is_read_and_digested(tier: Tier, size: int) -> None:
    data = random_bytes(size)
    staged = await staged_with(tier, data)
    assert await staged.read(0, size + 10) == data
    assert await staged.read(size - 1, 10) == data[-1:] if size else True
    assert await staged.read(size, 1) == b""
    assert await staged.seal(rename=True) == content_digests(data)
    assert staged.digests == content_digests(data)
    assert await staged.read(0, size) == data
    assert staged.path.read_bytes() == data


async def test_the_descriptor_of_a_pinned_file(tier: Tier) -> None:
    staged = await staged_with(tier, b"abc")
    staged.pin()
    await staged.seal(rename=True)
    assert os.pread(staged.fd, 3, 0) == b"abc"
    staged.unpin()


async def test_files_are_private(tier: Tier) -> None:
    staged = await tier.staging.create(Local.TMP)
    assert staged.path.stat().st_mode & 0o777 == 0o600


async def test_memoryviews_and_large_writes(tier: Tier) -> None:
    data = random_bytes(3 * MIB)
    staged = await tier.staging.create(Local.CACHE)
    assert await staged.write(0, memoryview(data)) == len(data)
    assert await staged.write(len(data), b"") == 0
    assert await staged.seal(rename=False) == content_digests(data)


async def test_no_change_after_the_seal(tier: Tier) -> None:
    staged = await staged_with(tier, b"abc")
    await staged.seal(rename=True)
    with pytest.raises(RuntimeError, match="sealed"):
        await staged.write(0, b"x")
    with pytest.raises(RuntimeError, match="sealed"):
        await staged.truncate(0)
    assert await staged.seal(rename=True) == content_digests(b"abc")


async def test_no_change_while_sealing(tier: Tier) -> None:
    staged = await staged_with(tier, random_bytes(2 * MIB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staged.seal, True)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="sealed"):
            await staged.write(0, b"x")


async def test_a_cancelled_seal_leaves_the_file_writable(tier: Tier) -> None:
    staged = await staged_with(tier, random_bytes(2 * MIB))
    with trio.move_on_after(0):
        await staged.seal(rename=True)
    assert not staged.sealed
    await staged.write(0, b"x")
    assert await staged.seal(rename=True) == content_digests(b"x" + random_bytes(2 * MIB)[1:])


async def test_a_copy_of_a_sealed_file_can_be_changed(tier: Tier) -> None:
    staged = await staged_with(tier, b"before")
    await staged.seal(rename=True)
    copy = await staged.unseal_copy()
    await copy.write(0, b"BE")
    assert (await staged.read(0, 9), await copy.read(0, 9)) == (b"before", b"BEfore")
    assert await copy.seal(rename=True) == content_digests(b"BEfore")
    assert copy.name != staged.name


async def test_a_copy_of_a_file_that_is_discarded_meanwhile(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload ends while it is copied."""
    staged = await staged_with(tier, b"before")
    await staged.seal(rename=True)
    create = tier.staging.create

    async def create_late(local: Local, source: Path | int | None = None, size_bytes: int = 0) -> StagedFile:
        made = await create(local, source, size_bytes)
        await staged.discard()
        return made

    monkeypatch.setattr(tier.staging, "create", create_late)
    copy = await staged.unseal_copy()
    assert await copy.read(0, 9) == b"before"
    assert tier.staging.names() == {copy.name}


@pytest.mark.parametrize("by_path", [True, False])
async def test_made_from_the_first_bytes_of_another(tier: Tier, tmp_path: Path, by_path: bool) -> None:
    data = random_bytes(2 * MIB)
    source = tmp_path / "source"
    source.write_bytes(data)
    with source.open("rb") as file:
        staged = await tier.staging.create(Local.CACHE, source if by_path else file.fileno(), MIB + 1)
    assert staged.size_bytes == MIB + 1
    assert await staged.seal(rename=True) == content_digests(data[: MIB + 1])
    assert tier.space.staged_bytes == MIB + 1


async def test_a_copy_that_fails_leaves_nothing(tier: Tier, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short")
    for source in (tmp_path / "missing", tmp_path / "short"):
        with pytest.raises(TierUnavailable):
            await tier.staging.create(Local.CACHE, source, 10)
    assert tier.staging.names() == set()
    assert tier.space.used_bytes == 0


async def test_sync_includes_the_name(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    staged = await staged_with(tier, b"abc")
    await staged.sync()
    await staged.sync()
    await staged.seal(rename=True)
    await staged.sync()
    assert synced == [tier.layout.staging.fd] * 2  # once per name


# --- accounts -----------------------------------------------------------------------------------------


async def test_growth_is_accounted_and_overwriting_is_not(tier: Tier) -> None:
    staged = await staged_with(tier, bytes(1000))
    await staged.write(500, bytes(1000))
    await staged.write(0, bytes(1500))
    assert tier.space.staged_bytes == 1500
    await staged.truncate(700)
    assert tier.space.staged_bytes == 700
    await staged.truncate(0)
    assert tier.space.staged_bytes == 0
    await staged.write(0, b"x")
    await staged.discard()
    assert tier.space.used_bytes == 0


async def test_holes_cost_nothing_until_written(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=32 * MIB)
    staged = await tier.staging.create(Local.CACHE)
    await staged.truncate(100 * GIB)
    assert tier.space.staged_bytes == 0
    await staged.write(50 * GIB, b"x" * 4096)
    assert 4096 <= tier.space.staged_bytes <= 8192
    assert staged.allocated_bytes() <= 64 * 1024
    with pytest.raises(TierFull):
        for at in range(64):
            await staged.write(at * MIB, bytes(MIB))
    assert tier.space.staged_bytes <= 32 * MIB
    await staged.discard()
    assert tier.space.used_bytes == 0


async def test_overwriting_a_sparse_file_is_recounted(make_tier: MakeTier) -> None:
    """Every write into a file with holes is charged at first, or holes could be filled for nothing."""
    tier = make_tier(size_limit_bytes=32 * MIB)
    staged = await tier.staging.create(Local.CACHE)
    await staged.truncate(MIB * 2)
    for _ in range(200):
        await staged.write(MIB, bytes(MIB))
    assert tier.space.staged_bytes <= 12 * MIB


async def test_the_limit_holds_for_staged_bytes(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=MIB)
    staged = await staged_with(tier, bytes(MIB))
    with pytest.raises(TierFull):
        await staged.write(MIB, b"x")
    assert staged.size_bytes == MIB
    await staged.write(0, b"x")
    assert await staged.seal(rename=True) == content_digests(b"x" + bytes(MIB - 1))


async def test_room_of_a_discarded_file_comes_back_with_its_last_handle(tier: Tier) -> None:
    staged = await staged_with(tier, b"abc")
    staged.pin()
    await staged.discard()
    assert not staged.path.exists()
    assert await staged.read(0, 3) == b"abc"
    assert tier.space.staged_bytes == 3
    staged.unpin()
    assert tier.space.staged_bytes == 0
    await staged.discard()
    with pytest.raises(RuntimeError, match="discarded"):
        await staged.read(0, 3)


async def test_descriptors_are_held_by_handles_only(tier: Tier) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    waiting = []
    for _ in range(20):
        staged = await staged_with(tier, b"abc")
        staged.pin()
        staged.unpin()
        await staged.write(3, b"d")
        await staged.seal(rename=True)
        waiting.append(staged)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert await waiting[0].read(0, 9) == b"abcd"


async def test_large_files_are_cut_in_a_thread(tier: Tier) -> None:
    staged = await staged_with(tier, random_bytes(20 * MIB))
    await staged.truncate(MIB)
    assert await staged.seal(rename=True) == content_digests(random_bytes(20 * MIB)[:MIB])
    assert tier.space.staged_bytes == MIB


async def test_a_gap_is_a_hole(tier: Tier) -> None:
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(3 * MIB, b"end")
    assert tier.space.staged_bytes < MIB
    assert await staged.seal(rename=True) == content_digests(bytes(3 * MIB) + b"end")


async def test_a_cancelled_write_leaves_the_old_bytes(tier: Tier) -> None:
    staged = await staged_with(tier, b"old")
    with trio.CancelScope() as scope:
        scope.cancel()
        await staged.write(1, bytes(2 * MIB))
    assert scope.cancelled_caught
    assert tier.space.staged_bytes == staged.size_bytes == 3
    assert await staged.seal(rename=True) == content_digests(b"old")


class GatedEvictor:
    """The cache as evictor, which begins only when it is let."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.asked = trio.Event()
        self.let = trio.Event()

    @property
    def evictable_bytes(self) -> int:
        return self._cache.evictable_bytes

    async def evict(self, needed_bytes: int) -> int:
        self.asked.set()
        await self.let.wait()
        return await self._cache.evict(needed_bytes)


async def test_a_write_that_waits_for_room_while_the_file_is_discarded(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=100)
    cached = await staged_with(tier, bytes(100))
    await cached.seal(rename=True)
    entry = await tier.cache.promote(cached, 1, "id1@v1")
    assert entry is not None
    entry.unpin()
    staged = await tier.staging.create(Local.CACHE)
    evictor = GatedEvictor(tier.cache)
    tier.space.evict_with(evictor)

    async def write() -> None:
        with pytest.raises(RuntimeError, match="gone"):
            await staged.write(0, bytes(50))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await evictor.asked.wait()
        await staged.discard()
        evictor.let.set()
    assert not tier.cache.contains(1, "id1@v1")
    assert tier.space.used_bytes == 0


# --- a full or broken disk ----------------------------------------------------------------------------


class ScriptedWrite:
    """``pwrite`` that writes half and then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.code: int | None = code
        self._real = os.pwrite
        self._half = False
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.code is None:
            return self._real(fd, data, offset)
        self._half = not self._half
        if self._half and len(data) > 1:
            return self._real(fd, data[: len(data) // 2], offset)
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, TierFull), (errno.EDQUOT, TierFull), (errno.EIO, TierUnavailable)]
)
async def test_a_failed_write_leaves_the_old_length(
    tier: Tier, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    staged = await staged_with(tier, b"old")
    disk = ScriptedWrite(monkeypatch, code)
    with pytest.raises(expected, match="writing"):
        await staged.write(3, b"new data")
    assert staged.size_bytes == staged.path.stat().st_size == 3
    assert tier.space.staged_bytes == 3
    disk.code = None
    await staged.write(3, b"er")
    assert await staged.seal(rename=True) == content_digests(b"older")


async def test_a_failed_read(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = await staged_with(tier, bytes(SMALL_MAX_BYTES + 1))

    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(TierUnavailable, match=staged.name):
        await staged.read(0, 3)
    with pytest.raises(TierUnavailable, match=staged.name):
        await staged.seal(rename=True)
    assert not staged.sealed


async def test_a_full_disk_first_takes_from_the_cache(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = await staged_with(tier, bytes(100))
    await cached.seal(rename=True)
    entry = await tier.cache.promote(cached, 1, "id1@v1")
    assert entry is not None
    entry.unpin()
    staged = await tier.staging.create(Local.CACHE)
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if tier.cache.contains(1, "id1@v1"):
            raise OSError(errno.ENOSPC, "scripted")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    await staged.write(0, b"precious")
    assert await staged.read(0, 99) == b"precious"
    assert tier.space.cached_bytes == 0


# --- restart ------------------------------------------------------------------------------------------


async def test_journalled_files_are_found_again(make_tier: MakeTier) -> None:
    tier = make_tier()
    sealed = await staged_with(tier, b"sealed")
    digests = await sealed.seal(rename=True)
    dirty = await staged_with(tier, b"dirty")
    lost = await staged_with(tier, b"never journalled")
    (tier.layout.staging.path / "note.txt").write_bytes(b"somebody's")
    (tier.layout.staging.path / ".gone_1").write_bytes(b"doomed")
    tier = make_tier()
    assert tier.staging.names() == {sealed.name, dirty.name, lost.name}
    assert tier.staging.sweep([sealed.name, dirty.name]) == [lost.name]
    assert sorted(tier.layout.staging.names()) == sorted([sealed.name, dirty.name, "note.txt"])
    again = tier.staging.open(sealed.name, Local.CACHE, digests)
    assert again.sealed
    assert again.digests == digests
    assert await again.read(0, 99) == b"sealed"
    again = tier.staging.open(dirty.name, Local.CACHE, None)
    assert not again.sealed
    await again.write(5, b"!")
    assert await again.seal(rename=True) == content_digests(b"dirty!")
    assert tier.space.staged_bytes == 12
    assert tier.staging.file_count == 2


async def test_a_crash_between_rename_and_journal_loses_nothing(make_tier: MakeTier) -> None:
    tier = make_tier()
    staged = await staged_with(tier, b"abc")
    journalled = staged.name
    digests = await staged.seal(rename=True)
    assert staged.name != journalled
    tier = make_tier()
    assert tier.staging.sweep([journalled]) == []
    again = tier.staging.open(journalled, Local.CACHE, None)
    assert again.name == staged.name
    assert await again.seal(rename=True) == digests
    assert again.name == staged.name


async def test_a_rename_the_disk_forgot_loses_nothing(make_tier: MakeTier) -> None:
    tier = make_tier()
    staged = await staged_with(tier, b"abc")
    old_path = staged.path
    digests = await staged.seal(rename=True)
    staged.path.rename(old_path)
    tier = make_tier()
    assert tier.staging.sweep([staged.name]) == []
    assert await tier.staging.open(staged.name, Local.CACHE, digests).read(0, 9) == b"abc"


async def test_a_file_in_use_is_opened_once(tier: Tier) -> None:
    staged = await staged_with(tier, b"abc")
    old_name = staged.name
    digests = await staged.seal(rename=True)
    assert tier.staging.open(staged.name, Local.CACHE, digests) is staged
    assert tier.staging.open(old_name, Local.CACHE, digests) is staged
    assert tier.staging.sweep([]) == []


async def test_what_a_journal_row_names_and_is_not_there(tier: Tier) -> None:
    with pytest.raises(TierUnavailable, match=r"bin_00\.tmp"):
        tier.staging.open("bin_00.tmp", Local.CACHE, None)
    for name in ("../cache/1/id1@v1", "id1@v1", "bin_/../x.tmp", ""):
        with pytest.raises(ValueError, match="not the name of a staged file"):
            tier.staging.open(name, Local.CACHE, None)


async def test_a_sealed_file_of_another_length_is_damaged(make_tier: MakeTier) -> None:
    tier = make_tier()
    staged = await staged_with(tier, b"abc")
    digests = await staged.seal(rename=True)
    tier = make_tier()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DamagedContent, match=staged.name):
        tier.staging.open(staged.name, Local.CACHE, replace(digests, size_bytes=4))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_symlink_in_place_of_a_staged_file_is_refused(make_tier: MakeTier, tmp_path: Path) -> None:
    tier = make_tier()
    staged = await staged_with(tier, b"abc")
    staged.path.unlink()
    (tmp_path / "other").write_bytes(b"xyz")
    staged.path.symlink_to(tmp_path / "other")
    tier = make_tier()
    with pytest.raises(TierUnavailable):
        tier.staging.open(staged.name, Local.CACHE, None)


# --- steps --------------------------------------------------------------------------------------------


async def test_steps_of_a_cached_store(tier: Tier, steps: list[str]) -> None:
    staged = await staged_with(tier, b"foo")
    name = staged.name
    await staged.seal(rename=True)
    await staged.discard()
    assert name.startswith("bin_")
    assert name.endswith(".tmp")
    assert steps == [
        f"client -> Cache: write 3 bytes # {name}",
        f"Cache --> Cache: rename # {staged.name}",
    ]


async def test_steps_of_an_uncached_store(tier: Tier, steps: list[str]) -> None:
    unfinished = await staged_with(tier, b"foo", Local.TMP)
    await unfinished.discard()
    staged = await staged_with(tier, b"foo", Local.TMP)
    await staged.seal(rename=False)
    await staged.discard()
    assert steps[-2:] == [
        f"client -> tmp: write # {staged.name}",
        f"tmp --> tmp: delete # {staged.name}",
    ]
    assert not any(unfinished.name in step for step in steps)
