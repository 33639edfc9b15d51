"""Failpoints themselves: nothing happens unless armed, and then exactly at the time asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3blobfs.errors import UsageError
from s3blobfs.failpoints import VARIABLE, Failpoint, arm_from, armed, reached
from s3blobfs.types import Keying
from tests.support.rig import Setup, open_rig


class Reached(Exception):
    pass


def fail() -> None:
    raise Reached


def test_nothing_happens_unless_armed() -> None:
    for point in Failpoint:
        reached(point)
    arm_from({})
    reached(Failpoint.SEALED)


def test_the_nth_time_counts_and_the_end_of_the_context_disarms() -> None:
    with armed(Failpoint.SEALED, fail, nth=2):
        reached(Failpoint.SEALED)
        reached(Failpoint.STAGED)
        with pytest.raises(Reached):
            reached(Failpoint.SEALED)
        reached(Failpoint.SEALED)
    reached(Failpoint.SEALED)


@pytest.mark.parametrize("text", ["", "seal", "sealed:", "sealed:x", "sealed:1:2"])
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="put-answered"):
        arm_from({VARIABLE: text})


@pytest.mark.parametrize("keying", Keying)
async def test_the_points_of_a_write_in_their_order(tmp_path: Path, keying: Keying) -> None:
    passed: list[Failpoint] = []
    async with open_rig(Setup(tmp_path / "volume", keying=keying)) as rig:
        for point in (
            Failpoint.STAGED,
            Failpoint.SEALED,
            Failpoint.JOURNALLED,
            Failpoint.PUT_SENT,
            Failpoint.PUT_ANSWERED,
            Failpoint.COMMITTED,
            Failpoint.PROMOTED,
        ):
            with armed(point, lambda point=point: passed.append(point)):  # type: ignore[misc]
                await rig.write_file(b"f", point.value.encode())
            assert passed[-1] is point
    assert len(passed) == 7
