"""What a server, or whoever answers in its place, may send instead of what S3 sends: an error of ours, in
time and within memory, and neither data nor signatures to anybody else."""

from __future__ import annotations

import resource
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s3blobfs.config import S3Options
from s3blobfs.errors import ObjectStoreError, S3BlobFSError
from s3blobfs.s3.client import S3ObjectClient, make_client_factory
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Tracer
from tests.support.proxy import RecordedRequest, RecordingProxy, WireFault

NOBODY = "http://127.0.0.1:9"
"""Never asked: every request is answered by rule."""
HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 100}">' for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    + "]><ListBucketResult><Name>&h;</Name></ListBucketResult>"
)
FILE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'


def contents(fields: str, rest: str = "<IsTruncated>false</IsTruncated>") -> str:
    return f"{HEAD}<Contents>{fields}</Contents>{rest}</ListBucketResult>"


TIME = "<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
KEY = "<Key>k</Key>"
SENSELESS = {
    "not XML": "<ListBucketResult",
    "binary": "\x00\x01\x02",
    "empty": "",
    "entity bomb": BOMB,
    "no key": contents(f"{TIME}<Size>1</Size>"),
    "no size": contents(f"{KEY}{TIME}"),
    "size in words": contents(f"{KEY}{TIME}<Size>many</Size>"),
    "negative size": contents(f"{KEY}{TIME}<Size>-1</Size>"),
    "absurd size": contents(f"{KEY}{TIME}<Size>{10**30}</Size>"),
    "no time": contents(f"{KEY}<ETag>x</ETag><Size>1</Size>"),
    "absurd time": contents(f"{KEY}<LastModified>99999999-01-01</LastModified><Size>1</Size>"),
    "more without a token": contents(f"{KEY}{TIME}<Size>1</Size>", "<IsTruncated>true</IsTruncated>"),
    "deep": HEAD + "<a>" * 100_000 + "</a>" * 100_000 + "</ListBucketResult>x",
}


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with RecordingProxy(NOBODY) as made:
        yield made


@asynccontextmanager
async def client_of(proxy: RecordingProxy) -> AsyncIterator[S3ObjectClient]:
    options = S3Options(
        endpoint_url=proxy.url,
        request_timeout_s=20,
        total_timeout_s=20,
        max_attempts=2,
        backoff_base_s=0.01,
        backoff_max_s=0.01,
    )
    factory = make_client_factory(options, Tracer())
    try:
        yield factory("bucket")
    finally:
        await factory.aclose()


def answer(body: str, headers: Mapping[str, str] | None = None, status: int = 200) -> WireFault:
    return WireFault(answer=(status, headers or {"Content-Type": "application/xml"}, body.encode()))


@pytest.mark.parametrize("listing", ["objects", "versions"])
@pytest.mark.parametrize("body", SENSELESS.values(), ids=SENSELESS)
async def test_listings_that_make_no_sense(proxy: RecordingProxy, body: str, listing: str) -> None:
    if listing == "versions":
        body = body.replace("ListBucketResult", "ListVersionsResult").replace("Contents>", "Version>")
    proxy.on(answer(body))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: list[object] = []
    async with client_of(proxy) as client:
        try:
            if listing == "objects":
                found += [entry async for entry in client.list_objects("")]
            else:
                found += [entry async for entry in client.list_versions("")]
        except S3BlobFSError:
            assert proxy.requests
    assert found == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 * 1024


async def test_entities_bring_in_no_file(proxy: RecordingProxy) -> None:
    body = (
        f"{FILE}<ListBucketResult><Contents><Key>&f;</Key>{TIME}<Size>1</Size></Contents></ListBucketResult>"
    )
    proxy.on(answer(body))
    found: list[str] = []
    async with client_of(proxy) as client:
        try:
            found += [entry.key async for entry in client.list_objects("")]
        except S3BlobFSError as error:
            found.append(str(error))
    assert not any("root:" in text for text in found)


@pytest.mark.parametrize("entries", [1, 0])
@pytest.mark.parametrize("tokens", ["the same", "new ones"])
async def test_listings_without_an_end(proxy: RecordingProxy, entries: int, tokens: str) -> None:
    if entries and tokens == "new ones":
        pytest.skip("that is what a large bucket looks like")
    asked = 0

    def rule(_: RecordedRequest) -> WireFault:
        nonlocal asked
        asked += 1
        token = "t" if tokens == "the same" else f"t{asked}"
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        entry = f"<Contents>{KEY}{TIME}<Size>1</Size></Contents>" * entries
        return answer(f"{HEAD}{entry}{more}</ListBucketResult>")

    proxy.add_rule(rule)
    async with client_of(proxy) as client:
        with pytest.raises(ObjectStoreError, match="does not come to an end"):
            async for _ in client.list_objects(""):
                continue


@pytest.mark.parametrize("size", ["-1", str(2**63), str(10**30), "many"])
async def test_headers_that_make_no_sense(proxy: RecordingProxy, size: str) -> None:
    proxy.on(answer("abc", {"Content-Range": f"bytes 0-2/{size}", "ETag": '"x"'}, 206))
    async with client_of(proxy) as client:
        with pytest.raises(S3BlobFSError):
            await client.get("k", offset=0, length=3)


class _Elsewhere(ThreadingHTTPServer):
    """Another host; keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://localhost:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: _Elsewhere

    def log_message(self, format: str, *args: object) -> None:
        """What it was told is in ``seen``."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, headers, body))
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names


@pytest.fixture
def elsewhere() -> Iterator[_Elsewhere]:
    server = _Elsewhere()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# botocore leaves the connection of an answer that it does not follow to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("request_", ["get", "head", "put", "put file", "list", "delete", "copy"])
async def test_redirects_give_nothing_away(
    proxy: RecordingProxy, elsewhere: _Elsewhere, status: int, request_: str, tmp_path: Path
) -> None:
    """Data and signatures go to the host that was given, and to no other. What is read by obstore does
    follow: it has no option not to. Contents from there are refused by their digests like any others."""
    headers = {"Location": f"{elsewhere.url}/bucket/k", "x-amz-bucket-region": "eu-west-1"}
    proxy.on(WireFault(answer=(status, headers, b"")))
    file = tmp_path / "file"
    file.write_bytes(b"secret")
    async with client_of(proxy) as client:
        try:
            if request_ == "get":
                await client.get("k")
            elif request_ == "head":
                await client.head("k")
            elif request_ == "put":
                await client.put("k", b"secret")
            elif request_ == "put file":
                await client.put("k", file)
            elif request_ == "list":
                _ = [entry async for entry in client.list_objects("")]
            elif request_ == "delete":
                await client.delete(ObjectId("k"))
            else:
                await client.copy("bucket", ObjectId("k"), "l", size_bytes=1)
        except S3BlobFSError:
            assert proxy.requests
        else:
            assert request_ in ("get", "head") or status == 303
    if request_ in ("list", "delete", "copy"):
        assert elsewhere.seen == []
    for method, sent, body in elsewhere.seen:
        assert method in ("GET", "HEAD") and body == b""
        assert "authorization" not in sent and "key" not in str(sent.get("x-amz-credential"))
