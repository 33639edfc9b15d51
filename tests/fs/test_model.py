"""The reference model against the operations, in every combination of keying, caching and durability."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from s3blobfs.types import Durability, Keying
from tests.model.direct import DirectDriver
from tests.model.driver import DirectoryDriver, Driver
from tests.model.machine import FilesystemMachine
from tests.support.rig import Setup

EXAMPLES = int(os.environ.get("S3BLOBFS_MODEL_EXAMPLES", "15"))
"""More of them find more; the number is for how long a run may take."""


class DirectMachine(FilesystemMachine):
    keying: ClassVar[Keying]
    cached: ClassVar[bool]
    durability: ClassVar[Durability]

    def make_drivers(self) -> tuple[Driver, Driver]:
        self.directory = Path(tempfile.mkdtemp(prefix="s3blobfs-model-"))
        plain = self.directory / "plain"
        plain.mkdir(mode=0o755)
        plain.chmod(0o755)
        self.direct = DirectDriver(
            Setup(
                self.directory / "volume",
                keying=self.keying,
                cached=self.cached,
                durability=self.durability,
            )
        )
        return DirectoryDriver(plain), self.direct

    def teardown(self) -> None:
        if hasattr(self, "direct"):
            try:
                super().teardown()
            finally:
                self.direct.stop()
                shutil.rmtree(self.directory)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("keying", Keying)
def test_behaves_as_a_plain_directory(keying: Keying, cached: bool, durability: Durability) -> None:
    class Machine(DirectMachine):
        pass

    Machine.keying, Machine.cached, Machine.durability = keying, cached, durability
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
