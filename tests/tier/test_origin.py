"""What a staged file has in common with what it was made from, and how hashing goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import KIB, MIB
from s3blobfs.tier import checkpoints, digest
from s3blobfs.tier.checkpoints import HashCheckpoints
from s3blobfs.tier.demotion import DEMOTED_LEAST_BYTES, demote
from s3blobfs.tier.digest import ContentHasher, content_digests
from s3blobfs.tier.origin import Origin
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from tests.tier.kit import random_bytes
from tests.tier.test_cache import cached, names_in, sealed

SIZE = DEMOTED_LEAST_BYTES + 5
DATA = random_bytes(SIZE)
DIGESTS = content_digests(DATA)


def hasher_of(data: bytes) -> ContentHasher:
    hasher = ContentHasher()
    hasher.update(data)
    return hasher


# --- ranges -------------------------------------------------------------------------------------------


def test_what_is_changed_is_not_in_common() -> None:
    origin = Origin(content_digests(b"0123456789"), 10)
    assert list(origin.unchanged) == [(0, 10)]
    origin.changes(10, 20)
    assert list(origin.unchanged) == [(0, 10)]
    origin.changes(3, 5)
    assert list(origin.unchanged) == [(0, 3), (5, 10)]
    origin.changes(8)
    assert list(origin.unchanged) == [(0, 3), (5, 8)]
    origin.changes(0)
    assert list(origin.unchanged) == []


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 50)), max_size=400))
def test_never_more_than_what_is_in_common(changes: list[tuple[int, int]]) -> None:
    origin = Origin(content_digests(b""), 5000)
    same = bytearray(b"\1" * 5000)
    for start, length in changes:
        origin.changes(start, start + length)
        same[start : start + length] = bytes(len(same[start : start + length]))
    assert len(origin.unchanged) <= 128
    for start, end in origin.unchanged:
        assert all(same[start:end])


def test_an_origin_that_may_never_be_stored_has_its_own() -> None:
    stored, skipped = content_digests(b"0123456789"), content_digests(b"01x3456789ab")
    first = Origin(stored, 10)
    first.changes(2, 3)
    second = Origin(skipped, 12, first)
    second.changes(7, 8)
    assert list(second.in_common_with(skipped)) == [(0, 7), (8, 12)]
    assert list(second.in_common_with(stored)) == [(0, 2), (3, 7), (8, 10)]
    assert list(first.unchanged) == [(0, 2), (3, 10)]
    assert list(second.in_common_with(content_digests(b"another"))) == []
    alone = second.without(skipped)
    assert alone is not None
    assert list(alone.in_common_with(stored)) == [(0, 2), (3, 7), (8, 10)]
    assert list(alone.in_common_with(skipped)) == []
    assert alone.without(stored) is None


def test_of_a_shorter_beginning_less_is_in_common() -> None:
    stored = content_digests(b"0123456789")
    cut = Origin(content_digests(b"0123456789ab"), 4, Origin(stored, 10))
    assert list(cut.in_common_with(stored)) == [(0, 4)]


def test_origins_of_origins_are_bounded() -> None:
    origin: Origin | None = None
    contents = [content_digests(b"%d" % number) for number in range(50)]
    for digests in contents:
        origin = Origin(digests, 1, origin)
    assert origin is not None
    known = [digests for digests in contents if origin.in_common_with(digests)]
    assert known == contents[-4:]


# --- checkpoints --------------------------------------------------------------------------------------


def test_hashing_goes_on() -> None:
    kept = HashCheckpoints()
    kept.keep(DIGESTS, hasher_of(DATA))
    for tail in (b"tail", b"another"):
        hasher = kept.resume(DIGESTS)
        assert hasher is not None
        hasher.update(tail)
        assert hasher.digests() == content_digests(DATA + tail)
    assert kept.resume(content_digests(b"other")) is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_KEPT_MAX", 3)
    monkeypatch.setattr(checkpoints, "_CHECKSUM_BYTES_MAX", 12)
    kept = HashCheckpoints()
    for number in range(4):
        data = b"%d" % number
        kept.keep(content_digests(data), hasher_of(data))
    assert kept.resume(content_digests(b"0")) is None
    assert kept.resume(content_digests(b"1")) is not None
    large = random_bytes(3 * 256 * KIB)
    kept.keep(content_digests(large), hasher_of(large))
    assert kept.resume(content_digests(b"2")) is None
    assert kept.resume(content_digests(b"1")) is not None
    larger = random_bytes(4 * 256 * KIB)
    kept.keep(content_digests(larger), hasher_of(larger))
    assert kept.resume(content_digests(larger)) is None
    assert kept.resume(content_digests(large)) is None


# --- demotion -----------------------------------------------------------------------------------------


async def demoted(tier: Tier) -> StagedFile:
    (await cached(tier, "id1@v1", DATA)).unpin()
    staged = demote(tier.cache, tier.staging, Local.CACHE, 1, "id1@v1", DIGESTS)
    assert staged is not None
    return staged


async def test_a_cached_file_becomes_a_staged_one(tier: Tier, steps: list[str]) -> None:
    (await cached(tier, "id1@v1", DATA)).unpin()
    inode = (tier.layout.store(1).path / "id1@v1").stat().st_ino
    staged = demote(tier.cache, tier.staging, Local.CACHE, 1, "id1@v1", DIGESTS)
    assert staged is not None
    assert steps[-1] == f"Cache --> Cache: rename # {staged.name}"
    assert staged.path.stat().st_ino == inode
    assert names_in(tier) == []
    assert not tier.cache.contains(1, "id1@v1")
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (SIZE, 0)
    await staged.write(SIZE, b"tail")
    assert staged.origin is not None
    assert staged.origin.unchanged == ((0, SIZE),)
    assert tier.space.staged_bytes == SIZE + 4
    assert await staged.read(SIZE - 2, 100) == DATA[-2:] + b"tail"
    found = await staged.seal(rename=True)
    assert found == content_digests(DATA + b"tail")
    entry = await tier.cache.promote(staged, 1, "id1@v2")
    assert entry is not None
    assert await tier.cache.verify(entry, found)
    entry.unpin()
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (0, SIZE + 4)


async def test_only_what_is_appended_is_hashed(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = await demoted(tier)
    taken: list[int] = []
    update = ContentHasher.update

    def counted(hasher: ContentHasher, data: memoryview) -> None:
        taken.append(len(data))
        update(hasher, data)

    monkeypatch.setattr(digest.ContentHasher, "update", counted)
    await staged.write(SIZE, b"tail")
    await staged.seal(rename=True)
    assert sum(taken) == 4


async def test_a_change_in_the_middle_is_hashed_from_the_start(tier: Tier) -> None:
    staged = await demoted(tier)
    await staged.write(MIB, b"changed")
    assert staged.origin is not None
    assert staged.origin.unchanged == ((0, MIB), (MIB + 7, SIZE))
    assert await staged.seal(rename=True) == content_digests(DATA[:MIB] + b"changed" + DATA[MIB + 7 :])


@pytest.mark.parametrize("change", ["truncate", "extend", "zero", "allocate"])
async def test_other_changes(tier: Tier, change: str) -> None:
    staged = await demoted(tier)
    model = bytearray(DATA)
    if change == "truncate":
        await staged.truncate(MIB)
        del model[MIB:]
        unchanged = [(0, MIB)]
    elif change == "extend":
        await staged.truncate(SIZE + MIB)
        model.extend(bytes(MIB))
        unchanged = [(0, SIZE)]
    elif change == "zero":
        await staged.zero(MIB, 2 * MIB, keep_room=False)
        model[MIB : 2 * MIB] = bytes(MIB)
        unchanged = [(0, MIB), (2 * MIB, SIZE)]
    else:
        await staged.allocate(SIZE, MIB, keep_size=False)
        model.extend(bytes(MIB))
        unchanged = [(0, SIZE)]
    assert staged.origin is not None
    assert list(staged.origin.unchanged) == unchanged
    assert await staged.seal(rename=True) == content_digests(model)


async def test_what_others_use_stays(tier: Tier) -> None:
    entry = await cached(tier, "id1@v1", DATA)
    assert demote(tier.cache, tier.staging, Local.CACHE, 1, "id1@v1", DIGESTS) is None
    entry.unpin()
    await tier.cache.link(1, "id1@v1", 1, "id2@v1")
    assert demote(tier.cache, tier.staging, Local.CACHE, 1, "id1@v1", DIGESTS) is None
    assert names_in(tier) == ["id1@v1", "id2@v1"]
    assert tier.staging.names() == set()


async def test_what_is_small_or_missing_stays(tier: Tier) -> None:
    (await cached(tier, "id1@v1", b"small")).unpin()
    for name, digests in (("id1@v1", content_digests(b"small")), ("id2@v1", DIGESTS)):
        assert demote(tier.cache, tier.staging, Local.CACHE, 1, name, digests) is None
    assert names_in(tier) == ["id1@v1"]


@pytest.mark.expected_log("cannot be used and is dropped")
async def test_what_was_altered_is_not_taken(tier: Tier) -> None:
    entry = await cached(tier, "id1@v1", DATA)
    path = entry.path
    entry.unpin()
    with path.open("r+b") as file:
        file.write(b"altered")
    assert demote(tier.cache, tier.staging, Local.CACHE, 1, "id1@v1", DIGESTS) is None


async def test_a_copy_of_a_sealed_file_has_it_all_in_common(tier: Tier) -> None:
    first = await sealed(tier, DATA)
    copy = await first.unseal_copy()
    assert copy.origin is not None
    assert (copy.origin.digests, copy.origin.unchanged) == (DIGESTS, ((0, SIZE),))
    await copy.write(SIZE, b"tail")
    assert await copy.seal(rename=True) == content_digests(DATA + b"tail")
