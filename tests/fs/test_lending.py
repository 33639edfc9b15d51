"""Files of the cache that the kernel reads by itself, with a kernel made of open files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.config import MIB
from s3blobfs.fs.lending import Access
from s3blobfs.fs.opening import OpenFile
from s3blobfs.index import uploads
from s3blobfs.index.uploads import UploadRow, UploadState
from s3blobfs.tier import lent
from s3blobfs.tier.layout import TierLayout
from s3blobfs.tier.staging import StagedFile
from s3blobfs.trace import Count, Local
from s3blobfs.types import Durability, Keying
from tests.fs.calls import find, opened_file, pattern, refused, resize
from tests.fs.test_copy import directory_of_another_store
from tests.fs.test_durability import crashing
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

MIN_BYTES = 1000
DATA = pattern(20_000)


@dataclass
class Kernel:
    """Opens what it is shown, once for each handle, as the real one does: what is opened so stands for the
    descriptor and for the mappings made by it."""

    shown: dict[int, int] = field(default_factory=dict)
    refusal: int | None = None
    _number: int = 0

    def register(self, fd: int) -> int:
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self._number += 1
        self.shown[self._number] = fd
        return self._number

    def forget(self, number: int) -> None:
        del self.shown[number]

    def open(self, access: Access | None, flags: int = os.O_RDONLY) -> int:
        assert access is not None, "nothing is lent"
        return os.open(f"/proc/self/fd/{self.shown[access.number]}", flags)


@dataclass
class Reader:
    """A program that has a file open, which is lent."""

    rig: Rig
    opened: OpenFile
    fd: int
    """What the kernel has."""

    def read(self, offset: int = 0, size: int = 2 * MIB) -> bytes:
        return os.pread(self.fd, size, offset)

    async def close(self, *, flush: bool = False) -> None:
        os.close(self.fd)
        await self.leave(flush=flush)

    async def leave(self, *, flush: bool = False) -> None:
        """Close the descriptor, not the mapping."""
        if flush:
            await self.rig.fs.flush(self.opened.handle)
        await self.rig.fs.release(self.opened.handle)


async def program(rig: Rig, inode_id: int, flags: int = os.O_RDONLY) -> Reader:
    opened = await rig.fs.open(inode_id, flags)
    return Reader(rig, opened, kernel_of(rig).open(opened.lent, flags & os.O_ACCMODE))


_kernels: dict[int, Kernel] = {}


def kernel_of(rig: Rig) -> Kernel:
    return _kernels[id(rig)]


@asynccontextmanager
async def lending(setup: Setup) -> AsyncIterator[Rig]:
    async with open_rig(setup) as rig:
        kernel = _kernels[id(rig)] = Kernel()
        rig.fs.lend_to(kernel, MIN_BYTES)
        assert kernel.shown == {}
        yield rig
        await rig.fs.close()
        assert kernel.shown == {}
        assert lent_files(rig) == 0
        assert rig.tier.staging.file_count == 0


@pytest.fixture(params=list(Keying), ids=lambda keying: keying.value)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with lending(Setup(tmp_path / "volume", keying=request.param)) as opened:
        yield opened


def lent_files(rig: Rig) -> int:
    return rig.fs.status().lent_files


def s3_requests(rig: Rig) -> int:
    return sum(count for what, count in rig.tracer.counts.items() if what.value.startswith("s3."))


async def is_lent(rig: Rig, inode_id: int, flags: int = os.O_RDONLY) -> bool:
    async with opened_file(rig, inode_id, flags) as handle:
        assert handle
        return lent_files(rig) > 0


async def until(reached: Callable[[], bool]) -> None:
    """The clock jumps ahead while a thread is at work, so that no time is long enough to be sure of."""
    while not reached():  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(1)


async def stored(rig: Rig, name: bytes) -> bytes:
    """From S3: the cache is emptied."""
    await rig.fs.sync(None, None)
    await rig.tier.cache.evict(2**60)
    return await rig.read_file(name)


# -- who is lent what ----------------------------------------------------------------------------------


async def test_readers_of_one_file_are_lent_the_same_file(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    one = await program(rig, made.inode_id)
    other = await program(rig, made.inode_id)
    assert one.opened.lent == other.opened.lent == Access(one.opened.lent.number, only_mappings=False)  # type: ignore[union-attr]
    assert not one.opened.keep_cache
    assert lent_files(rig) == 1
    assert one.read() == other.read() == DATA
    await one.close()
    assert lent_files(rig) == 1
    await other.close()
    assert lent_files(rig) == 0
    assert (await rig.fs.getattr(made.inode_id)).size_bytes == len(DATA)


async def test_no_request_and_one_hit_is_counted(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    rig.tracer.counts.clear()
    await (await program(rig, made.inode_id)).close()
    assert s3_requests(rig) == 0
    assert rig.tracer.counts[Count.CACHE_HIT] == 1
    assert rig.tracer.counts[Count.INDEX_WRITE] == 0


async def test_what_is_not_lent(rig: Rig) -> None:
    small = await rig.write_file(b"small", DATA[: MIN_BYTES - 1])
    large = await rig.write_file(b"large", DATA)
    empty = await rig.write_file(b"empty", b"")
    assert not await is_lent(rig, small.inode_id)
    assert not await is_lent(rig, empty.inode_id)
    for flags in (os.O_RDWR, os.O_WRONLY):
        assert not await is_lent(rig, large.inode_id, flags)
    await rig.tier.cache.evict(2**60)
    assert not await is_lent(rig, large.inode_id)  # it is not in the cache
    await rig.read_file(b"large")
    assert await is_lent(rig, large.inode_id)
    kernel_of(rig).refusal = errno.ELOOP
    assert not await is_lent(rig, large.inode_id)
    assert await rig.read_file(b"large") == DATA


async def test_nothing_is_lent_while_a_trace_is_drawn(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    rig.tracer.start_steps(StringIO().write, Local.CACHE)
    assert not await is_lent(rig, made.inode_id)
    rig.tracer.stop_steps()
    assert await is_lent(rig, made.inode_id)


async def test_an_uncached_store_lends_nothing(tmp_path: Path) -> None:
    async with lending(Setup(tmp_path / "volume", cached=False)) as rig:
        made = await rig.write_file(b"f", DATA)
        assert not await is_lent(rig, made.inode_id)


async def test_it_stays_what_it_was_to_the_first_handle(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    async with opened_file(rig, made.inode_id, os.O_RDWR):
        opened = await rig.fs.open(made.inode_id, os.O_RDONLY)
    assert opened.lent is None
    again = await rig.fs.open(made.inode_id, os.O_RDONLY)
    assert again.lent is None
    assert await rig.fs.read(again.handle, 0, MIB) == DATA
    await rig.fs.release(opened.handle)
    await rig.fs.release(again.handle)
    assert await is_lent(rig, made.inode_id)


async def test_of_two_files_with_one_content_one_is_lent_it(tmp_path: Path) -> None:
    async with lending(Setup(tmp_path / "volume")) as rig:
        one, other = await rig.write_file(b"f", DATA), await rig.write_file(b"g", DATA)
        reader = await program(rig, one.inode_id)
        opened = await rig.fs.open(other.inode_id, os.O_RDONLY)
        assert opened.lent is None
        writer = await program(rig, one.inode_id, os.O_RDWR)
        await rig.fs.write(writer.opened.handle, 0, b"changed")
        assert reader.read(0, 7) == b"changed"
        assert await rig.fs.read(opened.handle, 0, MIB) == DATA
        await writer.close(flush=True)
        assert await rig.fs.read(opened.handle, 0, MIB) == DATA
        await rig.fs.release(opened.handle)
        assert await rig.read_file(b"g") == DATA
        await reader.close()
        assert await stored(rig, b"f") == b"changed" + DATA[7:]
        assert await stored(rig, b"g") == DATA


async def test_a_reader_at_work_on_the_same_content_sees_no_change(tmp_path: Path) -> None:
    async with lending(Setup(tmp_path / "volume")) as rig:
        one, other = await rig.write_file(b"f", DATA), await rig.write_file(b"g", DATA)
        reader = await program(rig, one.inode_id)
        opened = await rig.fs.open(other.inode_id, os.O_RDONLY)
        assert await rig.fs.read(opened.handle, 0, 10) == DATA[:10]  # it has the entry now
        writer = await program(rig, one.inode_id, os.O_RDWR)
        os.pwrite(writer.fd, b"changed", 0)
        assert await rig.fs.read(opened.handle, 0, MIB) == DATA
        await rig.fs.release(opened.handle)
        await writer.close()
        await reader.close()


async def test_a_second_name_of_a_cached_file_is_not_lent(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    elsewhere = await directory_of_another_store(rig)
    copy = await rig.fs.copy_file(made.inode_id, elsewhere, b"g", replace=False, caller=USER)
    reader = await program(rig, made.inode_id)
    assert (await rig.fs.open(copy, os.O_RDONLY)).lent is None
    writer = await program(rig, made.inode_id, os.O_RDWR)
    await rig.fs.write(writer.opened.handle, 0, b"changed")
    assert reader.read(0, 7) == b"changed"
    assert await rig.read_file(b"g", elsewhere) == DATA
    await writer.close(flush=True)
    await reader.close()
    assert await rig.read_file(b"f") == b"changed" + DATA[7:]


async def test_a_lent_file_is_not_evicted(tmp_path: Path) -> None:
    async with lending(Setup(tmp_path / "volume", cache_bytes=3 * len(DATA))) as rig:
        made = await rig.write_file(b"f", DATA)
        reader = await program(rig, made.inode_id)
        for number in range(5):
            await rig.write_file(b"%d" % number, pattern(len(DATA), seed=number + 1))
        assert reader.read() == DATA
        rig.tracer.counts.clear()
        assert await rig.read_file(b"f") == DATA
        assert s3_requests(rig) == 0
        await reader.close()


async def test_creating_what_is_lent_is_to_be_asked_again(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    with refused(errno.ESTALE):
        await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await reader.close()
    assert lent_files(rig) == 0


# -- changes -------------------------------------------------------------------------------------------


async def test_readers_see_what_is_written(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    assert writer.opened.lent == Access(reader.opened.lent.number, only_mappings=True)  # type: ignore[union-attr]
    await rig.fs.write(writer.opened.handle, 10, b"one")
    assert reader.read() == DATA[:10] + b"one" + DATA[13:]
    await rig.fs.write(writer.opened.handle, len(DATA), b"end")
    assert reader.read(len(DATA)) == b"end"
    await rig.fs.flush(writer.opened.handle)
    await rig.fs.write(writer.opened.handle, 10, b"two")
    assert reader.read(10, 3) == b"two"
    assert await rig.fs.read(writer.opened.handle, 10, 3) == b"two"
    await writer.close(flush=True)
    await resize(rig, made.inode_id, 5)
    assert reader.read() == DATA[:5]
    await resize(rig, made.inode_id, 0)
    assert reader.read() == b""
    await resize(rig, made.inode_id, 4)
    assert reader.read() == bytes(4)
    await reader.close()
    assert lent_files(rig) == 0
    assert await stored(rig, b"f") == bytes(4)


async def test_opening_with_truncation(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_WRONLY | os.O_TRUNC)
    assert reader.read() == b""
    await rig.fs.write(writer.opened.handle, 0, b"new")
    assert reader.read() == b"new"
    await writer.close(flush=True)
    opened = await rig.fs.open(made.inode_id, os.O_RDONLY | os.O_TRUNC)
    assert opened.lent is not None
    assert reader.read() == b""
    await rig.fs.release(opened.handle)
    await reader.close()
    assert await stored(rig, b"f") == b""


async def test_what_was_not_changed_is_in_the_cache_again(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    await reader.close()
    rig.tracer.counts.clear()
    await writer.close(flush=True)
    assert lent_files(rig) == 0
    assert await rig.read_file(b"f") == DATA
    assert s3_requests(rig) == 0
    assert await is_lent(rig, made.inode_id)


async def test_the_bytes_of_a_live_file_are_accounted_for(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    before = rig.tier.space.used_bytes
    writer = await program(rig, made.inode_id, os.O_RDWR)
    assert rig.tier.space.used_bytes - before in range(-4096, 4097)
    assert rig.tier.space.cached_bytes == 0
    await rig.fs.write(writer.opened.handle, 0, DATA[:100])
    await writer.close(flush=True)
    await reader.close()
    await rig.fs.sync(None, None)
    assert rig.tier.space.staged_bytes == 0
    await rig.tier.cache.evict(2**60)
    assert rig.tier.space.used_bytes == 0


async def test_a_direct_copy_onto_a_lent_file_reaches_its_readers(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    source = await rig.write_file(b"source", pattern(30_000, seed=7))
    reader = await program(rig, made.inode_id)
    await rig.fs.copy_file(source.inode_id, ROOT, b"f", replace=True, caller=USER)
    assert reader.read() == pattern(30_000, seed=7)
    await reader.close()
    assert await stored(rig, b"f") == pattern(30_000, seed=7)


async def test_copied_ranges_reach_readers(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    source = await rig.write_file(b"source", pattern(30_000, seed=7))
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    of_source = await program(rig, source.inode_id)
    copied = await rig.fs.copy_file_range(of_source.opened.handle, 0, writer.opened.handle, 0, 2**30)
    assert copied == 30_000
    assert reader.read() == of_source.read()
    for each in (writer, reader, of_source):
        await each.close()
    assert await stored(rig, b"f") == pattern(30_000, seed=7)


async def test_removed_while_it_is_read_and_written(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    await rig.fs.unlink(ROOT, b"f")
    await rig.fs.write(writer.opened.handle, 0, b"changed")
    assert reader.read(0, 7) == b"changed"
    await writer.close(flush=True)
    await reader.leave()  # a mapping of what nobody else can reach
    assert lent_files(rig) == 0
    os.close(reader.fd)
    assert await rig.fs.lookup(ROOT, b"f") is None


async def test_replaced_while_it_is_read(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    await rig.write_file(b"g", b"other" * 1000)
    reader = await program(rig, made.inode_id)
    await rig.fs.rename(ROOT, b"g", ROOT, b"f")
    assert reader.read() == DATA
    await reader.close()
    assert await rig.read_file(b"f") == b"other" * 1000


async def test_whose_entry_is_gone_is_read_on_and_cannot_be_written(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    async with opened_file(rig, made.inode_id, os.O_RDONLY):
        (blob,) = [inode.content.blob for inode in rig.fs._core.inodes if inode.content is not None]
        assert blob is not None
        rig.tier.cache.remove(blob.store_id, blob.location.cache_name)
    assert reader.read() == DATA
    with refused(errno.EIO):
        await rig.fs.open(made.inode_id, os.O_RDWR)
    await reader.close()
    async with opened_file(rig, made.inode_id, os.O_RDWR) as handle:
        assert await rig.fs.read(handle, 0, MIB) == DATA


# -- what comes unseen ---------------------------------------------------------------------------------


async def test_stores_through_a_mapping_are_found_by_close_fsync_and_sync(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    expected = bytearray(DATA)
    acts: list[Callable[[], Awaitable[None]]] = [
        lambda: rig.fs.flush(writer.opened.handle),
        lambda: rig.fs.fsync(writer.opened.handle),
        lambda: rig.fs.sync(None, None),
        lambda: rig.fs.sync(made.inode_id, None),
        lambda: rig.fs.fsyncdir(),
    ]
    for number, act in enumerate(acts):
        expected[number] = 255 - number
        os.pwrite(writer.fd, expected[number : number + 1], number)
        assert await rig.fs.read(writer.opened.handle, 0, MIB) == expected
        rig.tracer.counts.clear()
        await act()
        assert rig.tracer.counts[Count.S3_PUT] == 1
        await act()
        assert rig.tracer.counts[Count.S3_PUT] == 1  # nothing was stored meanwhile
    await writer.close()
    await reader.close()
    assert await stored(rig, b"f") == bytes(expected)


async def test_a_copy_has_what_was_stored_through_a_mapping(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    os.pwrite(writer.fd, b"stored", 0)
    await rig.fs.copy_file(made.inode_id, ROOT, b"copy", replace=False, caller=USER)
    assert await rig.read_file(b"copy") == b"stored" + DATA[6:]
    os.pwrite(writer.fd, b"again!", 0)
    opened, _ = await rig.fs.create(ROOT, b"second", 0o644, os.O_RDWR, USER)
    assert await rig.fs.copy_file_range(reader.opened.handle, 0, opened.handle, 0, 2**30) == len(DATA)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)
    assert await rig.read_file(b"second") == b"again!" + DATA[6:]
    await writer.close()
    await reader.close()


async def test_a_mapping_outlives_its_handles(rig: Rig, autojump_clock: MockClock) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    writer = await program(rig, made.inode_id, os.O_RDWR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fs.watch_loans)
        await writer.leave(flush=True)
        await reader.close()
        os.pwrite(writer.fd, b"stored", 0)
        assert lent_files(rig) == 1
        later = await program(rig, made.inode_id)
        assert later.read(0, 6) == b"stored"
        await later.close()
        await until(lambda: rig.tracer.counts[Count.S3_PUT] == 2)  # with the mapping still there
        assert lent_files(rig) == 1
        rig.tracer.counts.clear()
        await trio.sleep(100)
        assert s3_requests(rig) == 0
        os.pwrite(writer.fd, b"STORED", 0)
        os.close(writer.fd)
        await until(lambda: lent_files(rig) == 0)
        nursery.cancel_scope.cancel()
    assert await stored(rig, b"f") == b"STORED" + DATA[6:]


async def test_a_readers_mapping_sees_later_writers(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    await reader.leave()
    assert lent_files(rig) == 1
    async with opened_file(rig, made.inode_id, os.O_WRONLY) as handle:
        await rig.fs.write(handle, 0, b"changed")
        assert reader.read(0, 7) == b"changed"
    await resize(rig, made.inode_id, 3)
    assert reader.read() == b"cha"
    os.close(reader.fd)
    assert not await is_lent(rig, made.inode_id, os.O_RDWR)
    assert await stored(rig, b"f") == b"cha"


async def test_an_unmount_stores_what_mappings_have_changed(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume")
    async with lending(setup) as rig:
        made = await rig.write_file(b"f", DATA)
        reader = await program(rig, made.inode_id)
        writer = await program(rig, made.inode_id, os.O_RDWR)
        await writer.leave()
        await reader.leave()
        os.pwrite(writer.fd, b"stored", 0)
    os.close(writer.fd)
    os.close(reader.fd)
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"f") == b"stored" + DATA[6:]


# -- crashes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: each.value)
async def test_a_crash_loses_nothing_acknowledged(tmp_path: Path, durability: Durability) -> None:
    setup = Setup(tmp_path / "volume", durability=durability)
    fds = []
    async with crashing(setup) as rig:
        kernel = _kernels[id(rig)] = Kernel()
        rig.fs.lend_to(kernel, MIN_BYTES)
        for name, end in ((b"closed", "flush"), (b"synced", "fsync"), (b"neither", "")):
            made = await rig.write_file(name, DATA + name)
            await rig.fs.sync(None, None)
            reader = await program(rig, made.inode_id)
            writer = await program(rig, made.inode_id, os.O_WRONLY)
            fds += [reader.fd, writer.fd]
            await rig.fs.write(writer.opened.handle, 0, b"written")
            if end:
                await getattr(rig.fs, end)(writer.opened.handle)
        await rig.db.flush()
    for fd in fds:
        os.close(fd)
    async with open_rig(replace(setup)) as rig:
        assert await rig.read_file(b"closed") == b"written" + DATA[7:] + b"closed"
        assert await rig.read_file(b"synced") == b"written" + DATA[7:] + b"synced"
        assert await rig.read_file(b"neither") == DATA + b"neither"
        await rig.fs.sync(None, None)
        assert rig.tier.staging.names() == set()


@pytest.mark.parametrize("durability", list(Durability), ids=lambda each: each.value)
async def test_a_crash_loses_nothing_that_a_mapping_stored(tmp_path: Path, durability: Durability) -> None:
    """msync(2) may have promised that it stays, and nobody here hears of that."""
    setup = Setup(tmp_path / "volume", durability=durability)
    ends: dict[bytes, list[str]] = {
        b"stored": [],
        b"closed": ["flush"],
        b"synced": ["fsync"],
        b"left": ["flush", "release"],
    }
    fds, opened_ns = [], {}
    async with crashing(setup) as rig:
        kernel = _kernels[id(rig)] = Kernel()
        rig.fs.lend_to(kernel, MIN_BYTES)
        for name, calls in ends.items():
            made = await rig.write_file(name, DATA + name)
            await rig.fs.sync(None, None)
            reader = await program(rig, made.inode_id)
            writer = await program(rig, made.inode_id, os.O_RDWR)
            fds += [reader.fd, writer.fd]
            opened_ns[name] = time.time_ns()
            await rig.fs.write(writer.opened.handle, 0, b"written")
            for call in calls:
                os.pwrite(writer.fd, b"before", 100)
                await getattr(rig.fs, call)(writer.opened.handle)
            os.pwrite(writer.fd, b"stored", 200)
    for fd in fds:
        os.close(fd)
    async with open_rig(replace(setup)) as rig:
        for name, calls in ends.items():
            before = b"before" if calls else DATA[100:106]
            expected = b"written" + DATA[7:100] + before + DATA[106:200] + b"stored" + DATA[206:] + name
            assert await rig.read_file(name) == expected
            # The disk's clock counts in ticks.
            assert (await find(rig, name)).mtime_ns >= opened_ns[name] - 20_000_000
        await rig.fs.sync(None, None)
        assert rig.tier.staging.names() == set()
        await rig.tier.cache.evict(2**60)
        assert (await rig.read_file(b"stored"))[200:206] == b"stored"


async def test_a_crash_of_what_was_not_changed_stores_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", keying=Keying.VERSIONED)
    async with crashing(setup) as rig:
        kernel = _kernels[id(rig)] = Kernel()
        rig.fs.lend_to(kernel, MIN_BYTES)
        made = await rig.write_file(b"f", DATA)
        reader = await program(rig, made.inode_id)
        writer = await program(rig, made.inode_id, os.O_RDWR)
    for each in (reader, writer):
        os.close(each.fd)
    async with open_rig(replace(setup)) as rig:
        assert await rig.read_file(b"f") == DATA
        assert (await find(rig, b"f")).mtime_ns == made.mtime_ns
        await rig.fs.sync(None, None)
        assert rig.tracer.counts[Count.S3_PUT] == 0
        assert rig.tier.staging.names() == set()


async def test_who_could_map_and_changed_nothing_leaves_no_row(rig: Rig) -> None:
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    rig.tracer.counts.clear()
    writer = await program(rig, made.inode_id, os.O_RDWR)
    other = await program(rig, made.inode_id, os.O_RDWR)
    assert rig.tracer.counts[Count.INDEX_WRITE] == 1
    assert len(await rig.db.read(uploads.every)) == 1
    await other.close(flush=True)
    await writer.close(flush=True)
    assert len(await rig.db.read(uploads.every)) == 1  # a mapping may be left
    await reader.close()
    assert await rig.db.read(uploads.every) == []
    assert rig.tracer.counts[Count.INDEX_WRITE] == 2
    assert rig.tracer.counts[Count.S3_PUT] == 0
    assert await rig.read_file(b"f") == DATA
    assert rig.tier.staging.names() == set()


@pytest.mark.expected_log("stays until the next mount: .*somebody else")
async def test_a_loan_ends_also_when_the_index_takes_nothing_any_more(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", keying=Keying.VERSIONED)
    async with open_rig(setup) as rig:
        kernel = _kernels[id(rig)] = Kernel()
        rig.fs.lend_to(kernel, MIN_BYTES)
        made = await rig.write_file(b"f", DATA)
        reader = await program(rig, made.inode_id)
        writer = await program(rig, made.inode_id, os.O_RDWR)
        await rig.db.flush()
        rig.db.fence("somebody else goes on")
        rig.fs.refuse_changes()
        await reader.close()
        await writer.close()
        assert lent_files(rig) == 0
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"f") == DATA
        await rig.fs.sync(None, None)
        assert rig.tracer.counts[Count.S3_PUT] == 0
        assert rig.tier.staging.names() == set()


async def test_the_row_of_what_is_mapped_stays_until_the_end(rig: Rig) -> None:
    """Through seals, an fsync of somebody who cannot map, being emptied, and being unlinked."""
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    appender = await program(rig, made.inode_id, os.O_WRONLY)
    await rig.fs.write(appender.opened.handle, 0, b"first")
    await rig.fs.fsync(appender.opened.handle)
    writer = await program(rig, made.inode_id, os.O_RDWR)

    async def row() -> UploadRow:
        (found,) = await rig.db.read(uploads.every)
        assert found.state is UploadState.DIRTY
        return found

    first = await row()
    for size in (5, 0, 7):
        await resize(rig, made.inode_id, size)
        await rig.fs.fsync(writer.opened.handle)
        await rig.fs.sync(None, None)
        later = await row()
        assert (later.staged_name, later.size_bytes) == (first.staged_name, size)
        assert await rig.db.check() == []
    await rig.fs.unlink(ROOT, b"f")
    assert (await row()).staged_name == first.staged_name
    for each in (reader, appender, writer):
        await each.close(flush=True)
    assert await rig.db.read(uploads.every) == []
    assert rig.tier.staging.names() == set()


# -- the disk ------------------------------------------------------------------------------------------


def test_a_disk_that_does_not_tell_of_stores_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = TierLayout(tmp_path / "tier")
    os.close(lent.check_disk(layout))
    monkeypatch.setattr(lent, "is_marked", lambda fd: True)
    with pytest.raises(OSError, match="does not tell of stores"):
        lent.check_disk(layout)
    monkeypatch.setattr(lent, "nobody_else_has", lambda fd: True)
    with pytest.raises(OSError, match="who has a file open"):
        lent.check_disk(layout)
    layout.close()


async def test_find_answers_nothing_of_what_is_lent(rig: Rig) -> None:
    """An inode that is lent stays in core, though the kernel has forgotten it."""
    made = await rig.write_file(b"f", DATA)
    reader = await program(rig, made.inode_id)
    await reader.leave()
    await rig.fs.forget([(made.inode_id, 100)])
    assert lent_files(rig) == 1
    os.close(reader.fd)
    assert (await find(rig, b"f")).size_bytes == len(DATA)
    assert await rig.read_file(b"f") == DATA
    assert lent_files(rig) == 0


async def test_cut_by_its_path_while_its_last_name_goes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can reach the bytes any more, and no handle is left whose release would let go of them."""
    made = await rig.write_file(b"f", DATA)
    create = rig.tier.staging.create

    async with trio.open_nursery() as nursery:

        async def create_meanwhile(*args: Any) -> StagedFile:
            nursery.start_soon(rig.fs.unlink, ROOT, b"f")
            await wait_all_tasks_blocked()
            return await create(*args)

        monkeypatch.setattr(rig.tier.staging, "create", create_meanwhile)
        await resize(rig, made.inode_id, 10)
    assert rig.tier.staging.file_count == 0
    assert rig.fs.status().dirty_files == 0


async def test_cut_by_its_path_when_its_last_name_is_gone(rig: Rig) -> None:
    """The kernel had looked the path up before."""
    made = await rig.write_file(b"f", DATA)
    await resize(rig, made.inode_id, 10)
    await rig.fs.unlink(ROOT, b"f")
    await resize(rig, made.inode_id, 20)
    await resize(rig, made.inode_id, 5)
    assert rig.tier.staging.file_count == 0
    assert rig.fs.status().dirty_files == 0
