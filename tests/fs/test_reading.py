"""Reading what is in S3: objects that are missing, cut or altered, every size, and what is left on disk."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3blobfs.config import ReadOptions
from s3blobfs.errors import DamagedContent, ObjectNotFound, PreconditionFailed, TransientS3Error
from s3blobfs.s3.fake import FakeVersion
from s3blobfs.types import CHECKSUM_BLOCK_BYTES, Keying
from tests.conftest import AllowLogs
from tests.fs.calls import calm, find, opened_file, pattern, refused, xattr
from tests.support.rig import BUCKET, ROOT, USER, Rig, Setup, open_rig

WINDOW = 2 * CHECKSUM_BLOCK_BYTES
SMALL = 3 * CHECKSUM_BLOCK_BYTES
READ = ReadOptions(
    small_file_bytes=SMALL, window_bytes=WINDOW, parallel_windows=3, memory_limit_bytes=8 * WINDOW
)
SMALL_SIZE, LARGE_SIZE = 1000, 5 * WINDOW + 17


@pytest.fixture(
    params=[(keying, cached) for keying in Keying for cached in (True, False)],
    ids=lambda param: f"{param[0].value}-{'cached' if param[1] else 'uncached'}",
)
async def cold(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """With windows small enough that a test's files have several of them."""
    keying, cached = request.param
    async with open_rig(Setup(tmp_path / "volume", keying=keying, cached=cached, read=READ)) as rig:
        yield rig


async def evict(rig: Rig, name: bytes) -> str:
    """Take a file's content out of the cache; answers its object's key."""
    inode_id = (await find(rig, name)).inode_id
    key = await xattr(rig, inode_id, "key")
    versioned = rig.setup.keying is Keying.VERSIONED
    cache_name = f"{key}@{await xattr(rig, inode_id, 'version_id')}" if versioned else key
    rig.tier.cache.remove(1, cache_name)
    return key


def tamper(rig: Rig, key: str, change: Callable[[FakeVersion], FakeVersion]) -> None:
    """Change an object behind the filesystem's back."""
    history = rig.setup.server.bucket(BUCKET).versions[key]
    history[-1] = change(history[-1])


def with_data(version: FakeVersion, data: bytes, etag: str | None = None) -> FakeVersion:
    """Other bytes; under the ETag of the true ones, where a server's disk went bad."""
    info = replace(version.info, size_bytes=len(data), etag=etag or version.info.etag)
    return replace(version, data=data, info=info)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[FakeVersion], FakeVersion]] = {
    "first byte": lambda v: with_data(v, flipped(v.data, 0)),
    "last byte": lambda v: with_data(v, flipped(v.data, len(v.data) - 1)),
    "cut by one": lambda v: with_data(v, v.data[:-1]),
    "cut to nothing": lambda v: with_data(v, b""),
    "longer": lambda v: with_data(v, v.data + b"!"),
    "replaced": lambda v: with_data(v, flipped(v.data, 5), etag="another"),
    "a delete marker": lambda v: replace(v, is_delete_marker=True, data=b""),
}


async def read_whole(rig: Rig, handle: int, size: int, step: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await rig.fs.read(handle, len(data), step)
        assert piece, "a read before the end of the file answered nothing"
        data += piece
    return data


@pytest.mark.parametrize("size", [SMALL_SIZE, LARGE_SIZE], ids=["small", "large"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_an_altered_object_is_an_error(
    cold: Rig, allow_logs: AllowLogs, caplog: pytest.LogCaptureFixture, damage: str, size: int
) -> None:
    allow_logs(r"reading b'dir/the file'")
    directory = (await cold.fs.mkdir(ROOT, b"dir", 0o755, USER)).inode_id
    data = pattern(size)
    made = await cold.write_file(b"the file", data, directory)
    await cold.fs.rename(directory, b"the file", ROOT, b"the file")
    key = await evict(cold, b"the file")
    await cold.fs.rename(ROOT, b"the file", directory, b"the file")
    tamper(cold, key, DAMAGES[damage])
    async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
        failures = 0
        for offset in range(0, size, CHECKSUM_BLOCK_BYTES // 2):
            try:
                got = await cold.fs.read(handle, offset, CHECKSUM_BLOCK_BYTES // 2)
            except (DamagedContent, ObjectNotFound, PreconditionFailed):
                failures += 1
            else:
                # Where only a part is bad, the others may be read: but never other bytes than were written.
                assert got == data[offset : offset + CHECKSUM_BLOCK_BYTES // 2]
        assert failures or damage == "longer"
    if failures:
        records = [record for record in caplog.records if record.levelname == "ERROR"]
        assert any("dir/the file" in record.getMessage() for record in records)
        assert any(key in record.getMessage() for record in records)


@pytest.mark.expected_log("reading")
@pytest.mark.parametrize("size", [SMALL_SIZE, LARGE_SIZE], ids=["small", "large"])
async def test_a_missing_object_is_eio(cold: Rig, size: int, caplog: pytest.LogCaptureFixture) -> None:
    await cold.write_file(b"f", pattern(size))
    key = await evict(cold, b"f")
    kept = cold.setup.server.bucket(BUCKET).versions.pop(key)
    with refused(errno.EIO):
        await cold.read_file(b"f")
    (record, *_) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "b'f'" in record.getMessage()
    assert key in record.getMessage()
    cold.setup.server.bucket(BUCKET).versions[key] = kept
    assert await cold.read_file(b"f") == pattern(size)  # nothing wrong is remembered


@pytest.mark.parametrize("size", [SMALL_SIZE, LARGE_SIZE], ids=["small", "large"])
async def test_an_unreachable_server_is_eio_and_passes(cold: Rig, size: int) -> None:
    await cold.write_file(b"f", pattern(size))
    await evict(cold, b"f")
    cold.faults.on("get").raises(TransientS3Error("no answer"))
    with refused(errno.EIO):
        await cold.read_file(b"f")
    calm(cold)
    assert await cold.read_file(b"f") == pattern(size)


@pytest.mark.expected_log("reading")
async def test_a_damaged_answer_is_not_kept(cold: Rig) -> None:
    await cold.write_file(b"f", pattern(LARGE_SIZE))
    await evict(cold, b"f")
    cold.faults.on("get", nth=2).flips_byte(100)
    made = await find(cold, b"f")
    async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
        try:
            assert await read_whole(cold, handle, LARGE_SIZE, 65_536) == pattern(LARGE_SIZE)
        except DamagedContent:
            assert await read_whole(cold, handle, LARGE_SIZE, 65_536) == pattern(LARGE_SIZE)
    assert await cold.read_file(b"f") == pattern(LARGE_SIZE)


@pytest.mark.expected_log("reading")
async def test_a_write_over_a_damaged_content_is_refused(cold: Rig) -> None:
    """Staging it would make the damage the file's new content."""
    made = await cold.write_file(b"f", pattern(LARGE_SIZE))
    key = await evict(cold, b"f")
    tamper(cold, key, DAMAGES["last byte"])
    async with opened_file(cold, made.inode_id) as handle:
        with refused(errno.EIO):
            await cold.fs.write(handle, 0, b"x")
        assert (await cold.fs.getattr(made.inode_id)).size_bytes == LARGE_SIZE
    assert await xattr(cold, made.inode_id, "state") == "stored"
    await cold.write_file(b"f", b"new")  # emptied first: nothing of the old is needed
    assert await cold.read_file(b"f") == b"new"


SIZES = sorted(
    {0, 1}
    | {
        edge + by
        for edge in (CHECKSUM_BLOCK_BYTES, SMALL, WINDOW, 2 * WINDOW, 4 * WINDOW)
        for by in (-1, 0, 1)
    }
)


async def test_every_size_around_every_edge(cold: Rig) -> None:
    for size in SIZES:
        data = pattern(size, seed=size % 251 + 1)
        made = await cold.write_file(b"f%d" % size, data)
        if size:
            await evict(cold, b"f%d" % size)
        async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
            assert await read_whole(cold, handle, size, 100_003) == data, size
            assert await cold.fs.read(handle, size, 1) == b""
            assert await cold.fs.read(handle, max(0, size - 1), 10) == data[-1:]
        assert await cold.read_file(b"f%d" % size) == data


async def test_random_reads(cold: Rig) -> None:
    data = pattern(LARGE_SIZE)
    made = await cold.write_file(b"f", data)
    await evict(cold, b"f")
    chance = random.Random(7)
    async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
        for _ in range(60):
            offset, size = chance.randrange(LARGE_SIZE), chance.choice([1, 100, 4096, WINDOW, 3 * WINDOW])
            assert await cold.fs.read(handle, offset, size) == data[offset : offset + size]


async def test_backwards(cold: Rig) -> None:
    data = pattern(LARGE_SIZE)
    made = await cold.write_file(b"f", data)
    await evict(cold, b"f")
    async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
        for offset in range(LARGE_SIZE - 1, -1, -130_000):
            assert await cold.fs.read(handle, offset, 50_000) == data[offset : offset + 50_000]


async def test_many_readers_at_once(cold: Rig) -> None:
    data = pattern(LARGE_SIZE)
    made = await cold.write_file(b"f", data)
    await evict(cold, b"f")
    seen = []

    async def reader(step: int) -> None:
        async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:
            seen.append(await read_whole(cold, handle, LARGE_SIZE, step) == data)

    async with trio.open_nursery() as nursery:
        for step in (10_007, 65_536, 131_072, WINDOW, LARGE_SIZE):
            nursery.start_soon(reader, step)
    assert seen == [True] * 5


async def test_parallel_reads_of_one_handle(cold: Rig) -> None:
    data = pattern(LARGE_SIZE)
    made = await cold.write_file(b"f", data)
    await evict(cold, b"f")
    pieces: dict[int, bytes] = {}
    async with opened_file(cold, made.inode_id, os.O_RDONLY) as handle:

        async def read(offset: int) -> None:
            pieces[offset] = bytes(await cold.fs.read(handle, offset, 131_072))

        async with trio.open_nursery() as nursery:
            for offset in range(0, LARGE_SIZE, 131_072):
                nursery.start_soon(read, offset)
    assert b"".join(pieces[offset] for offset in sorted(pieces)) == data


def contents_in(tier: Path) -> dict[str, int]:
    """Files of the tier that hold contents, with their sizes; its own notes lie beside their directories."""
    return {
        str(path.relative_to(tier)): path.stat().st_size
        for path in tier.glob("*/**/*")
        if path.is_file() and path.stat().st_size
    }


async def test_an_uncached_store_leaves_nothing_on_disk(tmp_path: Path) -> None:
    for keying in Keying:
        setup = Setup(tmp_path / keying.value, keying=keying, cached=False, read=READ)
        async with open_rig(setup) as rig:
            for name, size in ((b"small", SMALL_SIZE), (b"large", LARGE_SIZE)):
                made = await rig.write_file(name, pattern(size))
                assert contents_in(setup.directory / "tier") == {}
                async with opened_file(rig, made.inode_id, os.O_RDONLY) as handle:
                    assert await read_whole(rig, handle, size, 131_072) == pattern(size)
                    assert contents_in(setup.directory / "tier") == {}
            await rig.fs.unlink(ROOT, b"small")
        assert contents_in(setup.directory / "tier") == {}


async def test_a_cached_store_reads_once(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", read=READ)
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", pattern(LARGE_SIZE))
        key = await evict(rig, b"f")
        assert contents_in(setup.directory / "tier") == {}
        assert await rig.read_file(b"f") == pattern(LARGE_SIZE)
        assert list(contents_in(setup.directory / "tier").values()) == [LARGE_SIZE]
        setup.server.bucket(BUCKET).versions.pop(key)
        assert await rig.read_file(b"f") == pattern(LARGE_SIZE)


@pytest.mark.expected_log("was altered; dropped")
async def test_an_altered_cache_file_is_not_believed(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "volume", read=READ)
    data = pattern(LARGE_SIZE)
    async with open_rig(setup) as rig:
        await rig.write_file(b"f", data)
    (path,) = [path for path in (setup.directory / "tier").rglob("*") if path.stat().st_size == LARGE_SIZE]
    path.chmod(0o600)
    path.write_bytes(flipped(data, 12_345))
    async with open_rig(setup) as rig:
        assert await rig.read_file(b"f") == data
