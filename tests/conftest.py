"""Fixtures of all tests: S3 servers, a clean AWS environment, no log record that nobody expects."""

from __future__ import annotations

import inspect
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from tests.support import servers
from tests.support.servers import S3Server

UseServer = Callable[[S3Server], S3Server]
MakeBucket = Callable[..., str]
AllowLogs = Callable[[str], None]


LONGEST_FIRST = ("applications", "crash", "wire", "demo", "scripts", "replica", "local")
"""Directories whose files take minutes. A file's tests stay with one worker, so one that is begun last leaves
the other workers with nothing to do."""


CLOCKS = {"clock", "autojump_clock", "mock_clock"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "expected_log(regex): the test may log records at WARNING or above that match"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        directory = item.path.parent.name
        return LONGEST_FIRST.index(directory) if directory in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)
    real_time = [
        item.nodeid for item in items if isinstance(item, pytest.Function) and _misses_its_clock(item)
    ]
    if real_time:
        raise pytest.UsageError(f"a test names its fixtures' clock, or runs in real time: {real_time}")


def _misses_its_clock(item: pytest.Function) -> bool:
    """pytest-trio looks for the clock to run a test by among the test's own arguments alone."""
    named = set(inspect.signature(item.function).parameters)
    return bool(CLOCKS & set(item.fixturenames)) and not CLOCKS & named


# --- servers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto; it takes any credentials and checks no body."""
    with servers.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def weed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS: a real S3 server, which checks signatures and bodies."""
    with servers.weed_server(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(autouse=True)
def clean_aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is configured on the machine must not matter, and no test may use its credentials."""
    for name in servers.AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in servers.NO_AWS_SETUP.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def use_server(monkeypatch: pytest.MonkeyPatch, clean_aws_environment: None) -> UseServer:
    """``use_server(weed_server)`` puts that server's credentials into the environment."""

    def use(server: S3Server) -> S3Server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server

    return use


@pytest.fixture
def make_bucket() -> MakeBucket:
    """``make_bucket(weed_server, versioning=True)`` makes a bucket nobody else has and answers its name."""

    def make(server: S3Server, *, versioning: bool = False) -> str:
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        name = unique_bucket_name()
        client.create_bucket(Bucket=name)
        if versioning:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        client.close()
        return name

    return make


def unique_bucket_name() -> str:
    return f"test-{uuid.uuid4().hex[:20]}"


# --- logs ---------------------------------------------------------------------------------------------


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def allow_logs(request: pytest.FixtureRequest) -> Iterator[AllowLogs]:
    """A record at WARNING or above that neither ``@pytest.mark.expected_log(regex)`` nor a call of this
    fixture with a regex permits fails the test."""
    allowed = [marker.args[0] for marker in request.node.iter_markers("expected_log")]
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    try:
        yield allowed.append
    finally:
        logging.getLogger().removeHandler(collector)
    unexpected = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in collector.records
        if not any(re.search(regex, record.getMessage()) for regex in allowed)
    ]
    if unexpected:
        pytest.fail("unexpected log records:\n" + "\n".join(unexpected))


@pytest.fixture
def body_file(tmp_path: Path) -> Callable[[bytes], Path]:
    """``body_file(data)`` writes a file for a PUT."""

    def write(data: bytes) -> Path:
        path = tmp_path / f"body-{uuid.uuid4().hex}"
        path.write_bytes(data)
        return path

    return write
