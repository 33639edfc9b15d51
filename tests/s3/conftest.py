"""Fixtures of the object client's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from s3blobfs.config import S3Options
from s3blobfs.s3.client import S3ClientFactory
from s3blobfs.s3.control import ControlPlane
from s3blobfs.s3.fake import FakeS3
from s3blobfs.s3.faults import FaultScript
from s3blobfs.trace import Tracer
from tests.conftest import UseServer
from tests.s3.world import PART_BYTES, THRESHOLD_BYTES, World
from tests.support.proxy import RecordingProxy
from tests.support.servers import S3Server


@pytest.fixture(params=["fake", "faulty", "moto", "weed"])
async def world(request: pytest.FixtureRequest, use_server: UseServer) -> AsyncIterator[World]:
    tracer = Tracer()
    options = S3Options(multipart_threshold_bytes=THRESHOLD_BYTES, part_size_bytes=PART_BYTES)
    if request.param == "fake":
        fake = FakeS3(options)
        yield World("fake", tracer, fake.factory(tracer), fake.begin_upload)
    elif request.param == "faulty":
        fake = FakeS3(options)
        yield World("faulty", tracer, FaultScript().wrap(fake.factory(tracer)), fake.begin_upload)
    else:
        server = use_server(request.getfixturevalue(f"{request.param}_server"))
        options = S3Options(
            endpoint_url=server.endpoint_url,
            multipart_threshold_bytes=THRESHOLD_BYTES,
            part_size_bytes=PART_BYTES,
        )
        factory = await trio.to_thread.run_sync(S3ClientFactory, options, tracer)

        def begin_upload(bucket: str, key: str) -> str:
            return ControlPlane(factory.connection, bucket).create_upload(key, {})

        yield World(request.param, tracer, factory, begin_upload)
        await factory.aclose()


@pytest.fixture
def server(weed_server: S3Server, use_server: UseServer) -> S3Server:
    return use_server(weed_server)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[RecordingProxy]:
    with RecordingProxy(server.endpoint_url) as proxy:
        yield proxy
