"""Any sequence of writes and truncates gives the bytes, length and digests of a bytearray."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3blobfs.config import KIB, MIB, TierOptions
from s3blobfs.tier import digest
from s3blobfs.tier.digest import content_digests, file_digests
from s3blobfs.tier.staging import StagedFile
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Local, Tracer
from tests.tier.kit import BLOCK, SMALL_READS, random_bytes

Step = tuple[Literal["write", "append", "truncate", "zero", "read", "copy", "extend", "stored"], int, int]

_POSITIONS = st.one_of(
    st.integers(0, 1200 * KIB), st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 4 * BLOCK])
)
_LENGTHS = st.one_of(st.integers(1, 400 * KIB), st.sampled_from([1, 4096, BLOCK, BLOCK + 1]))
_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", *["append"] * 3, "truncate", "zero", "read", "copy", *["extend"] * 3, "stored"]
        ),
        _POSITIONS,
        _LENGTHS,
    ),
    max_size=25,
)


@pytest.fixture(autouse=True, scope="module")
def eager_follower() -> object:
    """Followers start after 300 KiB, so that short files have them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "BACKLOG_BYTES", 300 * KIB)
        yield


async def _run(directory: Path, steps: list[Step], cached: bool) -> None:
    tier = Tier(TierOptions(directory, size_limit_bytes=64 * MIB, min_free_bytes=0), SMALL_READS, Tracer())
    staged = await tier.staging.create(Local.of(cached))
    model = bytearray()
    waiting: list[tuple[StagedFile, bytes]] = []
    """Sealed contents, whose bytes must not change."""
    for number, (what, position, length) in enumerate(steps):
        if what in ("write", "append"):
            if what == "append":
                position = len(model)
            data = random_bytes(length, seed=number)
            await staged.write(position, data)
            model.extend(bytes(max(0, position - len(model))))
            model[position : position + length] = data
        elif what == "truncate":
            await staged.truncate(position)
            del model[position:]
            model.extend(bytes(position - len(model)))
        elif what == "zero":
            end = min(position + length, len(model))
            if position < end:
                await staged.zero(position, end, keep_room=False)
                model[position:end] = bytes(end - position)
        elif what == "stored":
            if waiting:
                await waiting.pop(0)[0].discard()
        elif what == "read":
            assert await staged.read(position, length) == model[position : position + length]
        else:
            await staged.seal(rename=cached)
            assert staged.digests == content_digests(model)
            waiting.append((staged, bytes(model)))
            longer = staged.extend() if what == "extend" else None
            staged = await staged.unseal_copy() if longer is None else longer
        assert staged.size_bytes == len(model)
        for sealed, data in waiting:
            assert await sealed.read(0, len(data) + 1) == data
        held = {
            each.path.stat().st_ino: max(each.size_bytes, each.allocated_bytes())
            for each in (*(sealed for sealed, _ in waiting), staged)
        }
        assert tier.space.staged_bytes <= sum(held.values()) + 8 * MIB
    for sealed, data in waiting:
        assert content_digests(data) == await file_digests(sealed.fd, len(data))
        await sealed.discard()
    assert await staged.seal(rename=cached) == content_digests(model)
    assert await staged.read(0, len(model) + 1) == model
    await staged.discard()
    assert tier.space.used_bytes == 0
    assert tier.staging.names() == set()
    await tier.aclose()


@settings(deadline=None, max_examples=60)
@given(steps=_STEPS, cached=st.booleans())
def test_staged_files_are_bytearrays(steps: list[Step], cached: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(partial(_run, Path(directory), steps, cached))
