"""S3 servers for tests, on loopback and on free ports: moto (in this process) and SeaweedFS (a child).

Both are context managers that yield an :class:`S3Server`. A SeaweedFS that does not come up raises with the
end of its log; it is ended by its own process id, never by name.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where a server listens and who may use it."""

    name: str
    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    @property
    def environment(self) -> dict[str, str]:
        """For ``os.environ`` or a child: these credentials, and nothing of this machine's AWS set-up."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            **NO_AWS_SETUP,
        }


NO_AWS_SETUP = {
    "AWS_CONFIG_FILE": "/nonexistent/aws-config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/aws-credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Whatever is configured on the machine must not matter to a test."""

AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
)
"""Unset before a test."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different. Another process may take one before it is used: whoever
    starts a server on one has to notice that it did not come up."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's server in a thread of this process. Its state is shared by everything in the process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield S3Server("moto", f"http://{LOOPBACK}:{port}", "moto-key-id", secrets.token_hex(20))
    finally:
        server.stop()


@contextlib.contextmanager
def weed_server(directory: Path, *, graceful: bool = False) -> Iterator[S3Server]:
    """A SeaweedFS with its data, configuration and log in ``directory``; data there are found again.

    ``graceful`` lets it shut down by itself, which takes it 15 s; otherwise it is killed at the end."""
    server, command = _weed_command(directory)
    log_path = directory / "weed.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
    try:
        _wait_until(lambda: _answers(server.endpoint_url), process, log_path)
        yield server
    finally:
        if graceful:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        process.kill()
        process.wait()


def _weed_command(directory: Path) -> tuple[S3Server, list[str]]:
    """Every port is given: those left out have fixed defaults, on which two servers collide.

    A bucket takes about seven volumes, and writes hang once there are none left: no limit to their number,
    and small ones.
    """
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = free_ports(2 * len(names))
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    server = S3Server(
        "weed", f"http://{LOOPBACK}:{ports[3]}", f"AK{secrets.token_hex(9).upper()}", secrets.token_hex(20)
    )
    credentials = {"accessKey": server.access_key_id, "secretKey": server.secret_access_key}
    identity = {"name": "test", "credentials": [credentials], "actions": ["Admin"]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    command = [
        "weed",
        "server",
        "-s3",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-dir={data}",
        f"-s3.config={config}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.preStopSeconds=0",
        # A bucket takes about seven volumes, and each test makes one. The default, by free space, runs out.
        "-volume.max=20000",
        "-master.volumeSizeLimitMB=128",
        "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=False)),
        *(f"-{name}.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)),
    ]
    return server, command


def _answers(endpoint_url: str) -> bool:
    """Any HTTP answer: without a signature it is 403."""
    try:
        urllib.request.urlopen(endpoint_url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except (urllib.error.URLError, OSError):
        return False
    return True


def _wait_until(answers: Callable[[], bool], process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            log = log_path.read_text(errors="replace")[-4000:]
            raise RuntimeError(
                f"SeaweedFS does not answer (exit code {process.poll()}); its log ends:\n{log}"
            )
        time.sleep(0.1)
