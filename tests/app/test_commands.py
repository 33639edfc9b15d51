"""Commands about a mounted volume: status, sync, cp, store, trace."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from s3blobfs.config import GIB
from tests.app.commands import CommandLine

FOO, BAR = "acbd18db4cc2f85cedef654fccc4a4d8", "37b51d194a7513e45b56f6524f2d51f2"


def counts(volume: CommandLine) -> dict[str, int]:
    found: dict[str, int] = volume.status()["counts"]
    return {name: count for name, count in found.items() if name.startswith("s3.")}


# --- status and sync ----------------------------------------------------------------------------------


def test_status(mounted: CommandLine) -> None:
    (mounted.mountpoint / "a").write_bytes(b"foo")
    (mounted.mountpoint / "d").mkdir()
    status = mounted.status()
    assert status["volume"]["uri"] == f"{mounted.uri}/"
    assert status["mount"]["mountpoint"] == str(mounted.mountpoint)
    assert status["mount"]["pid"] == mounted.daemon().pid
    assert status["mount"]["durability"] == "s3"
    assert status["uploads"] == {
        "files": 0, "bytes": 0, "oldest_ns": None, "in_flight": 0, "last_error": None, "writers": "free",
        "limit_files": 10_000, "limit_bytes": 4 * GIB, "limit_age_s": 3600.0,
    }  # fmt: skip
    assert status["tier"]["cached_bytes"] == 3
    assert status["counts"]["s3.put"] == 1
    # From any path on the volume, for people too.
    shown = mounted.ok("status", mounted.mountpoint / "d")
    assert str(mounted.paths.index) in shown.replace("\n", "").replace(" ", "")
    assert json.loads(mounted.ok("status", mounted.mountpoint / "a", "--json"))["volume"] == status["volume"]


def test_sync(volume: CommandLine) -> None:
    volume.mkfs("--durability", "disk")
    volume.mount()
    with (volume.mountpoint / "open").open("wb", buffering=0) as open_file:
        open_file.write(b"foo")
        (volume.mountpoint / "closed").write_bytes(b"bar")
        volume.ok("sync", volume.mountpoint / "open")
        assert counts(volume)["s3.put"] >= 1
        volume.ok("sync", volume.mountpoint)
        status = volume.status()
        assert status["uploads"]["files"] == 0
        assert status["filesystem"]["dirty_files"] == 0
        assert status["counts"]["s3.put"] == 2
    volume.umount()


def test_paths_that_are_on_no_volume(tmp_path: Path, volume: CommandLine) -> None:
    for command in (("status", tmp_path), ("sync", tmp_path), ("store", "list", tmp_path)):
        assert volume.refused(*command) == f"{tmp_path} is not on a mounted s3blobfs volume"
    assert "No such file" in volume.refused("status", tmp_path / "missing")


# --- cp -----------------------------------------------------------------------------------------------


def test_copy_costs_no_request(mounted: CommandLine) -> None:
    source = mounted.mountpoint / "a"
    source.write_bytes(b"foo")
    source.chmod(0o640)
    before = counts(mounted)
    copy = mounted.mountpoint / "copy"
    assert not copy.exists()  # the kernel now knows that there is none
    mounted.ok("cp", source, copy)
    assert copy.read_bytes() == b"foo"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    assert counts(mounted) == before


def test_copy_replaces_or_not(mounted: CommandLine) -> None:
    a, b = mounted.mountpoint / "a", mounted.mountpoint / "b"
    a.write_bytes(b"foo")
    b.write_bytes(b"something longer")
    mounted.ok("cp", "-n", a, b)
    assert b.read_bytes() == b"something longer"
    mounted.ok("cp", a, b)
    assert b.read_bytes() == b"foo"
    assert b.stat().st_size == 3


def test_copy_of_a_tree(mounted: CommandLine) -> None:
    tree = mounted.mountpoint / "tree"
    (tree / "closed").mkdir(parents=True)
    (tree / "empty").touch()
    (tree / "closed" / os.fsdecode(b"n\xff\n")).write_bytes(b"foo")
    (tree / "link").symlink_to("closed")
    os.mkfifo(tree / "fifo", 0o600)
    (tree / "closed").chmod(0o500)
    mounted.ok("cp", "-r", tree, mounted.mountpoint / "copy")
    copy = mounted.mountpoint / "copy"
    assert sorted(os.listdir(copy)) == sorted(os.listdir(tree))
    assert (copy / "closed" / os.fsdecode(b"n\xff\n")).read_bytes() == b"foo"
    assert (copy / "link").readlink() == Path("closed")
    assert stat.S_ISFIFO((copy / "fifo").lstat().st_mode)
    assert stat.S_IMODE((copy / "closed").stat().st_mode) == 0o500
    # Into a directory that exists, and once more over what is there.
    for _ in range(2):
        mounted.ok("cp", "-r", copy, tree / "empty", mounted.mountpoint / "tree" / "closed")
    assert (tree / "closed" / "copy" / "closed" / os.fsdecode(b"n\xff\n")).read_bytes() == b"foo"


def test_copies_that_cannot_be(tmp_path: Path, mounted: CommandLine) -> None:
    (tmp_path / "foreign").touch()
    (mounted.mountpoint / "a").write_bytes(b"foo")
    (mounted.mountpoint / "d").mkdir()
    mnt = mounted.mountpoint
    for arguments, message in (
        ((tmp_path / "foreign", mnt / "x"), f"is not on the volume mounted at {mnt}"),
        ((mnt / "a", tmp_path / "x"), "is not on a mounted s3blobfs volume"),
        ((mnt / "missing", mnt / "x"), "missing: No such file or directory"),
        ((mnt / "d", mnt / "x"), "is a directory; copy it with -r"),
        (("-r", mnt / "d", mnt / "d" / "x"), "cannot be copied into itself"),
        ((mnt / "a", mnt / "a"), "are the same file"),
        ((mnt / "a", mnt / "d", mnt / "x"), "is not a directory, and there are several sources"),
        ((mnt / "a", mnt / "no" / "x"), "No such file or directory"),
    ):
        assert message in mounted.refused("cp", *arguments)
    assert sorted(os.listdir(mnt)) == ["a", "d"]


# --- stores -------------------------------------------------------------------------------------------


def test_second_store(mounted: CommandLine) -> None:
    other = mounted.mountpoint / "other"
    other.mkdir()
    mounted.ok(
        "store", "add", mounted.mountpoint, "other", f"{mounted.uri}/other", "--mode", "versioned",
        "--no-cache", "--at", other,
    )  # fmt: skip
    (other / "a").write_bytes(b"foo")
    listed = mounted.ok("store", "list", mounted.mountpoint)
    assert [line.split() for line in listed.splitlines()[1:]] == [
        ["default", f"{mounted.uri}/", "digest", "(md5)", "yes", "/"],
        ["other", f"{mounted.uri}/other/", "versioned", "no", "/other"],
    ]
    mounted.umount()
    mounted.mount()
    assert (other / "a").read_bytes() == b"foo"
    assert [store["name"] for store in mounted.status()["stores"]] == ["default", "other"]


def test_stores_that_cannot_be(mounted: CommandLine) -> None:
    mnt, uri = mounted.mountpoint, mounted.uri
    (mnt / "file").touch()
    assert "the volume has a store 'default' already" in mounted.refused(
        "store", "add", mnt, "default", f"{uri}/x"
    )
    assert "is the store 'default' already" in mounted.refused("store", "add", mnt, "x", uri)
    assert "does not exist" in mounted.refused("store", "add", mnt, "x", "s3://no-such-bucket-here")
    assert "is not a directory" in mounted.refused("store", "add", mnt, "x", f"{uri}/x", "--at", mnt / "file")
    assert "has no store 'x'" in mounted.refused("store", "bind", mnt, "x")
    assert "the root of the volume stays" in _bind_root(mounted)
    assert len(mounted.status()["stores"]) == 2


def _bind_root(mounted: CommandLine) -> str:
    mounted.ok("store", "add", mounted.mountpoint, "other", f"{mounted.uri}/other")
    return mounted.refused("store", "bind", mounted.mountpoint, "other")


def test_index_older_than_the_bucket(mounted: CommandLine) -> None:
    mounted.umount()
    old = mounted.paths.index.read_bytes()
    mounted.mount()
    mounted.ok("store", "add", mounted.mountpoint, "other", f"{mounted.uri}/other")
    mounted.umount()
    mounted.paths.index.write_bytes(old)
    line = mounted.refused("mount", mounted.uri, mounted.mountpoint, *mounted.s3)
    assert "the index is an older copy" in line


# --- traces -------------------------------------------------------------------------------------------


def test_trace_of_a_versioned_volume(volume: CommandLine) -> None:
    """The last steps of a deletion: neither the cache nor S3 has the version any more."""
    volume.mkfs("--mode", "versioned")
    volume.mount("--trace-client", "Nuxeo")
    trace = volume.directory / "trace.puml"
    mnt = volume.mountpoint
    volume.ok("trace", mnt, "start", trace)
    volume.ok("trace", mnt, "section", "Write")
    (mnt / "a").write_bytes(b"foo")
    stored = trace.read_text().split("hnote right of Cache: ")[-1].strip()
    assert "@" in stored
    assert volume.ok("trace", mnt, "blob", stored) == "in the cache; in S3 (3 B)\n"
    (mnt / "a").unlink()
    volume.ok("sync", mnt)
    lines = _wait_for(trace, "deleteVersion")
    assert volume.ok("trace", mnt, "blob", stored) == "not in the cache; not in S3\n"
    assert volume.ok("trace", mnt, "stop") == f"the diagram is {trace}\n"
    object_id, version = stored.split("@")
    indent = " " * 32
    assert trace.read_text().splitlines()[len(lines) - 1 :][-5:] == [
        "Nuxeo <-- Cache: missing",
        f"{indent}hnote right: {stored}",
        "Nuxeo <-- S3: missing",
        f"{indent}hnote right: files/{object_id} v={version}",
        "@enduml",
    ]
    assert volume.ok("trace", mnt, "stop") == "no diagram was being drawn\n"


def _wait_for(trace: Path, text: str) -> list[str]:
    import time

    deadline = time.monotonic() + 20
    while text not in trace.read_text():
        assert time.monotonic() < deadline, trace.read_text()
        time.sleep(0.05)
    return trace.read_text().splitlines()


@pytest.mark.parametrize("cached", [True, False])
def test_blobs_of_a_digest_store(volume: CommandLine, cached: bool) -> None:
    volume.mkfs("--cache" if cached else "--no-cache")
    volume.mount()
    (volume.mountpoint / "a").write_bytes(b"foo")
    assert hashlib.md5(b"foo").hexdigest() == FOO
    where = "in the cache" if cached else "the store is not cached"
    assert volume.ok("trace", volume.mountpoint, "blob", FOO) == f"{where}; in S3 (3 B)\n"
    where = "not in the cache" if cached else "the store is not cached"
    assert volume.ok("trace", volume.mountpoint, "blob", BAR) == f"{where}; not in S3\n"


def test_traces_that_cannot_be(mounted: CommandLine) -> None:
    mnt = mounted.mountpoint
    assert "no trace is being drawn" in mounted.refused("trace", mnt, "section", "Write")
    assert "cannot write the trace" in mounted.refused("trace", mnt, "start", "/nonexistent/trace")
    assert "has no store 'x'" in mounted.refused("trace", mnt, "blob", "--store", "x", FOO)
    mounted.ok("trace", mnt, "start", mounted.directory / "a")
    assert "a trace is being written to" in mounted.refused("trace", mnt, "start", mounted.directory / "b")
