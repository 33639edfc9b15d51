"""What is measured at the mount point (and in a plain directory): one function a row.

A row prepares, puts ``with watch():`` around what counts, compares what was read, and answers the bytes or
operations that it measured.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchlib.content import (
    SMALL_BYTES,
    compare,
    large_content,
    random_offsets,
    read_file,
    read_pieces,
    read_small_file,
    write_file,
)
from benchlib.measure import Unit, Watch
from benchlib.place import Place, in_threads, one_by_one
from benchlib.volume import Volume
from s3blobfs.config import KIB, MIB

Work = Callable[[Place, Watch], int]
ForEach = Callable[[Callable[[int], object], range], None]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    """As ``--rows`` takes it."""
    title: str
    unit: Unit
    work: Work
    volumes_only: bool = False
    """There is no such thing on a plain disk."""


ROWS: dict[str, Row] = {}
"""In the order in which a round does them."""


def _row(title: str, unit: Unit, *, volumes_only: bool = False) -> Callable[[Work], Work]:
    def register(work: Work) -> Work:
        name = work.__name__.replace("_", "-")
        ROWS[name] = Row(name, title, unit, work, volumes_only)
        return work

    return register


# -- one large file ------------------------------------------------------------------------------------


@_row("write a large file, until close returns", Unit.BYTES)
def large_write(place: Place, watch: Watch) -> int:
    content, path = place.large_content, place.path("large")
    with watch():
        write_file(path, content)
    return len(content)


@_row("write the same content again", Unit.BYTES)
def large_write_again(place: Place, watch: Watch) -> int:
    content, _ = place.large_content, place.large_file
    with watch():
        write_file(place.path("same"), content)
    return len(content)


@_row("write a large file in pieces of 4 KiB", Unit.BYTES)
def large_write_pieces(place: Place, watch: Watch) -> int:
    content = large_content(f"{place.seed}, pieces", place.scale.large_bytes // 4)
    with watch():
        write_file(place.path("pieces"), content, 4 * KIB)
    return len(content)


@_row("read it, nothing cached", Unit.BYTES)
def large_read_cold(place: Place, watch: Watch) -> int:
    path = place.large_file
    place.forget_everything()
    return _read_large(place, watch, path)


@_row("read it from the local cache", Unit.BYTES)
def large_read_local(place: Place, watch: Watch) -> int:
    path = place.large_file
    read_file(path, place.buffer)
    place.forget_in_kernel()
    return _read_large(place, watch, path)


@_row("read it from the kernel's cache", Unit.BYTES)
def large_read_kernel(place: Place, watch: Watch) -> int:
    path = place.large_file
    read_file(path, place.buffer)
    return _read_large(place, watch, path)


def _read_large(place: Place, watch: Watch, path: Path) -> int:
    buffer = place.buffer
    with watch():
        read_file(path, buffer)
    compare([buffer], [place.large_content], path)
    return len(buffer)


@_row("read 4 KiB at random places, local cache", Unit.OPERATIONS)
def random_read_local(place: Place, watch: Watch) -> int:
    path = place.large_file
    read_file(path, place.buffer)
    place.forget_in_kernel()
    offsets = random_offsets(place.seed, place.scale.large_bytes, place.scale.pieces)
    with watch():
        found = read_pieces(path, offsets)
    compare(found, (place.large_content[offset : offset + SMALL_BYTES] for offset in offsets), path)
    return len(offsets)


@_row("open it and read 4 KiB in the middle, nothing cached", Unit.OPERATIONS)
def middle_read_cold(place: Place, watch: Watch) -> int:
    path = place.large_file
    place.forget_everything()
    offset = middle(place.scale.large_bytes)
    with watch():
        found = read_pieces(path, [offset])
    compare(found, [place.large_content[offset : offset + SMALL_BYTES]], path)
    return 1


def middle(size_bytes: int) -> int:
    return size_bytes // 2 // SMALL_BYTES * SMALL_BYTES


@_row("append 4 KiB to a file of 1 MiB, and close", Unit.OPERATIONS)
def append(place: Place, watch: Watch) -> int:
    first = large_content(f"{place.seed}, append", MIB)
    pieces = [bytes([65 + number % 26]) * SMALL_BYTES for number in range(place.scale.appends)]
    path = place.path("appended")
    write_file(path, first)
    with watch():
        for piece in pieces:
            with path.open("ab", buffering=0) as file:
                file.write(piece)
    compare([path.read_bytes()], [first + b"".join(pieces)], path)
    return len(pieces)


# -- many small files ----------------------------------------------------------------------------------


@_row("write small files", Unit.OPERATIONS)
def small_write(place: Place, watch: Watch) -> int:
    paths = place.new_small_files("small")
    place.keep_small_files(paths)
    contents = place.small_contents
    with watch():
        for path, content in zip(paths, contents, strict=True):
            write_file(path, content)
    return len(paths)


@_row("write small files, 16 threads", Unit.OPERATIONS)
def small_write_threads(place: Place, watch: Watch) -> int:
    paths = place.new_small_files("small-threads")
    contents = [content[::-1] for content in place.small_contents]
    with watch():
        in_threads(lambda number: write_file(paths[number], contents[number]), range(len(paths)))
    return len(paths)


@_row("read small files, nothing cached", Unit.OPERATIONS)
def small_read_cold(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _read_small(place, watch, paths, one_by_one)


@_row("read small files, nothing cached, 16 threads", Unit.OPERATIONS)
def small_read_cold_threads(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _read_small(place, watch, paths, in_threads)


@_row("read small files from the local cache", Unit.OPERATIONS)
def small_read_local(place: Place, watch: Watch) -> int:
    paths = place.small_files
    in_threads(read_small_file, paths)
    place.forget_in_kernel()
    return _read_small(place, watch, paths, one_by_one)


@_row("read small files from the local cache, 16 threads", Unit.OPERATIONS)
def small_read_local_threads(place: Place, watch: Watch) -> int:
    paths = place.small_files
    in_threads(read_small_file, paths)
    place.forget_in_kernel()
    return _read_small(place, watch, paths, in_threads)


@_row("read small files from the kernel's cache", Unit.OPERATIONS)
def small_read_kernel(place: Place, watch: Watch) -> int:
    paths = place.small_files
    in_threads(read_small_file, paths)
    return _read_small(place, watch, paths, one_by_one)


def _read_small(place: Place, watch: Watch, paths: list[Path], for_each: ForEach) -> int:
    found = [b""] * len(paths)

    def read(number: int) -> None:
        found[number] = read_small_file(paths[number])

    with watch():
        for_each(read, range(len(paths)))
    compare(found, place.small_contents, "small files")
    return len(paths)


# -- names ---------------------------------------------------------------------------------------------


@_row("list a directory and stat what is in it, nothing cached", Unit.OPERATIONS)
def list_cold(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _list(watch, paths)


@_row("list it and stat again", Unit.OPERATIONS)
def list_hot(place: Place, watch: Watch) -> int:
    paths = place.small_files
    _list_and_stat(paths[0].parent)
    return _list(watch, paths)


def _list(watch: Watch, paths: list[Path]) -> int:
    with watch():
        sizes = _list_and_stat(paths[0].parent)
    assert sizes == [SMALL_BYTES] * len(paths)
    return len(sizes)


def _list_and_stat(directory: Path) -> list[int]:
    with os.scandir(directory) as entries:
        return [entry.stat().st_size for entry in entries]


@_row("make directories", Unit.OPERATIONS)
def mkdir(place: Place, watch: Watch) -> int:
    paths = _directories(place, "made")
    with watch():
        for path in paths:
            path.mkdir()
    return len(paths)


@_row("rename directories", Unit.OPERATIONS)
def rename(place: Place, watch: Watch) -> int:
    paths = _directories(place, "renamed", make=True)
    with watch():
        for path in paths:
            path.rename(path.with_suffix(".new"))
    return len(paths)


@_row("remove directories", Unit.OPERATIONS)
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


@_row("rename a tree", Unit.OPERATIONS)
def rename_tree(place: Place, watch: Watch) -> int:
    tree, count = place.path("tree"), place.scale.directories
    for number in range(place.scale.tree_files):
        branch = tree / str(number % 10)
        branch.mkdir(parents=True, exist_ok=True)
        (branch / str(number)).touch()
    with watch():
        for number in range(count):
            tree = tree.rename(place.path(f"tree-{number}"))
    assert sum(1 for path in tree.rglob("*") if path.is_file()) == place.scale.tree_files
    return count


# -- copies and the end --------------------------------------------------------------------------------


@_row("copy the large file, cached, with cp", Unit.BYTES)
def copy(place: Place, watch: Watch) -> int:
    source, target = place.large_file, place.path("copy")
    read_file(source, place.buffer)
    with watch():
        subprocess.run(["cp", source, target], check=True)
    read_file(target, place.buffer)
    compare([place.buffer], [place.large_content], target)
    return place.scale.large_bytes


@_row("copy the large file with s3blobfs cp", Unit.BYTES, volumes_only=True)
def copy_direct(place: Place, watch: Watch) -> int:
    source, target = place.large_file, place.path("direct")
    assert isinstance(place.target, Volume)
    with watch():
        place.target.run("cp", source, target)
    read_file(target, place.buffer)
    compare([place.buffer], [place.large_content], target)
    return place.scale.large_bytes


@_row("copy the small files with s3blobfs cp -r", Unit.OPERATIONS, volumes_only=True)
def copy_small_direct(place: Place, watch: Watch) -> int:
    paths = place.small_files
    target = place.path("small-direct")
    assert isinstance(place.target, Volume)
    with watch():
        place.target.run("cp", "-r", paths[0].parent, target)
    compare(((target / path.name).read_bytes() for path in paths), place.small_contents, target)
    return len(paths)


@_row("remove small files", Unit.OPERATIONS)
def unlink(place: Place, watch: Watch) -> int:
    paths = place.small_files
    with watch():
        one_by_one(Path.unlink, paths)
    place.keep_small_files([])
    paths[0].parent.rmdir()
    return len(paths)
