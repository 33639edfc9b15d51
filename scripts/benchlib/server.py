"""The S3 server of a run: SeaweedFS on loopback, with its data in the run's directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from s3blobfs.demo.server import DemoServer
from s3blobfs.volume.paths import make_private_directory

_STOP_S = 1.0
"""Its data are of no use afterwards."""


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[DemoServer]:
    """Runs inside the context and is ended, by its process id, behind it.

    In this process and in those that it starts it takes the place of the AWS set-up of whoever runs this."""
    make_private_directory(directory)
    server = DemoServer(directory)
    try:
        server.start(keep_ports=False)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(server.aws_environment())
        yield server
    finally:
        server.stop(grace_s=_STOP_S)
