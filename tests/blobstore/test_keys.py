from __future__ import annotations

import pytest

from s3blobfs.blobstore import keys
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import DigestAlgorithm
from tests.blobstore.bench import FOO, FOO_MD5

SHA256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


def test_names_of_a_content() -> None:
    digests = content_digests(FOO)
    assert keys.digest_name(digests, DigestAlgorithm.MD5) == FOO_MD5
    assert keys.digest_name(digests, DigestAlgorithm.SHA256) == SHA256
    assert keys.collision_name(digests, DigestAlgorithm.MD5) == f"{FOO_MD5}-{SHA256}"
    assert keys.collision_name(digests, DigestAlgorithm.SHA256) == f"{SHA256}-{FOO_MD5}"


def test_new_object_ids_are_ids_and_differ() -> None:
    ids = {keys.new_object_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(keys.is_object_id(each) for each in ids)


@pytest.mark.parametrize("text", ["", "a@b", "a/b", ".hidden", "a b", "a\n", "ü", "x" * 129])
def test_no_object_id(text: str) -> None:
    assert not keys.is_object_id(text)


def test_cache_names_have_no_prefix() -> None:
    location = keys.versioned_location("other/", "id2", "Xy.z_-1")
    assert (location.object_key, location.version_id) == ("other/id2", "Xy.z_-1")
    assert location.cache_name == "id2@Xy.z_-1"
    assert keys.digest_location("other/", FOO_MD5).cache_name == FOO_MD5


def test_odd_version_ids_make_harmless_cache_names() -> None:
    location = keys.versioned_location("", "id1", "../v@1")
    assert location.version_id == "../v@1"
    assert location.cache_name == "id1@..%2Fv%401"


def test_subjects() -> None:
    assert keys.subject(keys.versioned_location("p/", "id1", "v1")) == "p/id1 v=v1"
    assert keys.subject(keys.digest_location("p/", FOO_MD5)) == f"p/{FOO_MD5}"
