"""Rows about names, and copies."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from benchlib.content import SMALL_BYTES, WrongBytes, compare, read_file, small_contents, write_file
from benchlib.measure import Unit, Watch
from benchlib.place import Place, one_by_one
from benchlib.row import row
from benchlib.volume import Volume

_MTIME_S = 1_600_000_000
_TAR_TIMEOUT_S = 300

# -- names ---------------------------------------------------------------------------------------------


@row("list a directory and stat what is in it, nothing cached", Unit.OPERATIONS)
def list_cold(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _list(watch, paths)


@row("list it and stat again", Unit.OPERATIONS)
def list_hot(place: Place, watch: Watch) -> int:
    paths = place.small_files
    _list_and_stat(paths[0].parent)
    return _list(watch, paths)


def _list(watch: Watch, paths: list[Path]) -> int:
    with watch():
        sizes = _list_and_stat(paths[0].parent)
    if sizes != [SMALL_BYTES] * len(paths):
        raise WrongBytes(f"{paths[0].parent}: {len(sizes)} names, of {sum(sizes)} bytes together")
    return len(sizes)


def _list_and_stat(directory: Path) -> list[int]:
    with os.scandir(directory) as entries:
        return [entry.stat().st_size for entry in entries]


@row("make directories", Unit.OPERATIONS)
def mkdir(place: Place, watch: Watch) -> int:
    paths = _directories(place, "made")
    with watch():
        for path in paths:
            path.mkdir()
    return len(paths)


@row("rename directories", Unit.OPERATIONS)
def rename(place: Place, watch: Watch) -> int:
    paths = _directories(place, "renamed", make=True)
    with watch():
        for path in paths:
            path.rename(path.with_suffix(".new"))
    return len(paths)


@row("remove directories", Unit.OPERATIONS)
def rmdir(place: Place, watch: Watch) -> int:
    paths = _directories(place, "removed", make=True)
    with watch():
        for path in paths:
            path.rmdir()
    return len(paths)


def _directories(place: Place, name: str, *, make: bool = False) -> list[Path]:
    place.path(name).mkdir()
    paths = [place.path(name) / str(number) for number in range(place.scale.directories)]
    if make:
        one_by_one(Path.mkdir, paths)
    return paths


@row("rename a tree", Unit.OPERATIONS)
def rename_tree(place: Place, watch: Watch) -> int:
    tree, contents = place.path("tree"), small_contents(f"{place.seed}, tree", place.scale.tree_files)
    names = _tree_names(len(contents))
    for name, content in zip(names, contents, strict=True):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(tree / name, content)
    with watch():
        end = time.perf_counter() + place.scale.tree_renames_s
        for count in range(1, place.scale.directories + 1):
            tree = tree.rename(place.path(f"tree-{count}"))
            if time.perf_counter() > end:
                break
    compare(((tree / name).read_bytes() for name in names), contents, tree)
    return count


def _tree_names(count: int) -> list[str]:
    """Of files, in ten directories."""
    return [f"{number % 10}/{number}" for number in range(count)]


@row("make, rename and remove directories", Unit.OPERATIONS)
def directories(place: Place, watch: Watch) -> int:
    paths = _directories(place, "directories")
    with watch():
        one_by_one(Path.mkdir, paths)
        renamed = [path.rename(path.with_suffix(".new")) for path in paths]
        one_by_one(Path.rmdir, renamed)
    return 3 * len(paths)


@row("unpack small files with tar", Unit.OPERATIONS)
def untar(place: Place, watch: Watch) -> int:
    contents = small_contents(f"{place.seed}, tar", place.scale.small_files)
    names = _tree_names(len(contents))
    target = place.path("unpacked")
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="s3blobfs-bench-tar-") as directory:
        archive = Path(directory) / "archive.tar"
        with tarfile.open(archive, "w") as tar:
            for name, content in zip(names, contents, strict=True):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), _MTIME_S
                tar.addfile(member, io.BytesIO(content))
        with watch(stores=[target / name for name in names]):
            subprocess.run(["tar", "-xf", archive, "-C", target], check=True, timeout=_TAR_TIMEOUT_S)
    compare(((target / name).read_bytes() for name in names), contents, target)
    return len(names)


# -- copies and the end --------------------------------------------------------------------------------


@row("copy the large file, cached, with cp", Unit.BYTES)
def copy(place: Place, watch: Watch) -> int:
    source, target = place.large_file, place.path("copy")
    read_file(source, place.buffer)
    with watch(stores=[target]):
        subprocess.run(["cp", source, target], check=True)
    read_file(target, place.buffer)
    compare([place.buffer], [place.large_content], target)
    return place.scale.large_bytes


@row("copy the large file with s3blobfs cp", Unit.BYTES, volumes_only=True)
def copy_direct(place: Place, watch: Watch) -> int:
    source, target = place.large_file, place.path("direct")
    assert isinstance(place.target, Volume)
    with watch():
        place.target.run("cp", source, target)
    read_file(target, place.buffer)
    compare([place.buffer], [place.large_content], target)
    return place.scale.large_bytes


@row("copy the small files with s3blobfs cp -r", Unit.OPERATIONS, volumes_only=True)
def copy_small_direct(place: Place, watch: Watch) -> int:
    paths = place.small_files
    target = place.path("small-direct")
    assert isinstance(place.target, Volume)
    with watch():
        place.target.run("cp", "-r", paths[0].parent, target)
    compare(((target / path.name).read_bytes() for path in paths), place.small_contents, target)
    return len(paths)


@row("remove small files", Unit.OPERATIONS)
def unlink(place: Place, watch: Watch) -> int:
    paths = place.small_files
    with watch():
        one_by_one(Path.unlink, paths)
    place.keep_small_files([])
    paths[0].parent.rmdir()
    return len(paths)
