"""gc beside a volume in use: whatever the order in which their requests reach S3, no content is lost.

The grace is switched off here, so that only what gc and the uploads know of each other stands between them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3blobfs.blobstore import metadata
from s3blobfs.maintenance import gc as gc_module
from s3blobfs.maintenance.gc import GcOptions, gc
from s3blobfs.s3.faults import Operation
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import Keying, ObjectHint
from tests.maintenance.kit import live
from tests.support.rig import BUCKET, Rig, Setup, open_rig

DELETE = GcOptions(delete=True, grace_s=0.0)
DATA = b"content"
FUTURE_NS = 4_000_000_000 * 10**9
"""Everything in the bucket is older."""


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_module, "GRACE_MOUNTED_MIN_S", 0.0)


def new_setup(directory: Path, keying: Keying) -> Setup:
    return Setup(directory, keying=keying, cached=False, now_ns=lambda: FUTURE_NS)


async def put_stray(rig: Rig) -> None:
    """An object of the content, that no row names: an upload would find it there."""
    digests = content_digests(DATA)
    stamp = metadata.encode("stray", ObjectHint(7, b"stray", 0o100644, 0, 0, 0), digests)
    await rig.setup.server.client(BUCKET).put(digests.md5.hex(), DATA, metadata=stamp)


async def both(rig: Rig, held: Operation, *, gc_first: bool) -> None:
    """Let one of the two go as far as a request, then the other as far as it comes, then both to the end."""
    stall = rig.faults.on(held, nth=1).stalls()
    first, second = (run_gc, write) if gc_first else (write, run_gc)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first, rig)
        with trio.move_on_after(5):
            await stall.arrived.wait()
        nursery.start_soon(second, rig)
        await trio.testing.wait_all_tasks_blocked(0.01)
        stall.release()


async def run_gc(rig: Rig) -> None:
    await gc(live(rig), DELETE)


async def write(rig: Rig) -> None:
    await rig.write_file(b"file", DATA)


MEETINGS: list[tuple[Keying, bool, Operation, bool]] = [
    # Keying, whether an unnamed object is there, the request that is held, and whether gc is held in it.
    *((keying, stray, "list_versions", True) for keying in Keying for stray in (False, True)),
    *((keying, True, operation, True) for keying in Keying for operation in ("head", "delete_many")),
    (Keying.DIGEST, False, "head", False),
    (Keying.DIGEST, True, "head", False),
    (Keying.DIGEST, False, "put", False),
    (Keying.VERSIONED, False, "put", False),
    (Keying.VERSIONED, True, "put", False),
]


@pytest.mark.parametrize(("keying", "stray", "held", "gc_first"), MEETINGS)
async def test_an_upload_beside_gc(
    tmp_path: Path, keying: Keying, stray: bool, held: Operation, gc_first: bool
) -> None:
    async with open_rig(new_setup(tmp_path / "volume", keying)) as rig:
        if stray:
            await put_stray(rig)
        await both(rig, held, gc_first=gc_first)
        assert await rig.read_file(b"file") == DATA
        await gc(live(rig), DELETE)
        assert await rig.read_file(b"file") == DATA


async def test_an_answer_that_is_late(tmp_path: Path) -> None:
    """The object is there, and the upload does not know yet."""
    for keying in Keying:
        async with open_rig(new_setup(tmp_path / keying.value, keying)) as rig:
            arrived, go_on = trio.Event(), trio.Event()
            inner = rig.setup.server.client(BUCKET)
            original = rig.faults.put

            async def put(*args: object, **kwargs: object) -> object:
                receipt = await original(*args, **kwargs)  # type: ignore[arg-type]  # noqa: B023
                arrived.set()  # noqa: B023
                await go_on.wait()  # noqa: B023
                return receipt

            rig.faults.put = put  # type: ignore[method-assign, assignment]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, rig)
                await arrived.wait()
                report = await gc(live(rig), DELETE)
                go_on.set()
            assert not report.deleted
            assert [info async for info in inner.list_objects("")]
            assert await rig.read_file(b"file") == DATA


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keying=st.sampled_from(Keying),
    delays=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    names=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=6),
    contents=st.lists(st.sampled_from([b"1", b"22", b"333"]), min_size=6, max_size=6),
)
def test_any_interleaving(
    tmp_path_factory: pytest.TempPathFactory,
    keying: Keying,
    delays: list[int],
    names: list[bytes],
    contents: list[bytes],
) -> None:
    """Writers of a few contents, so that they meet; strays of the same; gc all the time."""

    async def run() -> None:
        expected: dict[bytes, bytes] = {}
        async with open_rig(new_setup(tmp_path_factory.mktemp("volume") / "v", keying)) as rig:
            for at, operation in enumerate(("put", "head", "list_versions", "delete_many")):
                for nth in range(1, 4):
                    rig.faults.on(operation, nth=nth).delays(delays[at * 3 + nth - 1] / 1000)  # type: ignore[arg-type]
            await put_stray(rig)

            async def write_all(every: int) -> None:
                for at in range(every, len(names), 2):
                    name = names[at] + b"%d" % every
                    await rig.write_file(name, contents[at])
                    expected[name] = contents[at]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_all, 0)
                nursery.start_soon(write_all, 1)
                nursery.start_soon(run_gc, rig)
            await run_gc(rig)
            for name, data in expected.items():
                assert await rig.read_file(name) == data

    trio.run(run)
