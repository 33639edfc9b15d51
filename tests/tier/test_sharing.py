"""Contents that are one local file: what is appended costs no copy, what is sealed does not change."""

from __future__ import annotations

import errno
import os

import pytest

from s3blobfs.config import KIB, MIB
from s3blobfs.errors import TierFull
from s3blobfs.failpoints import Failpoint, armed
from s3blobfs.tier import copying, sharing
from s3blobfs.tier.digest import content_digests
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from s3blobfs.types import ContentDigests, FileStart
from tests.tier.conftest import MakeTier
from tests.tier.kit import random_bytes
from tests.tier.test_cache import names_in, sealed

SIZE = 3 * MIB + 5
DATA = random_bytes(SIZE)


async def extended(tier: Tier, tail: bytes = b"tail") -> tuple[StagedFile, StagedFile]:
    """A sealed content, and the longer one that has its file."""
    first = await sealed(tier, DATA)
    longer = first.extend()
    assert longer is not None
    if tail:
        await longer.write(SIZE, tail)
    return first, longer


def inode_of(staged: StagedFile) -> int:
    return staged.path.stat().st_ino


async def bytes_of(staged: StagedFile) -> bytes:
    return bytes(await staged.read(0, staged.size_bytes + 1))


# --- appending ----------------------------------------------------------------------------------------


async def test_what_is_appended_is_not_the_sealed_content(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", None)
    first, longer = await extended(tier)
    assert inode_of(first) == inode_of(longer)
    assert first.name != longer.name
    assert await bytes_of(first) == DATA
    assert await bytes_of(longer) == DATA + b"tail"
    assert await longer.seal(rename=True) == content_digests(DATA + b"tail")
    assert first.digests == content_digests(DATA)
    assert await bytes_of(first) == DATA
    assert first.body == FileStart(first.path, SIZE)
    assert tier.staging.names() == {first.name, longer.name}


async def test_room_is_counted_once(tier: Tier) -> None:
    first, longer = await extended(tier)
    assert tier.space.staged_bytes == SIZE + 4
    await longer.seal(rename=True)
    await first.discard()
    assert tier.space.staged_bytes == SIZE + 4
    await longer.discard()
    assert tier.space.staged_bytes == 0
    assert tier.staging.names() == set()


async def test_room_is_the_shorter_ones_when_the_longer_goes(tier: Tier) -> None:
    first, longer = await extended(tier)
    await longer.discard()
    assert SIZE <= tier.space.staged_bytes <= SIZE + 4
    assert await bytes_of(first) == DATA
    await first.discard()
    assert tier.space.staged_bytes == 0


async def test_many_one_after_the_other(tier: Tier) -> None:
    contents = [await sealed(tier, DATA)]
    data = DATA
    for number in range(5):
        longer = contents[-1].extend()
        assert longer is not None
        piece = random_bytes(1000, seed=number)
        await longer.write(len(data), piece)
        data += piece
        assert await longer.seal(rename=True) == content_digests(data)
        contents.append(longer)
    assert len({inode_of(content) for content in contents}) == 1
    for content in contents[1:-1]:
        await content.discard()
    assert await bytes_of(contents[0]) == DATA
    await contents[0].discard()
    assert await bytes_of(contents[-1]) == data
    assert tier.space.staged_bytes == len(data)


async def test_no_name_that_goes_makes_anybody_read_it_again(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, longer = await extended(tier)
    await longer.seal(rename=True)
    await first.discard()

    async def refuse(fd: int, size_bytes: int) -> ContentDigests:
        raise AssertionError("all of it is read again")

    monkeypatch.setattr("s3blobfs.tier.integrity.file_digests", refuse)
    await longer.check()
    next_one = longer.extend()
    assert next_one is not None
    await next_one.discard()
    await longer.check()


@pytest.mark.expected_log("cannot be kept in the cache")
async def test_what_others_alter_is_still_found(tier: Tier) -> None:
    first, longer = await extended(tier)
    await longer.seal(rename=True)
    with longer.path.open("r+b") as file:
        file.write(b"altered")
    await first.discard()
    assert await tier.cache.promote(longer, 1, "id1@v2") is None


async def test_what_others_altered_is_not_extended(tier: Tier) -> None:
    first = await sealed(tier, DATA)
    os.utime(first.path)
    assert first.extend() is None
    assert tier.staging.names() == {first.name}


async def test_a_disk_without_links(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await sealed(tier, DATA)

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    assert first.extend() is None
    await first.check()


# --- changing what is shared --------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["write", "across", "truncate", "empty", "zero"])
async def test_a_change_of_what_is_shared(tier: Tier, change: str) -> None:
    first, longer = await extended(tier)
    name = longer.name
    model = bytearray(DATA + b"tail")
    if change == "write":
        await longer.write(MIB, b"changed")
        model[MIB : MIB + 7] = b"changed"
    elif change == "across":
        await longer.write(SIZE - 3, b"changed everything")
        model[SIZE - 3 :] = b"changed everything"
    elif change == "truncate":
        await longer.truncate(MIB)
        del model[MIB:]
    elif change == "empty":
        await longer.truncate(0)
        model.clear()
    else:
        await longer.zero(MIB, 2 * MIB, keep_room=False)
        model[MIB : 2 * MIB] = bytes(MIB)
    assert longer.name == name
    assert inode_of(longer) != inode_of(first)
    assert await bytes_of(first) == DATA
    assert await bytes_of(longer) == model
    assert tier.staging.names() == {first.name, name}
    assert await longer.seal(rename=True) == content_digests(model)
    held = tier.space.staged_bytes
    assert SIZE <= held <= SIZE + 4 + len(model)
    await first.discard()
    assert tier.space.staged_bytes in (len(model), longer.allocated_bytes())
    entry = await tier.cache.promote(longer, 1, "id1@v2")
    assert entry is not None
    entry.unpin()
    assert tier.space.staged_bytes == 0


@pytest.mark.parametrize("change", ["write", "truncate", "extend", "allocate"])
async def test_a_change_behind_what_is_shared(
    tier: Tier, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "copy_range", None)
    first, longer = await extended(tier)
    model = bytearray(DATA + b"tail")
    if change == "write":
        await longer.write(SIZE, b"TA")
        model[SIZE : SIZE + 2] = b"TA"
    elif change == "truncate":
        await longer.truncate(SIZE)
        del model[SIZE:]
    elif change == "extend":
        await longer.truncate(SIZE + MIB)
        model.extend(bytes(SIZE + MIB - len(model)))
    else:
        await longer.allocate(SIZE, MIB, keep_size=False)
        model.extend(bytes(SIZE + MIB - len(model)))
    assert inode_of(longer) == inode_of(first)
    assert await longer.seal(rename=True) == content_digests(model)
    assert await bytes_of(longer) == model
    assert await bytes_of(first) == DATA


async def test_what_nobody_else_has_is_not_copied(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    first, longer = await extended(tier)
    await first.discard()
    monkeypatch.setattr(sharing, "copy_range", None)
    await longer.write(0, b"changed")
    assert await longer.seal(rename=True) == content_digests(b"changed" + DATA[7:] + b"tail")


async def test_no_room_for_a_copy_changes_nothing(make_tier: MakeTier) -> None:
    tier = make_tier(size_limit_bytes=5 * MIB)
    first, longer = await extended(tier)
    with pytest.raises(TierFull):
        await longer.write(0, b"changed")
    assert await bytes_of(longer) == DATA + b"tail"
    assert inode_of(longer) == inode_of(first)
    assert tier.space.staged_bytes == SIZE + 4
    assert set(tier.layout.staging.names()) == {first.name, longer.name}
    await longer.write(SIZE + 4, b"more")
    assert await longer.seal(rename=True) == content_digests(DATA + b"tailmore")


async def test_removed_while_it_is_copied(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    first, longer = await extended(tier)
    copy_range = copying.copy_range

    async def late(*args: object) -> bool:
        sparse = await copy_range(*args)  # type: ignore[arg-type]
        await longer.discard()
        return sparse

    monkeypatch.setattr(sharing, "copy_range", late)
    with pytest.raises(RuntimeError, match="gone"):
        await longer.write(0, b"changed")
    assert set(tier.layout.staging.names()) == {first.name}
    await first.discard()
    assert tier.space.staged_bytes == 0


async def test_the_shorter_one_goes_while_the_longer_is_copied(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, longer = await extended(tier)
    copy_range = copying.copy_range

    async def late(*args: object) -> bool:
        sparse = await copy_range(*args)  # type: ignore[arg-type]
        await first.discard()
        return sparse

    monkeypatch.setattr(sharing, "copy_range", late)
    await longer.write(0, b"changed")
    assert await longer.seal(rename=True) == content_digests(b"changed" + DATA[7:] + b"tail")
    assert tier.space.staged_bytes == SIZE + 4


async def test_what_was_promised_is_on_the_disk_before_it_is_replaced(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, longer = await extended(tier)
    await longer.sync()
    synced: list[int] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    await longer.write(0, b"changed")
    assert synced == [inode_of(longer)]


async def test_readers_and_followers_of_a_file_that_is_parted(tier: Tier) -> None:
    """A follower that has begun to hash goes on with what the content is, in the new file."""
    first, longer = await extended(tier, b"")
    tail = random_bytes(9 * MIB, seed=3)
    for at in range(0, len(tail), 64 * KIB):
        await longer.write(SIZE + at, tail[at : at + 64 * KIB])
    longer.pin()
    await longer.write(SIZE - 1, b"!")
    model = DATA[:-1] + b"!" + tail
    assert await bytes_of(longer) == model
    longer.unpin()
    assert await longer.seal(rename=True) == content_digests(model)
    assert await bytes_of(first) == DATA


# --- the cache ----------------------------------------------------------------------------------------


async def test_what_is_outgrown_is_not_cached(tier: Tier) -> None:
    first, longer = await extended(tier)
    assert await tier.cache.promote(first, 1, "id1@v1") is None
    assert names_in(tier) == []
    digests = await longer.seal(rename=True)
    entry = await tier.cache.promote(longer, 1, "id1@v2")
    assert entry is not None
    assert await tier.cache.verify(entry, digests)
    entry.unpin()
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (0, SIZE + 4)
    entry = tier.cache.get(1, "id1@v2", SIZE + 4)
    assert entry is not None
    entry.unpin()


async def test_the_longer_one_is_not_cached_while_the_shorter_is_there(tier: Tier) -> None:
    """A name that goes later would look as if the entry had been altered."""
    first, longer = await extended(tier)
    await longer.seal(rename=True)
    assert await tier.cache.promote(longer, 1, "id1@v2") is None
    assert await bytes_of(first) == DATA


# --- the next mount -----------------------------------------------------------------------------------


async def test_a_sealed_content_is_cut_to_its_length(make_tier: MakeTier) -> None:
    first, longer = await extended(make_tier())
    digests = first.digests
    tier = make_tier()
    found = tier.staging.open(first.name, Local.CACHE, digests)
    assert await bytes_of(found) == DATA
    assert found.extend() is None
    assert tier.staging.sweep({first.name}) == [longer.name]
    found.cut_to_seal()
    assert found.path.stat().st_size == SIZE == tier.space.staged_bytes
    again = found.extend()
    assert again is not None
    await again.write(SIZE + 10, b"x")
    assert await bytes_of(again) == DATA + bytes(10) + b"x"


async def test_what_another_content_has_is_not_cut(make_tier: MakeTier) -> None:
    first, longer = await extended(make_tier())
    digests = await longer.seal(rename=True)
    tier = make_tier()
    found = tier.staging.open(longer.name, Local.CACHE, digests)
    before = tier.staging.open(first.name, Local.CACHE, first.digests)
    assert tier.space.staged_bytes == SIZE + 4
    before.cut_to_seal()
    assert await bytes_of(found) == DATA + b"tail"
    await before.discard()
    await found.check()
    entry = await tier.cache.promote(found, 1, "id1@v2")
    assert entry is not None
    entry.unpin()
    assert (tier.space.staged_bytes, tier.space.cached_bytes) == (0, SIZE + 4)


async def test_found_the_shorter_one_first(make_tier: MakeTier) -> None:
    first, longer = await extended(make_tier())
    tier = make_tier()
    before = tier.staging.open(first.name, Local.CACHE, first.digests)
    found = tier.staging.open(longer.name, Local.CACHE, None)
    assert tier.space.staged_bytes == SIZE + 4
    await found.write(0, b"changed")
    assert await bytes_of(before) == DATA
    assert await bytes_of(found) == b"changed" + DATA[7:] + b"tail"


# --- failpoints ---------------------------------------------------------------------------------------


async def test_the_points_are_passed(tier: Tier) -> None:
    passed: list[Failpoint] = []
    with armed(Failpoint.SHARED, lambda: passed.append(Failpoint.SHARED)):
        await extended(tier, b"")
    with armed(Failpoint.EXTENDED, lambda: passed.append(Failpoint.EXTENDED)):
        _, longer = await extended(tier)
    with armed(Failpoint.PARTED, lambda: passed.append(Failpoint.PARTED)):
        await longer.write(0, b"x")
    assert passed == [Failpoint.SHARED, Failpoint.EXTENDED, Failpoint.PARTED]
