"""Making sure that a bucket can hold a store."""

from __future__ import annotations

import logging
from typing import Literal

import pytest
import trio

from s3blobfs.blobstore.digest import DigestBlobStore
from s3blobfs.blobstore.open import StoreCapabilities, open_store, prepare_store
from s3blobfs.blobstore.versioned import VersionedBlobStore
from s3blobfs.errors import AccessDenied, PermanentS3Error, TransientS3Error, UsageError
from s3blobfs.types import Keying
from tests.blobstore.bench import Bench


async def test_digest_store_in_a_plain_bucket(bench: Bench) -> None:
    bucket = bench.bucket()
    answer = await prepare_store(bench.client(), prefix="p/", keying=Keying.DIGEST)
    assert answer == StoreCapabilities(conditional_put=True, versioning=False)
    assert bucket.versions == {}


async def test_digest_store_in_a_versioned_bucket(bench: Bench) -> None:
    bucket = bench.bucket(versioning=True)
    answer = await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
    assert answer.versioning
    assert bucket.versions == {}


async def test_versioned_store(bench: Bench) -> None:
    bucket = bench.bucket(versioning=True)
    answer = await prepare_store(bench.client(), prefix="", keying=Keying.VERSIONED)
    assert answer == StoreCapabilities(conditional_put=True, versioning=True)
    assert bucket.versions == {}


async def test_versioning_is_off(bench: Bench) -> None:
    bucket = bench.bucket()
    with pytest.raises(UsageError, match="aws s3api put-bucket-versioning --bucket bucket"):
        await prepare_store(bench.client(), prefix="", keying=Keying.VERSIONED)
    assert not bucket.versioning
    answer = await prepare_store(bench.client(), prefix="", keying=Keying.VERSIONED, enable_versioning=True)
    assert answer.versioning
    assert bucket.versioning


async def test_bucket_is_missing(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"bucket bucket does not exist.*--create-bucket"):
        await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
    await prepare_store(bench.client(), prefix="", keying=Keying.VERSIONED, create_bucket=True)
    assert bench.bucket().versioning
    assert bench.keys() == set()


async def test_create_bucket_does_not_change_one_that_exists(bench: Bench) -> None:
    bucket = bench.bucket()
    with pytest.raises(UsageError, match="versioning off"):
        await prepare_store(bench.client(), prefix="", keying=Keying.VERSIONED, create_bucket=True)
    assert not bucket.versioning


@pytest.mark.parametrize("refusal", [None, PermanentS3Error("not implemented", code="NotImplemented")])
async def test_conditional_put_is_not_supported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, refusal: PermanentS3Error | None
) -> None:
    bench.bucket()
    client = bench.client()
    if refusal is None:
        put = client.put

        async def ignoring(key: str, body: bytes, *, if_none_match: bool = False) -> object:
            return await put(key, body)

        monkeypatch.setattr(client, "put", ignoring)
    else:
        bench.script.on("put", nth=2).raises(refusal)
    answer = await prepare_store(client, prefix="", keying=Keying.DIGEST)
    assert not answer.conditional_put
    assert bench.keys() == set()


async def test_bucket_says_versioning_and_gives_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.bucket()
    client = bench.client()

    async def claims() -> bool:
        await trio.lowlevel.checkpoint()
        return True

    monkeypatch.setattr(client, "versioning_enabled", claims)
    with pytest.raises(UsageError, match="gave no version id"):
        await prepare_store(client, prefix="", keying=Keying.VERSIONED)
    assert bench.keys() == set()


async def test_bucket_damages_what_it_is_given(bench: Bench) -> None:
    bench.bucket()
    bench.script.on("get").flips_byte()
    with pytest.raises(UsageError, match="does not give back the bytes"):
        await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
    assert bench.keys() == set()


async def test_not_allowed_to_write_or_read(bench: Bench) -> None:
    bench.bucket()
    operations: tuple[Literal["put", "get"], ...] = ("put", "get")
    for operation in operations:
        bench.script.clear()
        bench.script.on(operation).raises(AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
        assert bench.keys() == set()


async def test_lost_answers_and_repetitions_leave_nothing(bench: Bench) -> None:
    bench.bucket(versioning=True)
    fault = bench.script.on("put", nth=1).applies_then_raises(TransientS3Error("reset"))
    with pytest.raises(TransientS3Error):
        await prepare_store(bench.client(), prefix="p/", keying=Keying.VERSIONED)
    assert fault.hits == 1
    assert bench.keys() == set()
    await prepare_store(bench.client(), prefix="p/", keying=Keying.VERSIONED)
    assert bench.keys() == set()


async def test_interrupted_probe_leaves_nothing(bench: Bench) -> None:
    bench.bucket()
    stall = bench.script.on("get").stalls()
    async with trio.open_nursery() as nursery:

        async def prepare() -> None:
            await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)

        nursery.start_soon(prepare)
        await stall.arrived.wait()
        assert len(bench.keys()) == 1
        nursery.cancel_scope.cancel()
    assert bench.keys() == set()


@pytest.mark.expected_log("the probe object .* may be left")
async def test_not_allowed_to_delete(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.bucket()
    bench.script.on("delete").raises(AccessDenied("no deletions"))
    with pytest.raises(AccessDenied, match="no deletions"):
        await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
    bench.script.on("get").raises(AccessDenied("no reads"))
    with caplog.at_level(logging.WARNING), pytest.raises(AccessDenied, match="no reads"):
        await prepare_store(bench.client(), prefix="", keying=Keying.DIGEST)
    assert "may be left" in caplog.text


def test_keying_decides_the_store(bench: Bench) -> None:
    for keying, kind in ((Keying.DIGEST, DigestBlobStore), (Keying.VERSIONED, VersionedBlobStore)):
        store = open_store(bench.config(keying), bench.client(), bench.tracer)
        assert isinstance(store, kind)
