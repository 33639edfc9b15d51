"""The stamp on objects: what is written is read back, and what anybody writes is survived."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3blobfs.blobstore import metadata
from s3blobfs.s3.limits import check_tags
from s3blobfs.tier.digest import content_digests
from s3blobfs.types import ObjectHint
from tests.blobstore.bench import FOO, HINT

DIGESTS = content_digests(FOO)

_names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
_paths = st.lists(_names, min_size=1, max_size=20).map(b"/".join)
_hints = st.builds(
    ObjectHint,
    inode_id=st.integers(1, 2**63 - 1),
    path=_paths,
    mode=st.integers(0, 0o177777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
)


@given(_hints)
def test_round_trip_within_the_limit(hint: ObjectHint) -> None:
    encoded = metadata.encode("w1", hint, DIGESTS)
    assert metadata.encoded_size(encoded) <= metadata.METADATA_MAX_BYTES
    assert all(value.isascii() and value.isprintable() for value in encoded.values())
    stamp = metadata.decode(encoded)
    assert stamp.matches(DIGESTS)
    assert stamp.write_id == "w1"
    assert (stamp.inode_id, stamp.mode, stamp.uid) == (hint.inode_id, hint.mode, hint.uid)
    assert (stamp.gid, stamp.mtime_ns) == (hint.gid, hint.mtime_ns)
    assert stamp.path is not None
    if stamp.path_is_whole:
        assert stamp.path == hint.path
    else:
        assert hint.path.endswith(b"/" + stamp.path)


@given(st.dictionaries(st.sampled_from([*metadata.encode("w", HINT, DIGESTS)]), st.text()))
def test_any_metadata_is_survived(found: dict[str, str]) -> None:
    stamp = metadata.decode(found)
    assert not stamp.matches(DIGESTS)
    for part in (stamp.path or b"x").split(b"/"):
        assert part not in (b"", b".", b"..")


@given(_hints, _hints)
def test_early_stamps_are_completed_by_a_tag(begun: ObjectHint, ended: ObjectHint) -> None:
    encoded = metadata.encode_early("w1", begun)
    assert metadata.encoded_size(encoded) <= metadata.METADATA_MAX_BYTES
    early = metadata.decode(encoded)
    assert early.in_tag and early.is_ours and not early.has_digests
    assert not early.matches(DIGESTS)
    assert (early.write_id, early.inode_id, early.mtime_ns) == ("w1", begun.inode_id, begun.mtime_ns)
    tags = metadata.encode_tag(DIGESTS, ended, 17)
    assert check_tags(tags) == tags
    stamp = metadata.complete(early, {**tags, "somebody's": "else"})
    assert stamp.matches(DIGESTS)
    assert stamp.md5 == DIGESTS.md5
    assert (stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns) == (
        *(ended.mode, ended.uid, ended.gid, ended.mtime_ns),
    )
    assert (stamp.path, stamp.write_id, stamp.done_ns) == (early.path, "w1", 17)


def test_a_tag_without_attributes_leaves_those_of_the_beginning() -> None:
    early = metadata.decode(metadata.encode_early("w1", HINT))
    stamp = metadata.complete(early, metadata.encode_tag(DIGESTS, None, 17))
    assert stamp.matches(DIGESTS)
    assert (stamp.mode, stamp.uid, stamp.mtime_ns) == (HINT.mode, HINT.uid, HINT.mtime_ns)


@given(st.text())
def test_any_tag_is_survived(value: str) -> None:
    early = metadata.decode(metadata.encode_early("w1", HINT))
    for tags in ({metadata.TAG: value}, {metadata.TAG: f"md5={value}"}, {value: value}):
        assert not metadata.complete(early, tags).matches(DIGESTS)


def test_a_tag_of_the_greatest_size_fits() -> None:
    hint = ObjectHint(2**63 - 1, b"x", 0o177777, 2**32 - 1, 2**32 - 1, -(2**63))
    check_tags(metadata.encode_tag(replace(DIGESTS, size_bytes=2**63 - 1), hint, 2**63 - 1))


def test_formats_that_other_tools_read() -> None:
    encoded = metadata.encode("w1", HINT, DIGESTS)
    assert encoded["file-permissions"] == "0100644"
    assert encoded["file-owner"] == "1000"
    assert encoded["file-group"] == "100"
    assert encoded["file-mtime"] == "1600000000000000000ns"


def test_short_path_is_whole_and_long_one_keeps_its_end() -> None:
    whole = metadata.decode(metadata.encode("w1", HINT, DIGESTS))
    assert (whole.path, whole.path_is_whole) == (b"dir/file", True)
    deep = replace(
        HINT, path=b"/".join([b"directory%d" % number for number in range(500)] + [b"\xff\n name"])
    )
    cut = metadata.decode(metadata.encode("w1", deep, DIGESTS))
    assert cut.path is not None
    assert not cut.path_is_whole
    assert cut.path.endswith(b"/directory499/\xff\n name")


def test_inode_without_a_name() -> None:
    stamp = metadata.decode(metadata.encode("w1", replace(HINT, path=b""), DIGESTS))
    assert stamp.path is None


def test_name_that_is_too_long_for_any_filesystem() -> None:
    encoded = metadata.encode("w1", replace(HINT, path=b"\xff" * 3000), DIGESTS)
    assert metadata.encoded_size(encoded) <= metadata.METADATA_MAX_BYTES
    assert metadata.decode(encoded).path is None


@pytest.mark.parametrize("write_id", ["", "a b", "ü", "a\nb", "x" * 65])
def test_write_ids_that_cannot_be(write_id: str) -> None:
    with pytest.raises(ValueError, match="not a write id"):
        metadata.encode(write_id, HINT, DIGESTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (metadata.INODE, "0"),
        (metadata.INODE, "9" * 19),
        (metadata.INODE, "-1"),
        (metadata.INODE, "٣"),
        (metadata.OWNER, str(2**32)),
        (metadata.PERMISSIONS, "rw-r--r--"),
        (metadata.MTIME, "12"),
        (metadata.PATH, "../../etc/passwd"),
        (metadata.PATH, "a%00b"),
        (metadata.PATH, "/absolute"),
        (metadata.PATH, "ü"),
        (metadata.SHA256, "00"),
        (metadata.MD5, "Z" * 32),
        (metadata.SIZE, "1e3"),
    ],
)
def test_malformed_values_are_none(name: str, value: str) -> None:
    stamp = metadata.decode({name: value})
    assert stamp == metadata.decode({})
