"""S3 servers for tests, on loopback and on free ports: moto (in this process) and SeaweedFS (a child).

Both are context managers that yield an :class:`S3Server`. A SeaweedFS that does not come up raises with the
end of its log; it is ended by its own process id, never by name.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from s3blobfs.demo.weed import (
    INNER_PORTS,
    LOOPBACK,
    S3_PORT,
    START_ATTEMPTS,
    find_weed,
    free_ports,
    lost_a_port,
    s3_config_of,
    weed_command,
)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
VOLUMES_MAX = 20_000


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
    server, process = _started(directory)
    try:
        yield server
    finally:
        if graceful:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        process.kill()
        process.wait()


def _started(directory: Path) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """It answers. Tried again with other ports while somebody takes one before the server does."""
    log_path = directory / "weed.log"
    for attempt in range(1, START_ATTEMPTS + 1):
        server, command = _weed_command(directory)
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
        try:
            _wait_until(partial(_answers, server.endpoint_url), process, log_path)
        except BaseException as error:
            ended = process.poll() is not None
            process.kill()
            process.wait()
            again = ended and isinstance(error, RuntimeError) and lost_a_port(log_path)
            if not again or attempt == START_ATTEMPTS:
                raise
        else:
            return server, process
    raise AssertionError("the last attempt has raised")


def _weed_command(directory: Path) -> tuple[S3Server, list[str]]:
    ports = dict(zip((S3_PORT, *INNER_PORTS), free_ports(1 + len(INNER_PORTS)), strict=True))
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    server = S3Server(
        "weed",
        f"http://{LOOPBACK}:{ports[S3_PORT]}",
        f"AK{secrets.token_hex(9).upper()}",
        secrets.token_hex(20),
    )
    config = directory / "s3.json"
    config.write_text(s3_config_of("test", server.access_key_id, server.secret_access_key))
    # Each test makes a bucket or more, and the default, by free space, runs out of volumes.
    command = weed_command(find_weed(), data, config, ports, volumes_max=VOLUMES_MAX)
    return server, [*command, "-s3.autoCreateBucket=false"]


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
