"""Whatever happens in whatever order, every upload ends by itself: nobody has to wait for it."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from s3blobfs.errors import S3BlobFSError, TransientS3Error
from s3blobfs.index.inodes import InodeRow
from s3blobfs.s3.each import Requests, make_one_by_one
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultyObjectClient
from s3blobfs.types import Keying
from s3blobfs.writeback import together
from s3blobfs.writeback.jobs import Limits
from s3blobfs.writeback.together import SHARING_MAX_BYTES
from tests.writeback.bench import Sealed, Volume, mounted

FILES = 10
STEPS = 80
TO_END_S = 120.0
"""Some repetitions, one after the other."""


class Weather:
    """Requests that take their time, and fail now and then."""

    def __init__(self, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self._chance = chance
        self._put = FaultyObjectClient.put
        monkeypatch.setattr(FaultyObjectClient, "put", lambda *args, **named: self.put(*args, **named))
        monkeypatch.setattr(FaultyObjectClient, "make_each", lambda *args: self.make_each(*args))

    async def put(self, client: FaultyObjectClient, *arguments: Any, **named: Any) -> Any:
        await trio.sleep(self._chance.choice([0.0, 0.001, 0.01, 0.2]))
        if self._chance.random() < 0.05:
            raise TransientS3Error("503")
        return await self._put(client, *arguments, **named)

    async def make_each(self, client: FaultyObjectClient, requests: Requests[None]) -> None:
        """At times no thread becomes free for those that are left, or to repeat one."""
        with contextlib.closing(requests):
            await self._find_thread()
            for request in requests:

                def this_one() -> Requests[None]:
                    yield request  # noqa: B023

                await self._find_thread()
                await make_one_by_one(client, this_one())

    async def _find_thread(self) -> None:
        await trio.sleep(self._chance.choice([*[0.0] * 6, 0.001, 0.005, 0.01]))
        if self._chance.random() < 0.02:
            raise TransientS3Error("no thread in time")


class Traffic:
    """Files that are written, written again and removed, alone and in bursts."""

    def __init__(self, volume: Volume, chance: random.Random) -> None:
        self._volume = volume
        self._chance = chance
        self._names = itertools.count()
        self._files: list[InodeRow] = []
        self.newest: dict[int, tuple[InodeRow, bytes]] = {}
        """By inode, what it has in the end."""
        self.sealed: list[Sealed] = []

    async def run(self) -> None:
        for _ in range(STEPS):
            await self._chance.choices([self._write, self._burst, self._remove, self._pause], [8, 2, 2, 4])[
                0
            ]()

    async def _write(self) -> None:
        if len(self._files) < FILES or self._chance.random() < 0.3:
            self._files.append(await self._volume.make_file(f"f{next(self._names)}"))
        file = self._chance.choice(self._files)
        size_bytes = self._chance.choice([10, 1000, SHARING_MAX_BYTES + 1])
        content = b"%d " % len(self.sealed) * (size_bytes // 4)
        self.sealed.append(await self._volume.seal(file, content))
        self.newest[file.id] = file, content

    async def _burst(self) -> None:
        for _ in range(self._chance.choice([20, 70])):
            await self._write()

    async def _remove(self) -> None:
        if self._files:
            file = self._files.pop(self._chance.randrange(len(self._files)))
            self.newest.pop(file.id, None)
            await self._volume.unlink(file)

    async def rest(self) -> None:
        """Until nothing is left to do, with nobody there who could set anything going."""
        with trio.fail_after(TO_END_S):
            async with trio.open_nursery() as nursery:
                for each in self.sealed:
                    nursery.start_soon(_ended, each)

    async def _pause(self) -> None:
        await trio.sleep(self._chance.choice([0.001, 0.019, 0.02, 0.021, 0.1, 3]))


@pytest.mark.expected_log("failed and is tried again")
@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("keying", Keying, ids=lambda keying: keying.value)
@pytest.mark.parametrize("seed", range(4))
async def test_every_upload_ends(
    clock: MockClock,
    tmp_path: Path,
    server: FakeS3,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    keying: Keying,
    patient: bool,
) -> None:
    chance = random.Random(f"{seed}, {keying}, {patient}")
    watch = itertools.count()
    monkeypatch.setattr(together, "time", SimpleNamespace(perf_counter=lambda: next(watch) / 1000))
    async with mounted(tmp_path, server, keying=keying, cached=chance.random() < 0.5) as volume:
        volume.uploader = volume.make_uploader(Limits(patient=patient))
        await volume.start()
        traffic = Traffic(volume, chance)
        with monkeypatch.context() as patching:
            Weather(chance, patching)
            await traffic.run()
            await traffic.rest()
        assert volume.uploader.pending().files == 0
        for file, content in traffic.newest.values():
            assert await volume.content(file) == content
        await volume.uploader.barrier()
        assert await volume.journal_rows() == []
        assert await volume.problems() == []


async def _ended(sealed: Sealed) -> None:
    while not sealed.ticket.done:
        with contextlib.suppress(S3BlobFSError):
            await sealed.ticket.wait()
