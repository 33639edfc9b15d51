"""Entries, pins, the order of eviction, and what others do to the files."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3blobfs.config import KIB, MIB
from s3blobfs.errors import TierFull, TierUnavailable
from s3blobfs.tier import integrity
from s3blobfs.tier.cache import Cache, CacheEntry
from s3blobfs.tier.digest import content_digests, file_digests
from s3blobfs.tier.entry import is_unaltered, stamp_mtime_ns
from s3blobfs.tier.layout import entry_name
from s3blobfs.tier.scan import time_grain_ns
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from s3blobfs.types import ContentDigests
from tests.tier.conftest import MakeTier
from tests.tier.kit import flip, random_bytes


async def sealed(tier: Tier, data: bytes) -> StagedFile:
    staged = await tier.staging.create(Local.CACHE)
    await staged.write(0, data)
    await staged.seal(rename=True)
    return staged


async def cached(tier: Tier, name: str, data: bytes = b"abc", store_id: int = 1) -> CacheEntry:
    """A pinned entry."""
    entry = await tier.cache.promote(await sealed(tier, data), store_id, name)
    assert entry is not None
    return entry


def names_in(tier: Tier, store_id: int = 1) -> list[str]:
    return sorted(tier.layout.store(store_id).names())


# --- promotion ----------------------------------------------------------------------------------------


async def test_promotion_moves_file_name_and_account(tier: Tier, steps: list[str]) -> None:
    staged = await sealed(tier, b"foo")
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (3, 0)
    entry = await tier.cache.promote(staged, 1, "id1@v1")
    assert entry is not None
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (0, 3)
    assert entry.path.name == "id1@v1"
    assert entry.size_bytes == 3
    assert await entry.read(0, 10) == b"foo"
    assert await entry.read(2, 10) == b"o"
    assert await entry.read(3, 10) == b""
    assert os.pread(entry.fd, 3, 0) == b"foo"
    assert tier.staging.names() == set()
    assert steps[-1] == "Cache --> Cache: rename # id1@v1"
    entry.unpin()
    with pytest.raises(RuntimeError, match="not pinned"):
        entry.unpin()


async def test_handles_read_on_across_a_promotion(tier: Tier) -> None:
    staged = await sealed(tier, b"foo")
    staged.pin()
    entry = await tier.cache.promote(staged, 1, "id1@v1")
    assert entry is not None
    assert await staged.read(0, 3) == b"foo"
    entry.unpin()
    assert tier.cache.remove(1, "id1@v1")
    assert await staged.read(0, 3) == b"foo"
    staged.unpin()
    await staged.discard()
    assert tier.space.used_bytes == 0


async def test_the_first_of_two_same_contents_stays(tier: Tier) -> None:
    first = await cached(tier, "digest")
    second = await tier.cache.promote(await sealed(tier, b"abc"), 1, "digest")
    assert second is not None
    assert second.fd == first.fd
    assert tier.space.used_bytes == 3
    assert tier.staging.names() == set()


async def test_a_promotion_after_a_discard_is_none(tier: Tier) -> None:
    staged = await sealed(tier, b"abc")
    await staged.discard()
    assert await tier.cache.promote(staged, 1, "id1@v1") is None


@pytest.mark.expected_log("cannot be kept in the cache")
async def test_a_promotion_the_disk_refuses(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = await sealed(tier, b"abc")

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "rename", rename)
    assert await tier.cache.promote(staged, 1, "id1@v1") is None
    assert tier.space.used_bytes == 0
    assert tier.staging.names() == set()
    assert not tier.cache.contains(1, "id1@v1")


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", ".fill_x", "bin_0.tmp", "ä", "x" * 300])
async def test_hostile_names_stay_inside(tier: Tier, make_tier: MakeTier, name: str) -> None:
    await tier.start()
    (await cached(tier, name)).unpin()
    assert names_in(tier) == [entry_name(name)]
    tier = make_tier()
    await tier.start()
    entry = tier.cache.get(1, name, 3)
    assert entry is not None
    assert await entry.read(0, 3) == b"abc"
    entry.unpin()
    assert tier.cache.remove(1, name)


@pytest.mark.parametrize("meanwhile", ["discarded", "promoted"])
async def test_promotion_of_a_file_that_has_to_be_read_again_and_is_gone_then(
    tier: Tier, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Somebody touched it, so it is compared with its digests: others go on while that takes."""
    staged = await sealed(tier, b"foo")
    other = await sealed(tier, b"foo")
    staged.path.chmod(0o640)

    async def slow_digests(fd: int, size_bytes: int) -> ContentDigests:
        if meanwhile == "discarded":
            await staged.discard()
        else:
            assert await tier.cache.promote(other, 1, "digest") is not None
        return await file_digests(fd, size_bytes)

    monkeypatch.setattr(integrity, "file_digests", slow_digests)
    entry = await tier.cache.promote(staged, 1, "digest")
    assert (entry is None) == (meanwhile == "discarded")
    assert staged.gone
    assert tier.space.staged_bytes == (3 if meanwhile == "discarded" else 0)
    assert names_in(tier) == ([] if entry is None else ["digest"])


# --- get and remove -----------------------------------------------------------------------------------


async def test_missing(tier: Tier) -> None:
    assert tier.cache.get(1, "id1@v1", 3) is None
    assert not tier.cache.contains(1, "id1@v1")
    assert not tier.cache.remove(1, "id1@v1")


async def test_stores_are_apart(tier: Tier) -> None:
    (await cached(tier, "same", b"one", 1)).unpin()
    (await cached(tier, "same", b"two!", 2)).unpin()
    entry = tier.cache.get(2, "same", 4)
    assert entry is not None
    assert await entry.read(0, 9) == b"two!"
    entry.unpin()


async def test_a_pinned_entry_can_be_removed_and_read_on(tier: Tier, steps: list[str]) -> None:
    entry = await cached(tier, "id1@v1")
    assert tier.cache.remove(1, "id1@v1")
    assert steps[-1] == "client -> Cache: delete # id1@v1"
    assert names_in(tier) == []
    assert await entry.read(0, 9) == b"abc"
    assert tier.space.cached_bytes == 3  # its blocks are still taken
    again = await cached(tier, "id1@v1", b"newer")
    entry.unpin()
    assert tier.space.cached_bytes == 5
    assert await again.read(0, 9) == b"newer"


async def test_descriptors_are_held_by_pins_only(tier: Tier) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        (await cached(tier, f"id{number}")).unpin()
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1  # the store's directory
    entries = [tier.cache.get(1, "id1", 3) for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    for entry in entries:
        assert entry is not None
        entry.unpin()


# --- eviction -----------------------------------------------------------------------------------------


async def test_least_recently_used_goes_first(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=50)
    for number in range(5):
        (await cached(tier, f"id{number}", bytes(10))).unpin()
    used = tier.cache.get(1, "id0", 10)
    assert used is not None
    used.unpin()
    await tier.staging.create(Local.CACHE)
    staged = await sealed(tier, bytes(20))
    assert names_in(tier) == ["id0", "id3", "id4"]
    assert tier.space.used_bytes == 50
    await staged.discard()


async def test_pinned_entries_stay(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=50)
    entries = [await cached(tier, f"id{number}", bytes(10)) for number in range(5)]
    staged = await tier.staging.create(Local.CACHE)
    with pytest.raises(TierFull):
        await staged.write(0, b"x")
    entries[2].unpin()
    await staged.write(0, bytes(10))
    assert names_in(tier) == ["id0", "id1", "id3", "id4"]
    with pytest.raises(TierFull):
        await staged.write(10, b"x")


async def test_eviction_of_many_small_entries(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=2000)
    for number in range(200):
        (await cached(tier, f"id{number:03}", bytes(10))).unpin()
    await sealed(tier, bytes(1990))
    assert tier.cache.entry_count <= 1
    assert tier.space.used_bytes <= 2000


# --- links --------------------------------------------------------------------------------------------


async def test_links_are_accounted_once(tier: Tier, steps: list[str]) -> None:
    (await cached(tier, "id1@v1", b"x" * 1000)).unpin()
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v2")
    assert steps[-1] == "Cache --> Cache: link # id2@v2"
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v2")
    assert await tier.cache.link(2, "id2@v2", 2, "id3@v3")
    assert tier.space.cached_bytes == 1000
    assert tier.cache.remove(1, "id1@v1")
    assert tier.cache.remove(2, "id3@v3")
    assert tier.space.cached_bytes == 1000
    entry = tier.cache.get(2, "id2@v2", 1000)
    assert entry is not None
    assert await entry.read(0, 1) == b"x"
    entry.unpin()
    assert await tier.cache.evict(1) == 1000
    assert tier.space.used_bytes == 0
    assert not await tier.cache.link(2, "id2@v2", 2, "id4@v4")


async def test_links_of_pinned_entries(tier: Tier) -> None:
    entry = await cached(tier, "id1@v1", b"x" * 1000)
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v2")
    assert tier.cache.remove(1, "id1@v1")
    assert tier.cache.evictable_bytes == 1000  # the other name carries them now
    entry.unpin()
    assert tier.space.cached_bytes == 1000
    assert tier.cache.remove(2, "id2@v2")
    assert tier.space.cached_bytes == 0


async def test_links_survive_a_restart_accounted_once(tier: Tier, make_tier: MakeTier) -> None:
    await tier.start()
    (await cached(tier, "id1@v1", b"x" * 1000)).unpin()
    assert await tier.cache.link(1, "id1@v1", 2, "id2@v2")
    tier = make_tier()
    await tier.start()
    assert tier.space.cached_bytes == 1000
    assert await tier.cache.evict(1) == 1000
    assert tier.cache.entry_count == 0


@pytest.mark.expected_log("cannot link .*scripted")
async def test_a_disk_that_cannot_link(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    (await cached(tier, "id1@v1")).unpin()
    codes = [errno.EMLINK, errno.EIO]

    def link(*_: object, **__: object) -> None:
        raise OSError(codes.pop(0), "scripted")

    monkeypatch.setattr(os, "link", link)
    assert not await tier.cache.link(1, "id1@v1", 1, "id2@v2")
    assert not await tier.cache.link(1, "id1@v1", 1, "id2@v2")
    assert not tier.cache.contains(1, "id2@v2")


# --- what others do to the files ----------------------------------------------------------------------


def _truncated(path: Path) -> None:
    os.truncate(path, 2)


def _removed(path: Path) -> None:
    path.unlink()


def _flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(flip(b"a"))


def _replaced_by_a_link(path: Path) -> None:
    other = path.parent.parent / "other"
    other.write_bytes(b"xyz")
    path.unlink()
    path.symlink_to(other)


def _replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


ALTERATIONS = [_truncated, _removed, _flipped, _replaced_by_a_link]


@pytest.mark.expected_log("cached file .*id1@v1 cannot be used and is dropped")
@pytest.mark.parametrize("alter", ALTERATIONS)
async def test_an_altered_entry_is_dropped_with_a_warning(tier: Tier, alter: Callable[[Path], None]) -> None:
    entry = await cached(tier, "id1@v1")
    entry.unpin()
    alter(entry.path)
    assert tier.cache.get(1, "id1@v1", 3) is None
    assert not tier.cache.contains(1, "id1@v1")
    assert tier.space.cached_bytes == 0
    assert names_in(tier) == []
    assert await (await cached(tier, "id1@v1")).read(0, 9) == b"abc"


@pytest.mark.expected_log("cached file .*id1@v1 cannot be (used|removed)")
async def test_a_directory_in_place_of_an_entry(tier: Tier) -> None:
    entry = await cached(tier, "id1@v1")
    entry.unpin()
    _replaced_by_a_directory(entry.path)
    assert tier.cache.get(1, "id1@v1", 3) is None
    assert tier.space.cached_bytes == 0


@pytest.mark.expected_log("it has 3 bytes, not 4")
async def test_an_entry_of_another_length_than_asked_for(tier: Tier) -> None:
    (await cached(tier, "id1@v1")).unpin()
    assert tier.cache.get(1, "id1@v1", 4) is None


@pytest.mark.expected_log("(was altered; dropped|none of our files)")
@pytest.mark.parametrize("alter", ALTERATIONS)
async def test_an_entry_altered_between_mounts(
    tier: Tier, make_tier: MakeTier, alter: Callable[[Path], None]
) -> None:
    await tier.start()
    entry = await cached(tier, "id1@v1")
    entry.unpin()
    alter(entry.path)
    tier = make_tier()
    await tier.start()
    assert tier.cache.get(1, "id1@v1", 3) is None
    assert tier.space.cached_bytes == 0


async def test_verify_reads_all_of_it(tier: Tier) -> None:
    data = random_bytes(MIB)
    entry = await cached(tier, "id1@v1", data)
    assert await tier.cache.verify(entry, content_digests(data))
    assert not await tier.cache.verify(entry, content_digests(data[1:]))
    status = entry.path.stat()
    with entry.path.open("r+b") as file:  # as a failing disk would, leaving no trace in the times
        file.seek(MIB // 2)
        file.write(flip(data[MIB // 2 :])[:1])
    os.utime(entry.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not await tier.cache.verify(entry, content_digests(data))


def test_stamps_are_recognized_as_exactly_as_the_disk_keeps_times(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    for grain in (1, 100, 1000, 10**9):
        stamp = stamp_mtime_ns(1_700_000_000_123_456_789, 3)
        os.utime(path, ns=(0, stamp - stamp % grain))
        assert is_unaltered(path.stat(), 3, grain)
        assert not is_unaltered(path.stat(), 4, grain)
    os.utime(path, ns=(0, 1_700_000_000_000_000_001))
    assert not is_unaltered(path.stat(), 3, 1)


@pytest.mark.parametrize("grain", [1, 100, 1000, 10**9, 2 * 10**9])
def test_time_grain_of_the_disk(tier: Tier, monkeypatch: pytest.MonkeyPatch, grain: int) -> None:
    real = os.utime

    def utime(path: int, ns: tuple[int, int]) -> None:
        real(path, ns=(ns[0] - ns[0] % grain, ns[1] - ns[1] % grain))

    monkeypatch.setattr(os, "utime", utime)
    assert time_grain_ns(tier.layout) == grain


# --- restart ------------------------------------------------------------------------------------------


async def test_entries_and_their_order_survive(make_tier: MakeTier, tracer: Tracer) -> None:
    tier = make_tier(size_limit_bytes=60)
    now_ns = 1_700_000_000 * 10**9

    def clock() -> int:
        nonlocal now_ns
        now_ns += 61 * 10**9
        return now_ns

    cache = Cache(tier.layout, tier.space, tracer, now_ns=clock)
    await cache.start()
    for number in range(5):
        entry = await cache.promote(await sealed(tier, bytes(10)), 1, f"id{number}")
        assert entry is not None
        entry.unpin()
    used = cache.get(1, "id1", 10)
    assert used is not None
    used.unpin()
    (tier.layout.store(1).path / ".fill_left").write_bytes(b"unfinished")
    os.mkfifo(tier.layout.store(1).path.parent / "not-a-store")

    tier = make_tier(size_limit_bytes=60)
    await tier.start()
    assert tier.space.cached_bytes == 50
    assert names_in(tier) == [f"id{number}" for number in range(5)]
    await sealed(tier, bytes(40))
    assert names_in(tier) == ["id1", "id4"]


async def test_a_lower_limit_holds_from_the_start(make_tier: MakeTier) -> None:
    tier = make_tier()
    await tier.start()
    for number in range(5):
        (await cached(tier, f"id{number}", bytes(10 * KIB))).unpin()
    tier = make_tier(size_limit_bytes=25 * KIB)
    await tier.start()
    assert tier.space.cached_bytes == 20 * KIB


async def test_the_scan_is_made_in_a_thread(
    tier: Tier, make_tier: MakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tier.start()
    (await cached(tier, "id1@v1")).unpin()
    tier = make_tier()
    here = threading.get_ident()
    seen: list[bool] = []
    real = os.scandir

    def scandir(path: int) -> object:
        seen.append(threading.get_ident() == here)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    await tier.start()
    assert seen == [False]
    assert tier.cache.contains(1, "id1@v1")


async def test_a_cache_that_cannot_be_scanned(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(_: object) -> list[str]:
        raise OSError(errno.EIO, "scripted")

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(TierUnavailable, match="scripted"):
        await tier.start()
