"""CRC-32 of a whole from its pieces; and bodies that are compared as they are sent."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.config import MIB
from s3blobfs.errors import DamagedContent, PermanentS3Error
from s3blobfs.s3.body import Body
from s3blobfs.s3.connection import _is_private
from s3blobfs.s3.crc import combined
from s3blobfs.tier.digest import content_digests
from s3blobfs.trace import Count, Tracer
from s3blobfs.types import CHECKSUM_BLOCK_BYTES as BLOCK
from s3blobfs.types import FileStart
from tests.conftest import MakeBucket
from tests.s3.world import PART_BYTES, connected, pattern
from tests.support.proxy import RecordedRequest, RecordingProxy
from tests.support.servers import S3Server


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 600))
def test_as_zlib_has_it(data: bytes, block: int) -> None:
    checksums = b"".join(
        zlib.crc32(data[at : at + block]).to_bytes(4, "big") for at in range(0, len(data), block)
    )
    assert combined(checksums, block, len(data)) == zlib.crc32(data)


def test_of_ranges_of_a_body() -> None:
    data = pattern(3 * BLOCK + 5)
    with Body(data, content_digests(data).checksums) as body:
        for offset, length in ((0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, BLOCK + 5), (3 * BLOCK, 5)):
            assert body.checksum_of(offset, length) == zlib.crc32(data[offset : offset + length])
        for offset, length in ((1, BLOCK), (0, 5), (BLOCK, BLOCK + 1)):
            assert body.checksum_of(offset, length) is None
    with Body(data) as body:
        assert body.checksum_of(0, BLOCK) is None


def test_what_is_damaged_is_not_sent(tmp_path: Path) -> None:
    data = pattern(3 * BLOCK + 5)
    path = tmp_path / "body"
    path.write_bytes(data[: 2 * BLOCK] + b"?" + data[2 * BLOCK + 1 :])
    with Body(path, content_digests(data).checksums) as body:
        with body.sending(0, 2 * BLOCK) as content:
            assert content.read() == data[: 2 * BLOCK]
        with pytest.raises(DamagedContent), body.sending(BLOCK, 2 * BLOCK) as content:
            assert content.read(BLOCK) == data[BLOCK : 2 * BLOCK]
            try:
                content.read(BLOCK)
            except DamagedContent as error:
                raise ConnectionError("what a library makes of it") from error


def test_the_beginning_of_a_file_that_gets_longer(tmp_path: Path) -> None:
    data = pattern(3 * BLOCK + 5)
    path = tmp_path / "body"
    path.write_bytes(data)
    with Body(FileStart(path, len(data)), content_digests(data).checksums) as body:
        assert body.read(0, 10) == data[:10]
        with path.open("ab") as file:
            file.write(b"appended")
        assert body.size_bytes == len(data)
        assert body.read_checked() == data
        assert body.read(BLOCK - 3, BLOCK + 7) == data[BLOCK - 3 : 2 * BLOCK + 4]
        assert body.open_range(3 * BLOCK + 1, 4).read() == data[-4:]
        with body.sending(2 * BLOCK, BLOCK + 5) as content:
            assert content.read() == data[2 * BLOCK :]
        body.check(5, 2 * BLOCK)
        body.check_unchanged()


def test_the_beginning_of_a_longer_file(tmp_path: Path) -> None:
    data = pattern(BLOCK + 5)
    path = tmp_path / "body"
    path.write_bytes(data + b"appended")
    with Body(FileStart(path, len(data)), content_digests(data).checksums) as body:
        assert body.read_checked() == data


def test_the_beginning_of_a_file_must_not_change(tmp_path: Path) -> None:
    data = pattern(3 * BLOCK + 5)
    path = tmp_path / "body"
    path.write_bytes(data)
    with Body(FileStart(path, len(data)), content_digests(data).checksums) as body:
        path.write_bytes(data[: 2 * BLOCK] + b"?" + data[2 * BLOCK + 1 :] + b"appended")
        assert body.read(0, 10) == data[:10]
        for offset, length in ((2 * BLOCK, 1), (2 * BLOCK + 7, 9), (BLOCK, 2 * BLOCK)):
            with pytest.raises(DamagedContent):
                body.read(offset, length)
        path.write_bytes(data[:-1])
        with pytest.raises(PermanentS3Error, match="changed"):
            body.read(0, 10)
        with pytest.raises(PermanentS3Error, match="changed"):
            body.check_unchanged()


def test_the_beginning_of_a_shorter_file(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"content")
    with pytest.raises(DamagedContent):
        Body(FileStart(path, 8))


def test_without_checksums_no_file_may_get_longer(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"content")
    with Body(FileStart(path, 7)) as body:
        path.write_bytes(b"content, longer")
        with pytest.raises(PermanentS3Error, match="changed"):
            body.read(0, 3)


async def test_a_part_that_is_damaged_ends_the_upload(
    server: S3Server, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    data = pattern(2 * PART_BYTES)
    path = tmp_path / "body"
    path.write_bytes(data[:-1] + b"?")
    tracer = Tracer()
    async with connected(make_bucket(server), server.endpoint_url, tracer) as client:
        with pytest.raises(DamagedContent):
            await client.put("k", path, checksums=content_digests(data).checksums)
        assert [info async for info in client.list_objects("")] == []
        assert [upload async for upload in client.list_uploads("")] == []
    assert tracer.counts[Count.S3_RETRY] == 0


async def test_a_file_that_changes_while_it_is_sent(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    data = pattern(2 * PART_BYTES)
    path = tmp_path / "body"
    path.write_bytes(data)

    def change(request: RecordedRequest) -> None:
        if request.method == "PUT":
            path.write_bytes(data + b"more")

    proxy.add_rule(change)
    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(PermanentS3Error, match="changed while it was being stored"):
            await client.put("k", path, checksums=content_digests(data).checksums)


async def test_parts_carry_a_checksum_that_the_server_compares(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    data = pattern(2 * PART_BYTES + MIB)
    async with connected(make_bucket(server), proxy.url) as client:
        await client.put("k", data, checksums=content_digests(data).checksums)
        assert (await client.get("k")).data == data
    parts = [request for request in proxy.requests if "partNumber" in request.query]
    assert len(parts) == 3
    for part in parts:
        assert part.headers["x-amz-checksum-crc32"]
        assert part.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


@pytest.mark.parametrize(
    ("endpoint_url", "private"),
    [
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("http://127.0.0.1:8333", True),
        ("http://[::1]:8333", True),
        ("http://localhost", True),
        ("http://192.168.1.2:9000", False),
        ("http://s3.example.org", False),
    ],
)
def test_bodies_are_signed_where_somebody_may_alter_them(endpoint_url: str, private: bool) -> None:
    assert _is_private(endpoint_url) is private
