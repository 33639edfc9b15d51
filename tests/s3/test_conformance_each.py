"""Requests that share one turn: what each comes to, whatever becomes of the others."""

from __future__ import annotations

from s3blobfs.errors import DamagedContent, ObjectAlreadyExists, ObjectNotFound
from s3blobfs.s3.each import HeadRequest, PutRequest, Request, Requests
from s3blobfs.tier.digest import content_digests
from s3blobfs.trace import Count
from tests.s3.world import World


def _error(request: HeadRequest | PutRequest) -> Exception | None:
    try:
        request.answer()
    except (DamagedContent, ObjectAlreadyExists, ObjectNotFound) as error:
        return error
    return None


async def test_requests_one_after_the_other(world: World) -> None:
    """Each outcome before the next is asked for; what is refused ends nothing."""
    client = await world.bucket()
    await client.put("there", b"before")
    checksums = content_digests(b"checked").checksums
    put = PutRequest("new", b"from memory", metadata={"a": "1"}, if_none_match=True)
    requests: list[tuple[HeadRequest | PutRequest, type[Exception] | None]] = [
        (HeadRequest("there"), None),
        (HeadRequest("missing"), ObjectNotFound),
        (put, None),
        (PutRequest("there", b"other", metadata={}, if_none_match=True), ObjectAlreadyExists),
        (PutRequest("checked", b"checked", metadata={}, checksums=checksums), None),
        (PutRequest("damaged", b"other bytes", metadata={}, checksums=checksums), DamagedContent),
        (PutRequest("there", b"after", metadata={"b": "2"}), None),
    ]
    found: list[type[Exception] | None] = []

    def asked() -> Requests[None]:
        for request, _ in requests:
            yield request
            error = _error(request)
            found.append(None if error is None else type(error))

    world.tracer.counts.clear()
    await client.make_each(asked())
    assert found == [expected for _, expected in requests]
    assert world.tracer.counts[Count.S3_HEAD] == 2
    assert (await client.head("new")).metadata == {"a": "1"}
    assert (await client.head("new")).etag == put.answer().etag
    assert (await client.get("there")).data == b"after"
    assert sorted([info.key async for info in client.list_objects("")]) == ["checked", "new", "there"]


async def test_what_is_asked_next_may_depend_on_the_answer(world: World) -> None:
    client = await world.bucket(versioning=True)

    def asked() -> Requests[None]:
        first = PutRequest("k", b"1", metadata={})
        yield first
        second = PutRequest(f"after-{first.answer().etag}", b"2", metadata={})
        yield second
        versions.append(second.answer().version_id)

    versions: list[str | None] = []
    await client.make_each(asked())
    etag = (await client.head("k")).etag
    assert versions == [(await client.head(f"after-{etag}")).version_id]
    assert versions != [None]


async def test_nothing_to_ask_for(world: World) -> None:
    client = await world.bucket()

    def asked() -> Requests[None]:
        yield from list[Request[object]]()

    await client.make_each(asked())
