"""Files that change again before they are in S3: what is appended costs no copy, nothing is lost or mixed."""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3blobfs.config import GIB, KIB, MIB
from s3blobfs.errors import TransientS3Error
from s3blobfs.s3.fake import FakeS3
from s3blobfs.tier import copying
from s3blobfs.tier.digest import ContentHasher
from s3blobfs.trace import Count
from s3blobfs.types import Durability, Keying
from tests.fs.calls import calm, pattern, resize, versions, xattr
from tests.support.killed import copy_as_left
from tests.support.rig import BUCKET, ROOT, Rig, Setup, open_rig

LINE = b"another line of the log\n"
KINDS = [(keying, cached) for keying in Keying for cached in (True, False)]


def disk_setup(directory: Path, keying: Keying = Keying.DIGEST, cached: bool = True) -> Setup:
    return Setup(directory, keying=keying, cached=cached, cache_bytes=GIB, durability=Durability.DISK)


async def append(rig: Rig, inode_id: int, data: bytes = LINE) -> None:
    opened = await rig.fs.open(inode_id, os.O_WRONLY | os.O_APPEND)
    await rig.fs.write(opened.handle, (await rig.fs.getattr(inode_id)).size_bytes, data)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


async def change(rig: Rig, inode_id: int, offset: int, data: bytes) -> None:
    opened = await rig.fs.open(inode_id, os.O_WRONLY)
    await rig.fs.write(opened.handle, offset, data)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


def newest(rig: Rig) -> bytes:
    bucket = rig.setup.server.bucket(BUCKET)
    versions = (version for history in bucket.versions.values() for version in history)
    return max(versions, key=lambda version: version.sequence).data


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that were copied from one local file into another."""
    lengths: list[int] = []
    copy_slice = copying._copy_slice

    def counted(source: int, target: int, offset: int, length: int) -> None:
        lengths.append(length)
        copy_slice(source, target, offset, length)

    monkeypatch.setattr(copying, "_copy_slice", counted)
    return lengths


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes given to hashers."""
    lengths: list[int] = []
    update = ContentHasher.update

    def counted(hasher: ContentHasher, data: memoryview) -> None:
        lengths.append(len(data))
        update(hasher, data)

    monkeypatch.setattr(ContentHasher, "update", counted)
    return lengths


@pytest.mark.parametrize(("keying", "cached"), KINDS)
async def test_appends_during_an_upload_cost_what_is_appended(
    tmp_path: Path, keying: Keying, cached: bool, copied: list[int], hashed: list[int]
) -> None:
    setup = disk_setup(tmp_path / "volume", keying, cached)
    content = pattern(40 * MIB, 1)
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put", nth=1).stalls()
        made = await rig.write_file(b"log", content)
        await stall.arrived.wait()
        hashed.clear()
        rig.tracer.counts.clear()
        for number in range(50):
            await append(rig, made.inode_id)
            content += LINE
            pending = rig.fs.uploader.pending()
            assert (pending.files, pending.in_flight) == (2, 1)
            assert pending.bytes == 40 * MIB + len(content)  # each content that is to be uploaded
            assert rig.tier.space.staged_bytes == len(content)  # what is on the disk
            assert len(rig.tier.staging.names()) == 2
            assert rig.tracer.counts[Count.INDEX_WRITE] == number + 1
        assert copied == []
        assert sum(hashed) == 50 * len(LINE)
        assert await xattr(rig, made.inode_id, "state") == "uploading"
        assert await rig.read_file(b"log") == content
        stall.release()
        await rig.fs.sync(None, None)
        assert newest(rig) == content
        assert rig.tracer.counts[Count.S3_GET] <= 1  # the probe whether ranges are copied
        assert await xattr(rig, made.inode_id, "state") != "uploading"
        assert rig.tier.staging.names() == set()
        assert rig.tier.space.staged_bytes == 0
        assert rig.tier.space.cached_bytes == (len(content) if cached else 0)
        rig.tracer.counts.clear()
        assert await rig.read_file(b"log") == content
        assert (rig.tracer.counts[Count.S3_GET] == 0) is cached


@pytest.mark.parametrize("keying", Keying)
async def test_s3_copies_what_it_has_though_contents_between_were_never_sent(
    tmp_path: Path, keying: Keying
) -> None:
    setup = disk_setup(tmp_path / "volume", keying)
    content = pattern(64 * MIB, 2)
    async with open_rig(setup) as rig:
        made = await rig.write_file(b"log", content)
        await rig.fs.sync(None, None)
        stall = rig.faults.on("put", key="*", nth=1).stalls()
        for _ in range(10):
            await append(rig, made.inode_id)
            content += LINE
        await stall.arrived.wait()
        for _ in range(10):
            await append(rig, made.inode_id)
            content += LINE
        received = setup.server.received_bytes
        stall.release()
        await rig.fs.sync(None, None)
        assert newest(rig) == content
        assert setup.server.received_bytes - received < MIB


async def test_what_is_appended_to_all_the_time_gets_to_s3(tmp_path: Path) -> None:
    """What is under way is left alone, and what waits has the place in the queue of what it superseded."""
    setup = disk_setup(tmp_path / "volume", Keying.VERSIONED)
    async with open_rig(setup) as rig:
        made = await rig.write_file(b"log", b"begin\n")
        for _ in range(20):
            sequences = setup.server._changes
            stored = False
            for _ in range(1000):
                await append(rig, made.inode_id)
                await trio.lowlevel.checkpoint()
                stored = setup.server._changes > sequences
                if stored:
                    break
            assert stored


async def test_a_change_of_what_is_being_uploaded(tmp_path: Path, copied: list[int]) -> None:
    setup = disk_setup(tmp_path / "volume", Keying.VERSIONED)
    content = bytearray(pattern(33 * MIB, 3))
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put", nth=1).stalls()
        made = await rig.write_file(b"file", bytes(content))
        await stall.arrived.wait()
        before = bytes(content)
        await append(rig, made.inode_id)
        content += LINE
        assert copied == []
        await change(rig, made.inode_id, 5, b"changed")
        content[5:12] = b"changed"
        assert sum(copied) == len(content)
        assert await rig.read_file(b"file") == content
        stall.release()
        await rig.fs.sync(None, None)
        (key,) = rig.object_keys()
        assert versions(rig, key) == [before, content]
        assert await rig.read_file(b"file") == content


async def test_appended_and_changed_between_open_and_close(tmp_path: Path, copied: list[int]) -> None:
    """As a program does that writes at the end and then updates a header."""
    setup = disk_setup(tmp_path / "volume", Keying.DIGEST)
    content = bytearray(pattern(33 * MIB, 4))
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put", nth=1).stalls()
        made = await rig.write_file(b"file", bytes(content))
        await stall.arrived.wait()
        opened = await rig.fs.open(made.inode_id, os.O_RDWR)
        await rig.fs.write(opened.handle, len(content), LINE)
        content += LINE
        await rig.fs.fsync(opened.handle)
        assert copied == []
        await rig.fs.write(opened.handle, 0, b"header")
        content[:6] = b"header"
        assert sum(copied) == len(content)
        await rig.fs.write(opened.handle, len(content), LINE)
        content += LINE
        await rig.fs.write(opened.handle, 100, b"again")
        content[100:105] = b"again"
        assert await rig.fs.read(opened.handle, 0, 200) == content[:200]
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        stall.release()
        await rig.fs.sync(None, None)
        assert await rig.read_file(b"file") == content
        assert newest(rig) == content
        assert sum(copied) == 33 * MIB + len(LINE)


async def test_two_writers_when_close_waits_for_s3(tmp_path: Path, copied: list[int]) -> None:
    """An append during the upload that another close waits for."""
    setup = replace(disk_setup(tmp_path / "volume", Keying.VERSIONED), durability=Durability.S3)
    content = pattern(33 * MIB, 5)
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put", nth=1).stalls()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.write_file, b"file", content)
            await stall.arrived.wait()
            found = await rig.fs.lookup(ROOT, b"file")
            assert found is not None
            nursery.start_soon(append, rig, found.inode_id)
            while rig.fs.uploader.pending().files < 2:  # noqa: ASYNC110 - what waits, not an event
                await trio.sleep(0.001)
            stall.release()
        assert newest(rig) == content + LINE
        assert copied == []
        assert rig.tier.staging.names() == set()


@pytest.mark.expected_log("is tried again")
async def test_an_upload_that_fails_gives_way_to_what_was_appended(tmp_path: Path) -> None:
    setup = disk_setup(tmp_path / "volume", Keying.VERSIONED)
    content = pattern(300 * KIB, 6)
    async with open_rig(setup) as rig:
        fault = rig.faults.on("put").raises(TransientS3Error("503"))
        made = await rig.write_file(b"file", content)
        while not fault.hits:  # noqa: ASYNC110
            await trio.sleep(0.001)
        for _ in range(5):
            await append(rig, made.inode_id)
            content += LINE
        fault.delays(0)
        await rig.fs.sync(None, None)
        assert newest(rig) == content
        assert rig.tier.staging.names() == set()


async def test_who_appends_does_not_make_the_kernel_drop_its_pages(tmp_path: Path) -> None:
    """Who reads next does, if the bytes are others than when somebody last opened the file to read it."""

    async def keeps_pages(rig: Rig, inode_id: int, flags: int) -> bool:
        opened = await rig.fs.open(inode_id, flags)
        await rig.fs.flush(opened.handle)
        await rig.fs.release(opened.handle)
        return opened.keep_cache

    async with open_rig(disk_setup(tmp_path / "volume")) as rig:
        made = await rig.write_file(b"log", b"begin\n")
        assert await keeps_pages(rig, made.inode_id, os.O_WRONLY | os.O_APPEND)
        assert not await keeps_pages(rig, made.inode_id, os.O_RDONLY)
        assert await keeps_pages(rig, made.inode_id, os.O_RDWR)
        await append(rig, made.inode_id)
        assert await keeps_pages(rig, made.inode_id, os.O_WRONLY)
        assert not await keeps_pages(rig, made.inode_id, os.O_RDWR)
        assert await keeps_pages(rig, made.inode_id, os.O_RDONLY)


# --- a mount that is killed ---------------------------------------------------------------------------

Step = tuple[Literal["append", "change", "truncate", "close", "fsync", "upload", "look"], int, int]

_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "append", "change", "truncate", "close", "close", "fsync", "upload", "look"]
        ),
        st.integers(0, 40_000),
        st.integers(1, 9_000),
    ),
    min_size=3,
    max_size=14,
)
_numbers = itertools.count()


class _Subject:
    """One file, and what may be found of it by the mount after one that is killed now."""

    def __init__(self, rig: Rig, inode_id: int, content: bytes) -> None:
        self.rig = rig
        self.inode_id = inode_id
        self.model = bytearray(content)
        self.allowed = [content]
        """What was acknowledged last, and everything since."""
        self.handle: int | None = None

    async def opened(self) -> int:
        if self.handle is None:
            self.handle = (await self.rig.fs.open(self.inode_id, os.O_RDWR)).handle
        return self.handle

    async def write(self, offset: int, data: bytes) -> None:
        handle = await self.opened()
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data
        await self.rig.fs.write(handle, offset, data)
        self.allowed.append(bytes(self.model))

    async def truncate(self, size: int) -> None:
        await self.opened()
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        await resize(self.rig, self.inode_id, size)
        self.allowed.append(bytes(self.model))

    async def close(self) -> None:
        if self.handle is not None:
            await self.rig.fs.flush(self.handle)
            await self.rig.fs.release(self.handle)
            self.handle = None
            self.allowed = [bytes(self.model)]

    async def fsync(self) -> None:
        await self.rig.fs.fsync(await self.opened())
        self.allowed = [bytes(self.model)]


async def _look(subject: _Subject) -> None:
    """Kill it, and look."""
    setup = subject.rig.setup
    target = setup.directory.with_name(f"killed-{next(_numbers)}")
    copy_as_left(setup.directory, target)
    server = FakeS3(setup.server.options)
    server.buckets = copy.deepcopy(setup.server.buckets)
    server._changes = setup.server._changes
    async with open_rig(replace(setup, directory=target, server=server)) as rig:
        assert await rig.read_file(b"file") in subject.allowed
        found = await rig.fs.lookup(ROOT, b"file")
        assert found is not None
        await append(rig, found.inode_id, b"after the crash")
        await rig.fs.sync(None, None)
        content = await rig.read_file(b"file")
        assert content.removesuffix(b"after the crash") in subject.allowed
        if content:
            assert newest(rig) == content
        assert rig.tier.staging.names() == set()
        assert rig.tier.space.staged_bytes == 0


async def _run(directory: Path, keying: Keying, cached: bool, steps: list[Step]) -> None:
    setup = disk_setup(directory / "volume", keying, cached)
    async with open_rig(setup) as rig:
        stall = rig.faults.on("put").stalls()
        content = pattern(30_000, 7)
        made = await rig.write_file(b"file", content)
        subject = _Subject(rig, made.inode_id, content)
        for number, (what, position, length) in enumerate(steps):
            data = pattern(length, number + 10)
            if what == "append":
                await subject.write(len(subject.model), data)
            elif what == "change":
                await subject.write(position, data)
            elif what == "truncate":
                await subject.truncate(position)
            elif what == "close":
                await subject.close()
            elif what == "fsync":
                await subject.fsync()
            elif what == "upload":
                stall.release()
                calm(rig)
                await trio.testing.wait_all_tasks_blocked(0.002)
                stall = rig.faults.on("put").stalls()
            else:
                await _look(subject)
        await _look(subject)
        await subject.close()
        stall.release()
        await rig.fs.sync(None, None)
        assert await rig.read_file(b"file") == subject.model


@settings(deadline=None, max_examples=40)
@given(steps=_STEPS, kind=st.sampled_from(KINDS))
def test_killed_at_any_time(steps: list[Step], kind: tuple[Keying, bool]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(partial(_run, Path(directory), *kind, steps))
