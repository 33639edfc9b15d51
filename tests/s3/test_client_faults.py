"""The real client when the network, the server or the body are not as they should be.

A recording proxy before SeaweedFS (which checks bodies and signatures) makes the faults and counts what was
really asked.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3blobfs.config import MIB
from s3blobfs.errors import (
    AccessDenied,
    ObjectAlreadyExists,
    ObjectNotFound,
    OutcomeUnknown,
    PermanentS3Error,
    TransientS3Error,
)
from s3blobfs.s3.client import S3ClientFactory, S3ObjectClient
from s3blobfs.s3.each import HeadRequest, PutRequest, Requests
from s3blobfs.s3.protocol import ObjectId
from s3blobfs.trace import Count, Tracer
from tests.conftest import MakeBucket
from tests.s3.world import PART_BYTES, SLOW_DOWN, asked, connected, quick
from tests.support.proxy import RecordedRequest, RecordingProxy, WireFault, error_answer
from tests.support.servers import S3Server

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


@pytest.mark.parametrize("body", [b"", b"data", b"d" * 100_000], ids=len)
async def test_a_put_whose_answer_is_lost_is_not_repeated_unasked(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket, body: bytes
) -> None:
    """It took place: another one would be a second version."""
    proxy.on(WireFault(reset_after=True), method="PUT")
    alone = PutRequest("k", body, metadata={}, repeat_unknown=False)

    def asked_for() -> Requests[None]:
        yield alone

    async with connected(make_bucket(server), proxy.url) as client:
        with pytest.raises(OutcomeUnknown):
            await client.put("k", body, repeat_unknown=False)
        assert asked(proxy) == ["PUT"]
        await client.make_each(asked_for())
        with pytest.raises(OutcomeUnknown):
            alone.answer()
    assert asked(proxy) == ["PUT"] * 2


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


# --- several in one turn ------------------------------------------------------------------------------


async def test_only_the_request_that_failed_is_repeated(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    bucket, tracer = make_bucket(server), Tracer()
    proxy.on(SLOW_DOWN, method="PUT", path="*/k1", nth=1)
    proxy.on(WireFault(reset_after=True), method="HEAD", path="*/k2", nth=1)
    requests = [PutRequest("k0", b"", metadata={}), PutRequest("k1", b"1", metadata={})]
    requests += [PutRequest("k2", b"2", metadata={})]
    async with connected(bucket, proxy.url, tracer) as client:
        head = HeadRequest("k2")

        def asked_for() -> Requests[None]:
            yield from requests
            yield head

        await client.make_each(asked_for())
    assert all(request.answer().etag for request in requests)
    assert head.answer().size_bytes == 1
    assert asked(proxy) == ["PUT"] * 4 + ["HEAD"] * 2
    assert tracer.counts == {Count.S3_PUT: 3, Count.S3_HEAD: 1, Count.S3_RETRY: 2}


async def test_requests_behind_one_that_is_given_up_on_are_made(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    proxy.on(SLOW_DOWN, path="*/k0")
    proxy.on(WireFault(answer=error_answer(500, "InternalError")), path="*/k1", nth=1)
    refused = PutRequest("k0", b"", metadata={})
    unknown = PutRequest("k1", b"", metadata={}, repeat_unknown=False)
    last = PutRequest("k2", b"", metadata={})

    def asked_for() -> Requests[None]:
        yield from (refused, unknown, last)

    async with connected(make_bucket(server), proxy.url) as client:
        await client.make_each(asked_for())
    with pytest.raises(TransientS3Error, match="SlowDown"):
        refused.answer()
    with pytest.raises(OutcomeUnknown):
        unknown.answer()
    assert last.answer().etag
    assert [request.path[-2:] for request in proxy.requests] == ["k0"] * 3 + ["k1", "k2"]


async def test_each_request_has_its_own_deadline(
    server: S3Server, proxy: RecordingProxy, make_bucket: MakeBucket
) -> None:
    """The last is repeated, though those before it in the turn have taken longer than one may."""
    proxy.on(WireFault(delay_s=0.3), path="*/k[01]")
    proxy.on(SLOW_DOWN, path="*/k2", nth=1)
    puts = [PutRequest(f"k{number}", b"", metadata={}) for number in range(3)]

    def asked_for() -> Requests[None]:
        yield from puts

    async with connected(
        make_bucket(server), proxy.url, request_timeout_s=0.5, total_timeout_s=1.0, backoff_base_s=0.001
    ) as client:
        await client.make_each(asked_for())
    assert all(put.answer().etag for put in puts)
    assert [request.path[-2:] for request in proxy.requests] == ["k0", "k1", "k2", "k2"]


async def test_requests_for_which_no_thread_becomes_free(proxy: RecordingProxy) -> None:
    stall = threading.Event()
    proxy.on(WireFault(stall=stall))
    changes: dict[str, Any] = {"max_threads": 1, "request_timeout_s": 0.4, "total_timeout_s": 0.4}
    put = PutRequest("k", b"", metadata={})

    def asked_for() -> Requests[None]:
        yield put

    async with connected("bucket", proxy.url, **changes) as client, trio.open_nursery() as nursery:

        async def occupy() -> None:
            with pytest.raises(TransientS3Error):
                await client.put("other", b"")

        nursery.start_soon(occupy)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TransientS3Error, match="no answer within"):
            await client.make_each(asked_for())
    with pytest.raises(AssertionError, match="was not made"):
        put.answer()


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
