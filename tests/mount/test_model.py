"""The reference model against a real mount, with real remounts."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.driver import DirectoryDriver, Driver, Where
from tests.model.machine import FilesystemMachine
from tests.support.mounted import MountedVolume

EXAMPLES = int(os.environ.get("S3BLOBFS_MOUNT_EXAMPLES", "3"))
"""More of them find more."""
REMOUNTS = 2
"""Of one example, which take seconds each, besides the one at its end; the others close all files only."""


class MountMachine(FilesystemMachine):
    """Each example has a new directory of the one mount."""

    volume: ClassVar[MountedVolume]
    count: ClassVar[int]
    directory: ClassVar[Path]

    def make_drivers(self) -> tuple[Driver, Driver]:
        type(self).count += 1
        roots = [self.directory / str(self.count), self.volume.mountpoint / str(self.count)]
        for root in roots:
            root.mkdir(mode=0o755)
            root.chmod(0o755)
        self.remounts_left = REMOUNTS
        return DirectoryDriver(roots[0]), DirectoryDriver(roots[1], self.remount_volume)

    def remount_volume(self, where: Where) -> None:
        self.remounts_left -= 1
        if self.remounts_left < 0:
            return
        self.volume.umount()
        if where is Where.EMPTY_CACHE:
            shutil.rmtree(self.volume.tier)
        elif where is Where.ELSEWHERE:
            self.volume.lose_machine()
            self.volume.recover()
        self.volume.mount()

    def teardown(self) -> None:
        self.remounts_left = 1
        super().teardown()


@pytest.mark.timeout(60 + 60 * EXAMPLES)
def test_behaves_as_a_plain_directory(volume: MountedVolume, extended: bool) -> None:
    class Machine(MountMachine):
        has_ranges = extended

    with tempfile.TemporaryDirectory(prefix="s3blobfs-model-") as plain:
        Machine.volume, Machine.count, Machine.directory = volume, 0, Path(plain)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=60,
                deadline=None,
                derandomize="S3BLOBFS_MOUNT_EXAMPLES" not in os.environ,
                suppress_health_check=list(HealthCheck),
            ),
        )
