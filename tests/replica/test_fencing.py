"""Two mounts of one volume: S3 lets one of them go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from s3blobfs.errors import IndexFenced
from s3blobfs.index import dentries
from s3blobfs.replica import names
from s3blobfs.replica.options import Limits
from s3blobfs.replica.segment import Kind
from tests.index.volume import ROOT
from tests.replica.dumps import dump
from tests.replica.kit import CONFLICT_LOG, Site

Clock = trio.testing.MockClock
MakeSite = Callable[..., Site]


def copy_index(directory: Path) -> None:
    """Bring the index to another machine, as the one who should not does it."""
    (directory / "other.db").write_bytes((directory / "index.db").read_bytes())


@pytest.mark.expected_log(CONFLICT_LOG)
@pytest.mark.parametrize("conditional", [True, False])
async def test_the_second_writer_stops_at_once(
    make_site: MakeSite, autojump_clock: Clock, conditional: bool
) -> None:
    site = make_site(conditional=conditional)
    await site.make()
    async with site.mount() as mount:
        await mount.add(b"common")
    copy_index(site.directory)
    async with site.mount("other", kill=True) as loser, site.mount() as winner:
        await winner.add(b"winner")
        await winner.settle()
        await loser.add(b"loser")
        with pytest.raises(IndexFenced, match=r"segment 3 is .*recover --force.*--take-over"):
            await loser.shipper.shipped()
        with pytest.raises(IndexFenced):
            await loser.add(b"more")
        assert len(loser.fenced) == 1
        status = loser.shipper.status()
        assert status.fenced == loser.fenced[0]
        assert status.fencing == ("conditional" if conditional else "weak")
        assert await loser.db.read(lambda tx: dentries.find(tx, ROOT, b"common")) is not None
        await winner.add(b"goes on")
        await winner.settle()
        assert winner.fenced == []
    result = await site.reconstruct()
    assert result.complete and dump(site.directory / "recovered.db") == dump(site.directory / "index.db")


@pytest.mark.expected_log(CONFLICT_LOG)
async def test_taking_over_fences_off_the_other(site: Site, autojump_clock: Clock) -> None:
    async with site.mount() as mount:
        await mount.add(b"common")
    copy_index(site.directory)
    async with site.mount(kill=True) as first:
        await first.add(b"first")
        await first.settle()
        async with site.mount("other", take_over=True) as second:
            await second.settle()
            await first.add(b"too late")
            with pytest.raises(IndexFenced):
                await first.shipper.shipped()
    assert [(await site.segment(number)).kind for number in (3, 4)] == [Kind.CHANGES, Kind.BREAK]
    result = await site.reconstruct()
    assert result.complete and dump(site.directory / "recovered.db") == dump(site.directory / "other.db")


@pytest.mark.expected_log(CONFLICT_LOG)
async def test_an_idle_mount_finds_out_by_itself(make_site: MakeSite, autojump_clock: Clock) -> None:
    site = make_site(limits=Limits(look_s=600))
    await site.make()
    async with site.mount() as mount:
        await mount.add(b"common")
    copy_index(site.directory)
    async with site.mount("other", kill=True) as idle:
        async with site.mount() as busy:
            await busy.add(b"a")
        await trio.sleep(601)
        assert len(idle.fenced) == 1


@pytest.mark.expected_log(CONFLICT_LOG)
async def test_a_free_number_proves_nothing_after_a_long_sleep(
    make_site: MakeSite, autojump_clock: Clock
) -> None:
    """The other's first segments may be old enough to have been removed."""
    site = make_site(limits=Limits(look_s=600))
    await site.make()
    async with site.mount() as mount:
        await mount.add(b"common")
    copy_index(site.directory)
    async with site.mount("other", kill=True) as sleeper:
        async with site.mount() as busy:
            for at in range(5):
                await busy.add(b"%d" % at)
                await busy.settle()
        async with site.mount(take_over=True):  # leaves a snapshot that is far ahead
            pass
        for number in (3, 4, 5):
            await site.remove(names.segment_key("", number))
        sleeper.shipper._looked_ns -= 601 * 10**9  # as after the machine was suspended
        await sleeper.add(b"late")
        with pytest.raises(IndexFenced):
            await sleeper.shipper.shipped()
    assert 3 not in site.numbers()
