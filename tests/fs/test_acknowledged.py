"""Whatever a close, an fsync or a truncate acknowledged is there after a kill, and not only bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from s3blobfs.fs.attributes import AttributeChanges
from s3blobfs.types import Durability
from tests.fs.calls import find, resize
from tests.fs.test_durability import crashing
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

NAMES = (b"f", b"g")


@dataclass(frozen=True)
class Seen:
    """Of the file, by whichever name it has."""

    names: tuple[bytes, ...] = (b"f",)
    content: bytes = b"content"
    mode: int = 0o644
    attribute: bytes | None = None


@asynccontextmanager
async def closed(rig: Rig, inode_id: int, flags: int = os.O_RDWR) -> AsyncIterator[int]:
    """The file open; closed in the end."""
    handle = (await rig.fs.open(inode_id, flags)).handle
    yield handle
    await rig.fs.flush(handle)
    await rig.fs.release(handle)


@asynccontextmanager
async def synced(rig: Rig, inode_id: int) -> AsyncIterator[int]:
    """The file open; synced in the end, and left open."""
    handle = (await rig.fs.open(inode_id, os.O_RDWR)).handle
    yield handle
    await rig.fs.fsync(handle)


async def truncate_to_nothing(rig: Rig, inode_id: int) -> None:
    await resize(rig, inode_id, 0)


async def truncate_to_more(rig: Rig, inode_id: int) -> None:
    await resize(rig, inode_id, 10)


async def open_for_overwriting(rig: Rig, inode_id: int) -> None:
    async with closed(rig, inode_id, os.O_WRONLY | os.O_TRUNC):
        pass


async def write_and_cut_to_nothing(rig: Rig, inode_id: int) -> None:
    async with closed(rig, inode_id) as handle:
        await rig.fs.write(handle, 0, b"other")
        await resize(rig, inode_id, 0)


async def allocate(rig: Rig, inode_id: int) -> None:
    async with closed(rig, inode_id) as handle:
        await rig.fs.fallocate(handle, 0, 0, 10)


async def change_mode(rig: Rig, inode_id: int) -> None:
    async with synced(rig, inode_id):
        await rig.fs.setattr(inode_id, AttributeChanges(mode=0o600))


async def set_attribute(rig: Rig, inode_id: int) -> None:
    async with synced(rig, inode_id):
        await rig.fs.setxattr(inode_id, b"user.a", b"value", USER)


async def rename(rig: Rig, inode_id: int) -> None:
    async with synced(rig, inode_id):
        await rig.fs.rename(ROOT, b"f", ROOT, b"g")


async def link(rig: Rig, inode_id: int) -> None:
    async with synced(rig, inode_id):
        await rig.fs.link(inode_id, ROOT, b"g")


CALLS: dict[Callable[[Rig, int], Awaitable[None]], Seen] = {
    truncate_to_nothing: Seen(content=b""),
    truncate_to_more: Seen(content=b"content\0\0\0"),
    open_for_overwriting: Seen(content=b""),
    write_and_cut_to_nothing: Seen(content=b""),
    allocate: Seen(content=b"content\0\0\0"),
    change_mode: Seen(mode=0o600),
    set_attribute: Seen(attribute=b"value"),
    rename: Seen(names=(b"g",)),
    link: Seen(names=(b"f", b"g")),
}


async def look(rig: Rig) -> Seen:
    names = [name for name in NAMES if await rig.fs.lookup(ROOT, name) is not None]
    found = await find(rig, names[0])
    attributes = await rig.fs.listxattr(found.inode_id)
    return Seen(
        names=tuple(names),
        content=await rig.read_file(names[0]),
        mode=found.mode & 0o777,
        attribute=await rig.fs.getxattr(found.inode_id, b"user.a") if b"user.a" in attributes else None,
    )


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("durability", Durability, ids=lambda durability: durability.value)
async def test_it_is_there_after_a_kill(
    any_setup: Setup, durability: Durability, call: Callable[[Rig, int], Awaitable[None]]
) -> None:
    setup = replace(any_setup, durability=durability)
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", b"content")
        assert await look(rig) == Seen()
    async with crashing(setup) as rig:
        await call(rig, (await find(rig, b"f")).inode_id)
    async with open_rig(setup) as rig:
        assert await look(rig) == CALLS[call]
