"""Small contents in memory: what is held is what the file has, and never more than the limit."""

from __future__ import annotations

import pytest

from s3blobfs.tier.digest import content_digests
from s3blobfs.tier.small import SMALL_MAX_BYTES, Memory, SmallContent
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local
from s3blobfs.types import FileStart


def test_pieces_in_order_are_one_content() -> None:
    held = SmallContent(Memory())
    held.wrote(0, b"ab")
    held.wrote(2, memoryview(b"cd"))
    assert held.content(4) == b"abcd"
    held.wrote(4, b"e")
    assert held.content(5) == b"abcde"


def test_a_file_of_another_length_is_not_what_is_held() -> None:
    held = SmallContent(Memory())
    assert held.content(0) == b""
    held.wrote(0, b"ab")
    assert held.content(3) is None


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_what_is_changed_out_of_order_is_not_held(offset: int) -> None:
    memory = Memory()
    held = SmallContent(memory)
    held.wrote(0, b"ab")
    held.wrote(offset, b"x")
    held.wrote(2, b"c")
    assert held.content(3) is None
    assert memory.used_bytes == 0


def test_limits_of_one_and_of_all() -> None:
    memory = Memory(limit_bytes=SMALL_MAX_BYTES + 10)
    large, first, second = SmallContent(memory), SmallContent(memory), SmallContent(memory)
    large.wrote(0, bytes(SMALL_MAX_BYTES + 1))
    assert large.content(SMALL_MAX_BYTES + 1) is None
    first.wrote(0, bytes(SMALL_MAX_BYTES))
    second.wrote(0, bytes(10))
    assert memory.used_bytes == SMALL_MAX_BYTES + 10
    second.wrote(10, b"x")
    assert second.content(11) is None
    assert memory.used_bytes == SMALL_MAX_BYTES
    first.drop()
    first.drop()
    assert memory.used_bytes == 0


async def staged(tier: Tier, data: bytes) -> StagedFile:
    made = await tier.staging.create(Local.CACHE)
    await made.write(0, data)
    return made


async def test_a_small_content_is_sent_from_memory_until_it_is_gone(tier: Tier) -> None:
    made = await staged(tier, b"content")
    assert await made.seal(rename=True) == content_digests(b"content")
    assert made.body == b"content"
    assert made.path.read_bytes() == b"content"
    await made.discard()
    assert tier.staging.memory.used_bytes == 0


async def test_a_promoted_content_is_not_held_any_more(tier: Tier) -> None:
    made = await staged(tier, b"content")
    await made.seal(rename=True, keep_open=True)
    entry = await tier.cache.promote(made, 1, "id@v")
    assert entry is not None
    entry.unpin()
    assert tier.staging.memory.used_bytes == 0


async def test_an_emptied_file_is_held_anew(tier: Tier) -> None:
    made = await staged(tier, b"content")
    await made.truncate(0)
    await made.write(0, b"other")
    await made.seal(rename=True)
    assert made.body == b"other"


async def test_what_memory_does_not_have_is_sent_from_the_file(tier: Tier) -> None:
    cut = await staged(tier, b"content")
    await cut.truncate(3)
    allocated = await staged(tier, b"content")
    await allocated.allocate(0, 10, keep_size=False)
    zeroed = await staged(tier, b"content")
    await zeroed.zero(2, 4, keep_room=False)
    sealed = await staged(tier, b"content")
    await sealed.seal(rename=False)
    copied = await sealed.unseal_copy()
    for each, expected in (
        (cut, b"con"),
        (allocated, b"content" + bytes(3)),
        (zeroed, b"co\0\0ent"),
        (copied, b"content"),
    ):
        assert await each.seal(rename=True) == content_digests(expected)
        assert each.body == FileStart(each.path, each.size_bytes)


async def test_a_copy_whose_beginning_is_replaced_is_not_taken_for_the_new_bytes(tier: Tier) -> None:
    sealed = await staged(tier, b"content")
    await sealed.seal(rename=False)
    copied = await sealed.unseal_copy()
    await copied.write(0, b"CON")
    assert await copied.seal(rename=True) == content_digests(b"CONtent")
    assert copied.body == FileStart(copied.path, copied.size_bytes)
