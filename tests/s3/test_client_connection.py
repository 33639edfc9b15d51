"""How the real client reaches S3: addresses, TLS, credentials, what is asked of each stored object."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s3blobfs.config import Encryption, S3Options
from s3blobfs.demo.weed import free_ports
from s3blobfs.errors import (
    AccessDenied,
    PermanentS3Error,
    TransientS3Error,
    UsageError,
)
from s3blobfs.s3.client import S3ClientFactory, make_client_factory
from s3blobfs.s3.connection import S3Connection
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Count, Tracer
from tests.conftest import MakeBucket, UseServer
from tests.s3.world import PART_BYTES, calls_of_both_planes, connected, quick
from tests.support.proxy import RecordingProxy, WireFault
from tests.support.servers import S3Server


@pytest.mark.parametrize("plane", ["data", "control"])
async def test_unreachable(server: S3Server, plane: str) -> None:
    endpoint_url = f"http://127.0.0.1:{free_ports(1)[0]}"
    tracer = Tracer()
    async with connected("bucket", endpoint_url, tracer) as client:
        with pytest.raises(TransientS3Error, match=f"cannot reach {endpoint_url}: connection refused"):
            await (client.head("k") if plane == "data" else client.bucket_exists())
    assert tracer.counts[Count.S3_RETRY] == 2


async def test_unknown_host(server: S3Server) -> None:
    async with connected("bucket", "http://s3.invalid", max_attempts=1) as client:
        for call in (lambda: client.head("k"), client.bucket_exists):
            with pytest.raises(TransientS3Error, match=r"cannot reach .*: its name does not"):
                await call()


async def test_wrong_credentials(
    server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(server)
    secret = "not-the-secret-of-this-server"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    async with connected(bucket, server.endpoint_url) as client:
        for call in (lambda: client.put("k", b""), lambda: client.head("k"), client.versioning_enabled):
            with pytest.raises(AccessDenied) as caught:
                await call()
            assert secret not in str(caught.value)
            assert server.access_key_id not in str(caught.value)


async def test_no_credentials(use_server: UseServer) -> None:
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        make_client_factory(quick("http://127.0.0.1:1"), Tracer())


async def test_unknown_profile_and_ca_file(server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody"):
        make_client_factory(quick("http://127.0.0.1:1", profile="nobody"), Tracer())
    with pytest.raises(UsageError, match=r"absent\.pem"):
        make_client_factory(quick("http://127.0.0.1:1", ca_bundle=tmp_path / "absent.pem"), Tracer())


def make_certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's PEM file, and a server's TLS with a certificate of its for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = (
        build("Test CA", "Test CA", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    issued = (
        build("127.0.0.1", "Test CA", key)
        .add_extension(address, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority_path, chain_path = directory / "ca.pem", directory / "server.pem"
    authority_path.write_bytes(authority.public_bytes(pem))
    chain_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + issued.public_bytes(pem)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain_path)
    return authority_path, tls


async def test_tls_with_our_own_authority(
    server: S3Server, make_bucket: MakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(server)
    authority, tls = make_certificate(tmp_path)
    with RecordingProxy(server.endpoint_url, tls) as proxy:
        async with connected(bucket, proxy.url, ca_bundle=authority) as client:
            await calls_of_both_planes(client)
            await client.put("large", bytes(PART_BYTES + 1))
            assert (await client.head("large")).size_bytes == PART_BYTES + 1
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        async with connected(bucket, proxy.url) as client:
            await calls_of_both_planes(client)


async def test_tls_not_trusted(server: S3Server, tmp_path: Path) -> None:
    _, tls = make_certificate(tmp_path)
    with RecordingProxy(server.endpoint_url, tls) as proxy:
        async with connected("bucket", proxy.url) as client:
            for call in (lambda: client.head("k"), client.bucket_exists):
                with pytest.raises(PermanentS3Error, match="cannot establish TLS"):
                    await call()


async def test_tls_with_a_server_that_speaks_plain_http(server: S3Server) -> None:
    async with connected("bucket", server.endpoint_url.replace("http:", "https:")) as client:
        for call in (lambda: client.head("k"), client.bucket_exists):
            with pytest.raises(PermanentS3Error, match="cannot establish TLS"):
                await call()


async def test_wrong_region(server: S3Server, proxy: RecordingProxy) -> None:
    proxy.on(WireFault(answer=(301, {"x-amz-bucket-region": "eu-west-1"}, b"")), method="GET")
    async with connected("bucket", proxy.url) as client:
        with pytest.raises(PermanentS3Error, match="another region"):
            await client.get("k")


# --- options ------------------------------------------------------------------------------------------


async def test_storing_options_reach_the_server_by_both_libraries(
    moto_server: S3Server, use_server: UseServer, make_bucket: MakeBucket
) -> None:
    use_server(moto_server)
    with RecordingProxy(moto_server.endpoint_url) as proxy:
        changes: dict[str, Any] = {
            "encryption": Encryption.SSE_KMS,
            "kms_key_id": "key-1",
            "storage_class": "STANDARD_IA",
        }
        async with connected(make_bucket(moto_server), proxy.url, **changes) as client:
            await client.put("k", b"data")
            await client.put("large", bytes(PART_BYTES))
            await client.copy(client.bucket, ObjectId("k"), "copy", size_bytes=4)
        storing = [
            request
            for request in proxy.requests
            if request.method in ("PUT", "POST") and "uploadId" not in request.query
        ]
        assert len(storing) == 3
        for request in storing:
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
            assert request.headers["x-amz-storage-class"] == "STANDARD_IA"


async def test_an_endpoint_of_the_options_is_preferred_to_the_environment(
    server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(server)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with connected(bucket, server.endpoint_url, max_attempts=1) as client:
        await calls_of_both_planes(client)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
async def test_an_endpoint_of_the_environment(
    server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bucket = make_bucket(server)
    monkeypatch.setenv(name, server.endpoint_url)
    factory = make_client_factory(S3Options(max_attempts=1), Tracer())
    await calls_of_both_planes(factory(bucket))
    await factory.aclose()


def test_addresses_of_aws(use_server: UseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint: virtual hosts in the region asked for, and path style where TLS needs it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    connection = S3Connection(S3Options(region="eu-west-1"))
    assert connection.obstore("bucket").config["endpoint"] == "https://bucket.s3.eu-west-1.amazonaws.com"
    assert connection.obstore("a.b").config["endpoint"] == "https://s3.eu-west-1.amazonaws.com"
    assert connection.obstore("bucket").config["region"] == "eu-west-1"
    connection.close()
    default = S3Connection(S3Options())
    assert default.region == "us-east-1"
    assert default.obstore("bucket").config["endpoint"].startswith("https://bucket.s3.")
    default.close()
    assert "secret" not in repr(connection.obstore("bucket")) + repr(connection.obstore("bucket").config)


async def test_credentials_are_renewed(
    server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What botocore renews, obstore gets with its next question."""
    bucket = make_bucket(server)
    factory = S3ClientFactory(quick(server.endpoint_url), Tracer())
    asked_for = 0
    give = factory.connection.obstore_credential

    def count() -> Any:
        nonlocal asked_for
        asked_for += 1
        credential = give()
        credential["expires_at"] = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
        return credential

    monkeypatch.setattr(factory.connection, "obstore_credential", count)
    client = factory(bucket)
    for _ in range(3):
        await client.put("k", b"x")
        await trio.sleep(0.15)  # obstore asks at most ten times a second
    assert asked_for >= 2
    await factory.aclose()
