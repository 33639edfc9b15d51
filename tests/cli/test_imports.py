"""What a command loads before it does anything: the S3 libraries take half a second."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {"boto3", "botocore", "obstore", "pyfuse3", "apsw"}


@pytest.mark.parametrize("command", ["status", "sync", "umount", "cp", "store", "trace", "mount"])
def test_a_command_that_leaves_s3_to_another_process_loads_none_of_its_libraries(command: str) -> None:
    """``mount`` is among them: it starts the process that will serve the mount."""
    program = f"import sys, s3blobfs.cli.main, s3blobfs.cli.{command}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert LIBRARIES.isdisjoint(done.stdout.split())
