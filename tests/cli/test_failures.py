"""Everything a user can get wrong, each with its own line. In this process, against real servers."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s3blobfs.cli.main import run
from s3blobfs.fuse import mount as fuse_mount
from s3blobfs.volume.paths import VolumePaths
from tests.conftest import MakeBucket, UseServer, unique_bucket_name
from tests.support.proxy import RecordingProxy, WireFault, error_answer
from tests.support.servers import S3Server


class Attempt:
    """Runs commands that fail."""

    def __init__(self, directory: Path, server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self.endpoint_url = server.endpoint_url
        self.capsys = capsys
        self.paths = VolumePaths(directory / "index.db")
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()

    @property
    def _s3(self) -> list[str]:
        return [f"--endpoint-url={self.endpoint_url}", f"--index={self.paths.index}"]

    def refused(self, *arguments: str) -> str:
        assert run([*arguments, *self._s3]) == 1
        err = self.capsys.readouterr().err
        line = [each for each in err.splitlines() if each.startswith("s3blobfs: ")]
        assert len(line) == 1 and "Traceback" not in err, err
        return line[0].removeprefix("s3blobfs: ")

    def mkfs(self, uri: str, *options: str) -> None:
        assert run(["mkfs", uri, *self._s3, *options]) == 0
        self.capsys.readouterr()

    def mount_refused(self, uri: str, *options: str) -> str:
        return self.refused("mount", "-f", uri, str(self.mountpoint), *options)


@pytest.fixture
def attempt(
    tmp_path: Path,
    weed_server: S3Server,
    use_server: UseServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Attempt:
    use_server(weed_server)
    return Attempt(tmp_path, weed_server, capsys)


@pytest.fixture
def bucket(weed_server: S3Server, make_bucket: MakeBucket) -> str:
    return make_bucket(weed_server)


# --- credentials, buckets, servers --------------------------------------------------------------------


def test_no_credentials(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    line = attempt.refused("mkfs", "s3://bucket")
    assert line.startswith("no AWS credentials")
    assert "--profile" in line
    assert not attempt.paths.index.exists()


@pytest.mark.parametrize(
    ("name", "code"), [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "Signature")]
)
def test_wrong_credentials(
    attempt: Attempt, bucket: str, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    attempt.mkfs(f"s3://{bucket}")
    monkeypatch.setenv(name, "AKWRONGWRONGWRONG")
    line = attempt.mount_refused(f"s3://{bucket}")
    assert "refused the credentials" in line and code in line
    assert "check the credentials" in line
    assert "WRONG" not in line


def test_unknown_profile(attempt: Attempt) -> None:
    line = attempt.refused("mkfs", "s3://bucket", "--profile", "nobody")
    assert "nobody" in line and "could not be found" in line


@pytest.mark.parametrize("command", ["mkfs", "mount"])
def test_unknown_bucket(attempt: Attempt, command: str) -> None:
    uri = f"s3://{unique_bucket_name()}"
    line = attempt.refused("mkfs", uri) if command == "mkfs" else attempt.mount_refused(uri)
    assert "--create-bucket" in line


def test_bucket_without_versioning(attempt: Attempt, bucket: str) -> None:
    line = attempt.refused("mkfs", f"s3://{bucket}", "--mode", "versioned")
    assert "has versioning off" in line and "put-bucket-versioning" in line
    assert not attempt.paths.index.exists()


def test_bucket_without_a_volume(attempt: Attempt, bucket: str) -> None:
    assert attempt.mount_refused(f"s3://{bucket}/x").startswith(f"there is no volume at s3://{bucket}/x/;")


def test_unreachable_server(attempt: Attempt) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        attempt.endpoint_url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = attempt.mount_refused("s3://bucket")
    assert line.startswith(f"cannot reach {attempt.endpoint_url}: connection refused")
    assert "is the server running" in line


def test_wrong_region(attempt: Attempt, bucket: str) -> None:
    with RecordingProxy(attempt.server.endpoint_url) as proxy:
        status, headers, body = error_answer(301, "PermanentRedirect")
        proxy.on(WireFault(answer=(status, {**headers, "x-amz-bucket-region": "eu-west-1"}, body)))
        attempt.endpoint_url = proxy.url
        line = attempt.mount_refused(f"s3://{bucket}")
    assert "the bucket is in another region" in line and line.endswith("--region")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of an authority that nobody trusts, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "authority.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_proxy(weed_server: S3Server, certificate: Path) -> Iterator[RecordingProxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with RecordingProxy(weed_server.endpoint_url, tls=context) as proxy:
        yield proxy


def test_certificate_that_is_not_trusted(attempt: Attempt, bucket: str, tls_proxy: RecordingProxy) -> None:
    attempt.endpoint_url = tls_proxy.url
    line = attempt.refused("mkfs", f"s3://{bucket}")
    assert line.startswith("cannot establish TLS with https://127.0.0.1")
    assert "--ca-bundle FILE" in line


def test_plain_server_asked_for_tls(attempt: Attempt, bucket: str) -> None:
    attempt.endpoint_url = attempt.endpoint_url.replace("http://", "https://")
    assert "or write http:// in --endpoint-url" in attempt.mount_refused(f"s3://{bucket}")


def test_missing_authorities(attempt: Attempt, tmp_path: Path) -> None:
    line = attempt.refused("mkfs", "s3://bucket", "--ca-bundle", str(tmp_path / "no.pem"))
    assert "no.pem is not a file" in line


# --- mountpoints --------------------------------------------------------------------------------------


def test_mountpoint_missing(attempt: Attempt) -> None:
    attempt.mountpoint.rmdir()
    assert "does not exist; make it with: mkdir -p" in attempt.mount_refused("s3://bucket")


def test_mountpoint_is_a_file(attempt: Attempt) -> None:
    attempt.mountpoint.rmdir()
    attempt.mountpoint.touch()
    assert "is not a directory" in attempt.mount_refused("s3://bucket")


def test_mountpoint_not_empty(attempt: Attempt) -> None:
    (attempt.mountpoint / "x").touch()
    assert "is not empty" in attempt.mount_refused("s3://bucket")


def test_mountpoint_of_another_filesystem(attempt: Attempt) -> None:
    attempt.mountpoint = Path("/proc")
    assert "another filesystem is mounted" in attempt.mount_refused("s3://bucket")


def test_fuse_missing(attempt: Attempt, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt.mkfs(f"s3://{bucket}")
    monkeypatch.setattr(fuse_mount, "DEVICE", Path("/nonexistent/fuse"))
    line = attempt.mount_refused(f"s3://{bucket}")
    assert "modprobe fuse" in line and "--device /dev/fuse" in line


# --- the index ----------------------------------------------------------------------------------------


def test_index_elsewhere(attempt: Attempt, bucket: str, tmp_path: Path) -> None:
    attempt.mkfs(f"s3://{bucket}")
    attempt.paths = VolumePaths(tmp_path / "other.db")
    line = attempt.mount_refused(f"s3://{bucket}")
    assert f"is not at {tmp_path / 'other.db'}; give it with --index" in line


def test_index_of_another_volume(attempt: Attempt, bucket: str, tmp_path: Path) -> None:
    attempt.mkfs(f"s3://{bucket}/one")
    other = attempt.paths
    attempt.paths = VolumePaths(tmp_path / "two.db")
    attempt.mkfs(f"s3://{bucket}/two")
    attempt.paths = other
    line = attempt.mount_refused(f"s3://{bucket}/two")
    assert f"s3://{bucket}/two/ holds volume" in line and "but the index is of volume" in line


def test_index_of_a_newer_version(attempt: Attempt, bucket: str) -> None:
    attempt.mkfs(f"s3://{bucket}")
    with sqlite3.connect(attempt.paths.index) as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    line = attempt.mount_refused(f"s3://{bucket}")
    assert "version 1000" in line and "install the newer program" in line


@pytest.mark.parametrize("how", ["text", "middle"])
def test_damaged_index(attempt: Attempt, bucket: str, how: str) -> None:
    attempt.mkfs(f"s3://{bucket}")
    with attempt.paths.index.open("r+b") as index:
        index.seek(0 if how == "text" else 4096)
        index.write(os.urandom(40_000))
    line = attempt.mount_refused(f"s3://{bucket}")
    assert str(attempt.paths.index) in line
    assert "bring back a copy of it" in line


def test_bucket_that_holds_a_volume(attempt: Attempt, bucket: str, tmp_path: Path) -> None:
    attempt.mkfs(f"s3://{bucket}")
    attempt.paths = VolumePaths(tmp_path / "second.db")
    line = attempt.refused("mkfs", f"s3://{bucket}")
    assert f"s3://{bucket}/ already holds volume " in line and "(created 20" in line
    assert not attempt.paths.index.exists()


def test_index_that_exists(attempt: Attempt, bucket: str) -> None:
    attempt.paths.index.touch()
    assert "an index is never overwritten" in attempt.refused("mkfs", f"s3://{bucket}")


# --- the local tier -----------------------------------------------------------------------------------


def test_cache_directory_that_cannot_be_made(attempt: Attempt, bucket: str, tmp_path: Path) -> None:
    attempt.mkfs(f"s3://{bucket}")
    (tmp_path / "file").touch()
    line = attempt.mount_refused(f"s3://{bucket}", "--cache-dir", str(tmp_path / "file" / "cache"))
    assert str(tmp_path / "file") in line


def test_cache_directory_that_is_not_writable(attempt: Attempt, bucket: str) -> None:
    """On a read-only filesystem, since permissions do not stop root."""
    attempt.mkfs(f"s3://{bucket}")
    line = attempt.mount_refused(f"s3://{bucket}", "--cache-dir", "/sys/fs/cache")
    assert "/sys/fs/cache" in line


def test_log_that_cannot_be_written(attempt: Attempt, bucket: str) -> None:
    """Known only to the process in the background, and told by the command."""
    attempt.mkfs(f"s3://{bucket}")
    attempt.paths.log.mkdir()
    arguments = ["mount", f"s3://{bucket}", str(attempt.mountpoint)]
    assert "cannot write the mount's log" in attempt.refused(*arguments)
