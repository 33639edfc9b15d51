"""The real client when the network, the server, the credentials or the body are not as they should be.

A recording proxy before SeaweedFS (which checks bodies and signatures) makes the faults and counts what was
really asked.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s3blobfs.config import MIB, Encryption, S3Options
from s3blobfs.errors import (
    AccessDenied,
    ObjectAlreadyExists,
    ObjectNotFound,
    PermanentS3Error,
    TransientS3Error,
    UsageError,
)
from s3blobfs.s3.client import S3ClientFactory, S3ObjectClient, make_client_factory
from s3blobfs.s3.connection import S3Connection
from s3blobfs.s3.protocol import ObjectClient, ObjectId
from s3blobfs.trace import Count, Tracer
from tests.conftest import MakeBucket, UseServer
from tests.support.proxy import RecordedRequest, RecordingProxy, WireFault, error_answer
from tests.support.servers import S3Server, free_ports

PART_BYTES = 5 * MIB
SLOW_DOWN = WireFault(answer=error_answer(503, "SlowDown"))


def quick(endpoint_url: str, **changes: Any) -> S3Options:
    values: dict[str, Any] = {
        "endpoint_url": endpoint_url,
        "connect_timeout_s": 1.0,
        "request_timeout_s": 5.0,
        "total_timeout_s": 20.0,
        "backoff_base_s": 0.01,
        "max_attempts": 3,
        "multipart_threshold_bytes": PART_BYTES,
        "part_size_bytes": PART_BYTES,
        "part_concurrency": 2,
    }
    return S3Options(**(values | changes))


@asynccontextmanager
async def connected(
    bucket: str, endpoint_url: str, tracer: Tracer | None = None, **changes: Any
) -> AsyncIterator[S3ObjectClient]:
    factory = make_client_factory(quick(endpoint_url, **changes), tracer or Tracer())
    yield factory(bucket)
    await factory.aclose()


@pytest.fixture
def server(weed_server: S3Server, use_server: UseServer) -> S3Server:
    return use_server(weed_server)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[RecordingProxy]:
    with RecordingProxy(server.endpoint_url) as proxy:
        yield proxy


def asked(proxy: RecordingProxy) -> list[str]:
    """``METHOD operation`` of every request; parts without their numbers."""
    return [
        " ".join([request.method, *sorted(set(request.query) - {"x-id", "encoding-type"})])
        for request in proxy.requests
    ]


# --- reaching it --------------------------------------------------------------------------------------


async def calls_of_both_planes(client: ObjectClient) -> None:
    """One request by each library."""
    await client.put("k", b"x")
    await client.delete(ObjectId("k"))


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


# --- answers that do not come -------------------------------------------------------------------------


async def test_a_stalled_server_is_given_up_on(proxy: RecordingProxy) -> None:
    proxy.on(WireFault(stall=threading.Event()))
    changes: dict[str, Any] = {"request_timeout_s": 0.3, "total_timeout_s": 1.0, "max_attempts": 100}
    async with connected("bucket", proxy.url, **changes) as client:
        for call in (
            lambda: client.head("k"),
            lambda: client.put("k", b""),
            lambda: client.delete(ObjectId("k")),
        ):
            started = time.monotonic()
            with pytest.raises(TransientS3Error, match=r"in time|within"):
                await call()
            assert time.monotonic() - started < 1.5


async def test_a_cancelled_read_of_a_stalled_server_returns_at_once(proxy: RecordingProxy) -> None:
    proxy.on(WireFault(stall=threading.Event()))
    async with connected("bucket", proxy.url, request_timeout_s=2.0) as client:
        started = time.monotonic()
        with trio.move_on_after(0.2):
            await client.get("k")
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "fault", [SLOW_DOWN, WireFault(reset_before=True), WireFault(reset_after=True)], ids=lambda _: "fault"
)
async def test_transient_failures_are_repeated(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, fault: WireFault
) -> None:
    bucket, tracer = make_bucket(server), Tracer()
    for method in ("PUT", "GET", "HEAD", "DELETE", "POST"):
        proxy.on(fault, method=method, path=f"/{bucket}*", nth=1)
    async with connected(bucket, proxy.url, tracer) as client:
        await client.put("k", b"data")
        assert (await client.get("k")).data == b"data"
        assert (await client.head("k")).size_bytes == 4
        assert await client.delete_many([ObjectId("k")]) == []
        await client.delete(ObjectId("k"))
    assert asked(proxy) == ["PUT"] * 2 + ["GET"] * 2 + ["HEAD"] * 2 + ["POST delete"] * 2 + ["DELETE"] * 2
    assert tracer.counts[Count.S3_RETRY] == 5
    assert sum(tracer.counts.values()) == len(proxy.requests)


async def test_permanent_failures_are_not_repeated(server: S3Server, proxy: RecordingProxy) -> None:
    async with connected("no-such-bucket-here", proxy.url) as client:
        with pytest.raises(PermanentS3Error):
            await client.put("k", b"")
    assert asked(proxy) == ["PUT"]


async def test_a_conditional_put_may_meet_itself(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(WireFault(reset_after=True), method="PUT", nth=1)
    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(ObjectAlreadyExists):
            await client.put("k", b"data", if_none_match=True)
        assert (await client.get("k")).data == b"data"


async def test_an_answer_cut_short_is_asked_for_again(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(WireFault(answer_bytes=1000), method="GET", nth=1)
    async with connected(make_bucket(server), proxy.url) as client:
        data = os.urandom(MIB)
        await client.put("k", data)
        assert (await client.get("k")).data == data
        assert (await client.get("k", offset=5, length=500_000)).data == data[5:500_005]


@pytest.mark.parametrize("size_bytes", [1000, 2 * PART_BYTES])
async def test_a_body_damaged_on_its_way_is_refused_and_sent_again(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, size_bytes: int
) -> None:
    proxy.on(WireFault(flip_request_byte=500), method="PUT", nth=1)
    data, tracer = os.urandom(size_bytes), Tracer()
    async with connected(make_bucket(server), proxy.url, tracer) as client:
        await client.put("k", data)
        assert (await client.get("k")).data == data
    assert tracer.counts[Count.S3_RETRY] == 1


# --- multipart ----------------------------------------------------------------------------------------


async def test_only_the_part_that_failed_is_repeated(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, body_file: Callable[[bytes], Path]
) -> None:
    bucket, tracer = make_bucket(server), Tracer()
    proxy.on(SLOW_DOWN, query="*partNumber=2*", nth=1)
    data = os.urandom(2 * PART_BYTES + 7)
    async with connected(bucket, proxy.url, tracer) as client:
        await client.put("k", body_file(data), metadata={"a": "1"})
        answer = await client.get("k")
    assert (answer.data, answer.info.metadata) == (data, {"a": "1"})
    parts = [request.query["partNumber"] for request in proxy.requests if "partNumber" in request.query]
    assert sorted(parts) == ["1", "2", "2", "3"]
    assert (tracer.counts[Count.S3_PART], tracer.counts[Count.S3_RETRY]) == (3, 1)


async def test_a_failed_upload_is_aborted(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(SLOW_DOWN, query="*partNumber=2*")
    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(TransientS3Error):
            await client.put("k", bytes(2 * PART_BYTES))
        with pytest.raises(ObjectNotFound):
            await client.head("k")
    assert asked(proxy)[-2:] == ["DELETE uploadId", "HEAD"]
    assert proxy.requests[-2].status == 204


async def test_a_cancelled_upload_is_aborted(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(WireFault(delay_s=0.5), query="*partNumber*")
    async with connected(make_bucket(server), proxy.url) as client:
        with trio.move_on_after(0.2) as scope:
            await client.put("k", bytes(4 * PART_BYTES))
        assert scope.cancelled_caught
    assert asked(proxy)[-1] == "DELETE uploadId"


@pytest.mark.expected_log("parts of the unfinished upload .* are left in S3")
async def test_an_upload_that_cannot_be_aborted_is_told_of(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(WireFault(answer=error_answer(403, "AccessDenied")), query="*uploadId*")
    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(AccessDenied):
            await client.put("k", bytes(PART_BYTES))


async def test_a_completion_whose_answer_was_lost_is_transient(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(WireFault(answer=error_answer(404, "NoSuchUpload")), method="POST", query="uploadId=*")
    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(TransientS3Error, match="not known"):
            await client.put("k", bytes(PART_BYTES))


@pytest.mark.parametrize("size_bytes", [1000, 2 * PART_BYTES])
async def test_a_body_that_changes_is_not_stored(
    server: S3Server,
    proxy: RecordingProxy,
    make_bucket: MakeBucket,
    body_file: Callable[[bytes], Path],
    size_bytes: int,
) -> None:
    path = body_file(bytes(size_bytes))
    os.utime(path, ns=(0, 0))  # else the change may come within the same tick of the file system's clock

    def change(request: RecordedRequest) -> None:
        path.write_bytes(b"1" * size_bytes)

    proxy.add_rule(change)
    proxy.on(SLOW_DOWN, method="PUT")
    bucket = make_bucket(server)
    async with connected(bucket, proxy.url) as client:
        with pytest.raises(PermanentS3Error, match="changed while it was being stored"):
            await client.put("k", path)
    async with connected(bucket, server.endpoint_url) as client:
        with pytest.raises(ObjectNotFound):
            await client.head("k")


# --- copies -------------------------------------------------------------------------------------------


async def test_a_copy_that_fails_with_status_200_is_repeated(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    tracer = Tracer()
    proxy.on(WireFault(answer=error_answer(200, "InternalError")), method="PUT", path="*/to", nth=1)
    async with connected(make_bucket(server), proxy.url, tracer) as client:
        await client.put("from", b"data")
        await client.copy(client.bucket, ObjectId("from"), "to", size_bytes=4)
        assert (await client.get("to")).data == b"data"
    assert (tracer.counts[Count.S3_COPY], tracer.counts[Count.S3_RETRY]) == (1, 1)


@pytest.mark.parametrize("metadata", [None, {"b": "2"}])
async def test_a_large_copy_is_made_of_parts(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, metadata: dict[str, str] | None
) -> None:
    tracer = Tracer()
    factory = S3ClientFactory(quick(proxy.url), tracer)
    bucket = make_bucket(server, versioning=True)
    client = S3ObjectClient(
        factory.connection, factory.runner, bucket, copy_max_bytes=PART_BYTES, copy_part_bytes=PART_BYTES
    )
    data = os.urandom(2 * PART_BYTES + 1)
    first = await client.put("from", data, metadata={"a": "1"})
    await client.put("from", b"newer")
    receipt = await client.copy(
        bucket,
        ObjectId("from", first.version_id),
        "to",
        size_bytes=len(data),
        metadata=metadata,
        if_match=first.etag,
    )
    answer = await client.get("to", version_id=receipt.version_id)
    assert answer.data == data
    assert answer.info.metadata == ({"a": "1"} if metadata is None else metadata)
    assert tracer.counts[Count.S3_COPY] == 3
    await factory.aclose()


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
