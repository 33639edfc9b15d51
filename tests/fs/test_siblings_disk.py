"""Files of the cache that the disk is asked for before they are read."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from s3blobfs.config import ReadOptions
from s3blobfs.fs.siblings import FIRST_WINDOW, IN_ORDER, NEAR
from s3blobfs.trace import Count
from tests.fs.calls import find
from tests.fs.test_siblings import FILES, content, name, setup, write
from tests.support.rig import Rig, Setup, open_rig

__all__ = ["setup"]


class PageCache:
    """Stands for the operating system's: what a disk has to be waited for is decided here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusal = errno.EAGAIN
        """Of a read that must not wait."""
        self.asked: list[int] = []
        """Inodes, in order."""
        self.has_everything = False
        self._in_memory: set[int] = set()
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self._read)
        monkeypatch.setattr(os, "posix_fadvise", self._advise)

    def drop(self) -> None:
        self._in_memory.clear()
        self.asked.clear()

    def _read(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        inode = os.fstat(fd).st_ino
        if flags & os.RWF_NOWAIT and not self.has_everything and inode not in self._in_memory:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self._in_memory.add(inode)
        # The real one may refuse what it has, while pages are written back.
        return self._preadv(fd, buffers, offset, flags & ~os.RWF_NOWAIT)

    def _advise(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        inode = os.fstat(fd).st_ino
        self._in_memory.add(inode)
        self.asked.append(inode)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> PageCache:
    return PageCache(monkeypatch)


@asynccontextmanager
async def cached(setup: Setup, pages: PageCache, **changes: object) -> AsyncIterator[tuple[Rig, int]]:
    """A new mount with a directory of files, all in the cache and none in memory."""
    async with open_rig(setup) as rig:
        await write(rig)
    pages.drop()
    async with open_rig(replace(setup, **changes)) as rig:  # type: ignore[arg-type]
        yield rig, (await find(rig, b"d")).inode_id
        assert rig.tracer.counts[Count.S3_GET] == 0


async def read(rig: Rig, pages: PageCache, directory: int, numbers: Sequence[int]) -> None:
    """The disk has time to do what it is asked for."""
    for number in numbers:
        assert await rig.read_file(name(number), directory) == content(number)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            while len(pages.asked) < rig.tracer.counts[Count.AHEAD_FROM_DISK]:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_a_directory_read_in_order_waits_for_the_disk_at_the_beginning_only(
    setup: Setup, pages: PageCache
) -> None:
    async with cached(setup, pages) as (rig, directory):
        await read(rig, pages, directory, range(FILES))
        waits = rig.tier.cache.disk_waits
        assert waits <= IN_ORDER + 2
        assert len(pages.asked) == len(set(pages.asked)) == FILES - waits
        await read(rig, pages, directory, range(FILES))
        assert rig.tier.cache.disk_waits == waits


async def test_more_is_asked_for_the_longer_it_goes_on_and_no_more_than_prefetched(
    setup: Setup, pages: PageCache
) -> None:
    limit = 2 * FIRST_WINDOW
    async with cached(setup, pages, read=ReadOptions(siblings=limit)) as (rig, directory):
        ahead = []
        for number in range(FILES // 2):
            await read(rig, pages, directory, [number])
            ahead.append(len(pages.asked) + rig.tier.cache.disk_waits - number - 1)
        assert max(ahead[: FIRST_WINDOW + IN_ORDER]) == FIRST_WINDOW
        assert max(ahead) == limit


async def test_the_disk_is_not_asked_for_what_is_in_memory(setup: Setup, pages: PageCache) -> None:
    async with cached(setup, pages) as (rig, directory):
        pages.has_everything = True
        await read(rig, pages, directory, range(FILES))
        assert pages.asked == []


async def test_nor_for_what_is_read_here_and_there(setup: Setup, pages: PageCache) -> None:
    async with cached(setup, pages) as (rig, directory):
        numbers = range(0, FILES, NEAR + 1)
        await read(rig, pages, directory, numbers)
        assert pages.asked == []
        assert rig.tier.cache.disk_waits == len(numbers)


async def test_nor_where_the_filesystem_does_not_tell(setup: Setup, pages: PageCache) -> None:
    pages.refusal = errno.EOPNOTSUPP
    async with cached(setup, pages) as (rig, directory):
        await read(rig, pages, directory, range(FILES))
        assert pages.asked == []
        assert rig.tier.cache.disk_waits == 0


async def test_nor_when_it_is_turned_off(setup: Setup, pages: PageCache) -> None:
    async with cached(setup, pages, read=ReadOptions(siblings=0)) as (rig, directory):
        await read(rig, pages, directory, range(20))
        assert pages.asked == []


async def test_what_cannot_be_opened_is_for_its_reader_to_find_out(
    setup: Setup, pages: PageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def fails(fd: int, size_bytes: int) -> None:
        failed.append(fd)
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr("s3blobfs.tier.entryfiles.ask_for", fails)
    async with cached(setup, pages) as (rig, directory):
        for number in range(FILES):
            assert await rig.read_file(name(number), directory) == content(number)
        assert rig.tier.cache.disk_waits == FILES
    assert failed
