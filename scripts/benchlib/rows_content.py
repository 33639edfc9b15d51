"""Rows that write and read contents: of one large file, and of many small ones."""

from __future__ import annotations

from pathlib import Path

from benchlib.content import (
    SMALL_BYTES,
    compare,
    large_content,
    middle,
    random_offsets,
    read_file,
    read_pieces,
    read_small_file,
    write_file,
)
from benchlib.measure import Unit, Watch
from benchlib.place import Place, in_threads, one_by_one
from benchlib.row import ForEach, row
from s3blobfs.config import KIB, MIB

# -- one large file ------------------------------------------------------------------------------------


@row("write a large file", Unit.BYTES)
def large_write(place: Place, watch: Watch) -> int:
    content, path = place.large_content, place.path("large")
    with watch(stores=[path]):
        write_file(path, content)
    return len(content)


@row("write the same content again", Unit.BYTES)
def large_write_again(place: Place, watch: Watch) -> int:
    content, _, path = place.large_content, place.large_file, place.path("same")
    with watch(stores=[path]):
        write_file(path, content)
    return len(content)


@row("write a large file in pieces of 4 KiB", Unit.BYTES)
def large_write_pieces(place: Place, watch: Watch) -> int:
    content, path = large_content(f"{place.seed}, pieces", place.scale.large_bytes // 4), place.path("pieces")
    with watch(stores=[path]):
        write_file(path, content, 4 * KIB)
    return len(content)


@row("read it, nothing cached", Unit.BYTES)
def large_read_cold(place: Place, watch: Watch) -> int:
    path = place.large_file
    place.forget_everything()
    return _read_large(place, watch, path)


@row("read it from the local cache", Unit.BYTES)
def large_read_local(place: Place, watch: Watch) -> int:
    path = place.large_file
    read_file(path, place.buffer)
    place.forget_in_kernel()
    return _read_large(place, watch, path)


@row("read it from the kernel's cache", Unit.BYTES)
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


@row("read 4 KiB at random places, local cache", Unit.OPERATIONS)
def random_read_local(place: Place, watch: Watch) -> int:
    path = place.large_file
    read_file(path, place.buffer)
    place.forget_in_kernel()
    offsets = random_offsets(place.seed, place.scale.large_bytes, place.scale.pieces)
    with watch():
        found = read_pieces(path, offsets)
    compare(found, (place.large_content[offset : offset + SMALL_BYTES] for offset in offsets), path)
    return len(offsets)


@row("open it and read 4 KiB in the middle, nothing cached", Unit.OPERATIONS)
def middle_read_cold(place: Place, watch: Watch) -> int:
    path = place.large_file
    place.forget_everything()
    offset = middle(place.scale.large_bytes)
    with watch():
        found = read_pieces(path, [offset])
    compare(found, [place.large_content[offset : offset + SMALL_BYTES]], path)
    return 1


@row("append 4 KiB to a file of 1 MiB, and close", Unit.OPERATIONS)
def append(place: Place, watch: Watch) -> int:
    return _append(place, watch, "appended", large_content(f"{place.seed}, append", MIB))


@row("append 4 KiB to a large file, and close", Unit.OPERATIONS)
def append_large(place: Place, watch: Watch) -> int:
    # Not the large file's own: a content that two files share is copied before one of them changes.
    mark = b"appended to"
    return _append(place, watch, "appended-large", mark + place.large_content[len(mark) :])


def _append(place: Place, watch: Watch, name: str, first: bytes) -> int:
    """One after the other: where rows end in S3, each piece gets there before the next."""
    pieces = [bytes([65 + number % 26]) * SMALL_BYTES for number in range(place.scale.appends)]
    path = place.path(name)
    write_file(path, first)
    with watch():
        for piece in pieces:
            with path.open("ab", buffering=0) as file:
                file.write(piece)
            watch.stored([path])
    compare([path.read_bytes()], [first + b"".join(pieces)], path)
    return len(pieces)


# -- many small files ----------------------------------------------------------------------------------


@row("write small files", Unit.OPERATIONS)
def small_write(place: Place, watch: Watch) -> int:
    paths = place.new_small_files("small")
    place.keep_small_files(paths)
    contents = place.small_contents
    with watch(stores=paths):
        for path, content in zip(paths, contents, strict=True):
            write_file(path, content)
    return len(paths)


@row("write small files, 16 threads", Unit.OPERATIONS)
def small_write_threads(place: Place, watch: Watch) -> int:
    paths = place.new_small_files("small-threads")
    contents = [content[::-1] for content in place.small_contents]
    with watch(stores=paths):
        in_threads(lambda number: write_file(paths[number], contents[number]), range(len(paths)))
    return len(paths)


@row("read small files, nothing cached", Unit.OPERATIONS)
def small_read_cold(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _read_small(place, watch, paths, one_by_one)


@row("read small files, nothing cached, 16 threads", Unit.OPERATIONS)
def small_read_cold_threads(place: Place, watch: Watch) -> int:
    paths = place.small_files
    place.forget_everything()
    return _read_small(place, watch, paths, in_threads)


@row("read small files from the local cache", Unit.OPERATIONS)
def small_read_local(place: Place, watch: Watch) -> int:
    paths = place.small_files
    in_threads(read_small_file, paths)
    place.forget_in_kernel()
    return _read_small(place, watch, paths, one_by_one)


@row("read small files from the local cache, 16 threads", Unit.OPERATIONS)
def small_read_local_threads(place: Place, watch: Watch) -> int:
    paths = place.small_files
    in_threads(read_small_file, paths)
    place.forget_in_kernel()
    return _read_small(place, watch, paths, in_threads)


@row("read small files from the kernel's cache", Unit.OPERATIONS)
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
