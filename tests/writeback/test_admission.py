"""What the queue of uploads does to those who write: nothing, slow them, hold them, refuse them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from s3blobfs.config import MIB, QueueOptions
from s3blobfs.errors import TierFull, TransientS3Error, UsageError
from s3blobfs.s3.fake import FakeS3
from s3blobfs.writeback.admission import LONG_PATIENCE_S, PATIENCE_S, Load, Writers, pressure
from tests.writeback.bench import Volume, mounted

FAILED = pytest.mark.expected_log("^uploading .* failed and is tried again")
LIMITS = QueueOptions(size_bytes=100 * MIB, files=10, age_s=60)
AMPLE = 2**50


def load(files: int = 1, size_bytes: int = 1, age_s: float = 0, error: str | None = None) -> Load:
    return Load(files, size_bytes, age_s, error)


# --- how hard it presses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "room_bytes", "writers"),
    [
        (load(), AMPLE, Writers.FREE),
        (load(files=5), AMPLE, Writers.FREE),
        (load(files=6), AMPLE, Writers.SLOWED),
        (load(files=10), AMPLE, Writers.HELD),
        (load(size_bytes=50 * MIB), AMPLE, Writers.FREE),
        (load(size_bytes=51 * MIB), AMPLE, Writers.SLOWED),
        (load(size_bytes=100 * MIB), AMPLE, Writers.HELD),
        (load(age_s=60), AMPLE, Writers.FREE),
        (load(age_s=61), AMPLE, Writers.SLOWED),
        (load(age_s=10**9), AMPLE, Writers.SLOWED),
        (load(size_bytes=30 * MIB), 31 * MIB, Writers.FREE),
        (load(size_bytes=30 * MIB), 29 * MIB, Writers.SLOWED),
        (load(size_bytes=30 * MIB), 0, Writers.HELD),
    ],
)
def test_each_bound(what: Load, room_bytes: int, writers: Writers) -> None:
    assert pressure(LIMITS, what, room_bytes).writers is writers


@given(
    st.integers(0, 20), st.integers(0, 200 * MIB), st.floats(0, 200), st.integers(0, 200 * MIB),
    st.integers(0, 5), st.integers(0, 50 * MIB), st.floats(0, 60), st.integers(0, 50 * MIB),
)  # fmt: skip
def test_more_never_presses_less(
    files: int, size: int, age_s: float, room: int,
    more_files: int, more_bytes: int, more_age_s: float, less_room: int,
) -> None:  # fmt: skip
    before = pressure(LIMITS, load(files, size, age_s), room)
    after = pressure(
        LIMITS, load(files + more_files, size + more_bytes, age_s + more_age_s), max(0, room - less_room)
    )
    assert after.pause_s(MIB) >= before.pause_s(MIB)
    assert 0 <= after.pause_s(MIB) <= 1.1
    assert after.is_full >= before.is_full


def test_no_limit_is_zero() -> None:
    for limits in ({"size_bytes": 0}, {"files": 0}, {"age_s": 0.0}):
        with pytest.raises(UsageError):
            QueueOptions(**limits)


# --- over time ----------------------------------------------------------------------------------------


async def _admitted_after_s(volume: Volume, size_bytes: int = MIB) -> float:
    begun = trio.current_time()
    await volume.uploader.admission.admit(size_bytes)
    return trio.current_time() - begun


async def _queue(volume: Volume, files: int) -> None:
    for number in range(files):
        await volume.seal(await volume.make_file(f"file{number}"), b"%d" % number)


async def test_writers_are_slowed_more_and_more(clock: MockClock, digest: Volume) -> None:
    digest.limit(queue=QueueOptions(files=10))
    assert await _admitted_after_s(digest) == 0
    pauses = []
    for number in range(9):
        await digest.seal(await digest.make_file(f"file{number}"), b"%d" % number)
        pauses.append(await _admitted_after_s(digest))
    assert pauses[:5] == [0] * 5
    assert 0 < pauses[5] < pauses[6] < pauses[7] < pauses[8] < 1
    assert digest.uploader.admission.status().writers == "slowed"


async def test_while_s3_takes_uploads_writers_wait_and_are_not_refused(
    clock: MockClock, digest: Volume
) -> None:
    digest.limit(queue=QueueOptions(files=2))
    stall = digest.script.on("put").stalls()
    await digest.start()
    await _queue(digest, 2)
    await stall.arrived.wait()
    admitted = []

    async def admit(number: int) -> None:
        await digest.uploader.admission.admit(1)
        admitted.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(admit, number)
            await trio.sleep(1)
        await trio.sleep(LONG_PATIENCE_S - 60)
        assert admitted == []
        assert digest.uploader.admission.status().writers == "held"
        stall.release()
    assert admitted == [0, 1, 2]


async def test_who_waits_for_what_does_not_end_is_refused_in_the_end(
    clock: MockClock, digest: Volume
) -> None:
    digest.limit(queue=QueueOptions(files=1))
    digest.script.on("put").stalls()
    await digest.start()
    await _queue(digest, 1)
    begun = trio.current_time()
    with pytest.raises(TierFull, match="none has ended for long"):
        await digest.uploader.admission.admit(1)
    assert trio.current_time() - begun == pytest.approx(LONG_PATIENCE_S, abs=1.5)


@FAILED
async def test_while_s3_fails_writers_are_refused_and_let_in_again(clock: MockClock, digest: Volume) -> None:
    digest.limit(queue=QueueOptions(files=2))
    digest.script.on("head").raises(TransientS3Error("503 Slow Down"))
    await digest.start()
    await _queue(digest, 2)
    begun = trio.current_time()
    with pytest.raises(TierFull, match=r"2 files, 2 bytes wait .* 503 Slow Down"):
        await digest.uploader.admission.admit(1)
    assert trio.current_time() - begun == pytest.approx(PATIENCE_S, abs=1.5)
    with pytest.raises(TierFull):  # nothing moved since: at once, but for the slowing
        assert await _admitted_after_s(digest) < 2
    digest.script.clear()
    await digest.uploader.barrier()
    assert await _admitted_after_s(digest) == 0


async def test_an_old_upload_slows_writers_across_mounts(
    clock: MockClock, tmp_path: Path, server: FakeS3
) -> None:
    queue = QueueOptions(age_s=100)
    async with mounted(tmp_path, server) as before:
        before.limit(queue=queue)
        await _queue(before, 1)
        await trio.sleep(99)
        assert await _admitted_after_s(before) == 0
        await trio.sleep(50)
        halfway = await _admitted_after_s(before)
        assert halfway > 0
        await trio.sleep(50)
    async with mounted(tmp_path, server) as volume:
        volume.limit(queue=queue)
        await volume.recover()
        slowest = await _admitted_after_s(volume)
        assert slowest > halfway
        await trio.sleep(10**6)
        assert await _admitted_after_s(volume) == pytest.approx(slowest, abs=0.1)
        await volume.start()
        await volume.uploader.barrier()
        assert await _admitted_after_s(volume) == 0


async def test_who_waits_and_gives_up_holds_up_nobody(clock: MockClock, digest: Volume) -> None:
    digest.limit(queue=QueueOptions(files=1))
    await _queue(digest, 1)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancelled_in, scope, digest)
            await digest.uploader.admission.admit(1)
        nursery.start_soon(digest.uploader.admission.admit, 1)
        await wait_all_tasks_blocked()
        await digest.start()


async def _cancelled_in(scope: trio.CancelScope, volume: Volume) -> None:
    await trio.sleep(10)
    assert volume.uploader.admission.status().writers == "held"
    scope.cancel()
