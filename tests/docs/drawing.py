"""Diagrams for docs/architecture.md, drawn by the tracer while a filesystem does what they show."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from s3blobfs.trace import Local
from s3blobfs.types import Keying
from tests.diagrams.normalise import normalised
from tests.support.rig import ROOT, USER, Rig, Setup, add_store, open_rig

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
HEADER_LINES = 5
"""@startuml and the participants."""

BEGIN, END = "<!-- diagrams -->", "<!-- /diagrams -->"


@dataclass(frozen=True)
class Story:
    """One operation: what is there before, what is drawn, and what the text says of it."""

    title: str
    text: str
    keying: Keying
    cached: bool
    prepare: Callable[[Rig], Awaitable[None]]
    perform: Callable[[Rig], Awaitable[None]]


async def nothing(rig: Rig) -> None:
    """An empty volume."""


async def one_file(rig: Rig) -> None:
    await rig.write_file(b"file", b"foo")


async def two_stores(rig: Rig) -> None:
    await one_file(rig)
    other = await add_store(rig, "other", "other/")
    directory = await rig.fs.mkdir(ROOT, b"other", 0o755, USER)
    await rig.fs.bind_store(directory.inode_id, other.config.id)


async def create(rig: Rig) -> None:
    opened, _ = await rig.fs.create(ROOT, b"new", 0o644, os.O_WRONLY, USER)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


async def write(rig: Rig) -> None:
    await rig.write_file(b"file", b"foo")


async def read(rig: Rig) -> None:
    assert await rig.read_file(b"file") == b"foo"


async def copy_within(rig: Rig) -> None:
    source = await rig.fs.lookup(ROOT, b"file")
    assert source is not None
    await rig.fs.copy_file(source.inode_id, ROOT, b"copy", replace=False, caller=USER)


async def copy_across(rig: Rig) -> None:
    source, directory = await rig.fs.lookup(ROOT, b"file"), await rig.fs.lookup(ROOT, b"other")
    assert source is not None and directory is not None
    await rig.fs.copy_file(source.inode_id, directory.inode_id, b"copy", replace=False, caller=USER)


async def unlink(rig: Rig) -> None:
    await rig.fs.unlink(ROOT, b"file")
    await rig.reaper.drain()


VERSIONED, DIGEST = Keying.VERSIONED, Keying.DIGEST
STORIES = (
    Story(
        "Create",
        "A new file is an inode and a dentry, in one transaction. An empty file has no object.",
        VERSIONED,
        True,
        nothing,
        create,
    ),
    Story(
        "Write and close, versioned",
        "The bytes gather in a temporary. Closing seals it, journals the upload, PUTs the object,"
        " commits, and renames the staged file into the cache under the name that S3 gave the version.",
        VERSIONED,
        True,
        nothing,
        write,
    ),
    Story(
        "Write and close, digest, uncached",
        "The key is the digest of the content. HEAD asks whether the object is there already; the"
        " temporary is removed when it is.",
        DIGEST,
        False,
        nothing,
        write,
    ),
    Story("Read, cached", "From the whole file in the cache: no request.", VERSIONED, True, one_file, read),
    Story(
        "Read, uncached",
        "One GET for a small file, parallel ranged GETs ahead of the reader for a large one.",
        DIGEST,
        False,
        one_file,
        read,
    ),
    Story(
        "Copy within a store",
        "Both inodes refer to the same blob: no request, whatever the size.",
        DIGEST,
        True,
        one_file,
        copy_within,
    ),
    Story(
        "Copy into another store",
        "S3 copies the object. The cached file gets a second name, the one that S3 returned.",
        VERSIONED,
        True,
        two_stores,
        copy_across,
    ),
    Story(
        "Unlink, versioned",
        "The transaction marks the blob; the reaper deletes exactly that version behind it, many files with"
        " one request, and then forgets the row.",
        VERSIONED,
        True,
        one_file,
        unlink,
    ),
)


def drawn_document(document: str) -> str:
    """``document`` with its diagrams drawn anew."""
    drawn = "\n\n".join(map(_section, STORIES))
    pattern = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n\n{drawn}\n\n{END}", document)


def _section(story: Story) -> str:
    lines = trio.run(_draw, story)
    return f"### {story.title}\n\n{story.text}\n\n```plantuml\n" + "\n".join(lines) + "\n```"


async def _draw(story: Story) -> list[str]:
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        setup = Setup(Path(directory) / "volume", keying=story.keying, cached=story.cached)
        async with open_rig(setup) as rig:
            # Drawn from the beginning, so that names keep their numbers, and cut where the story begins.
            rig.tracer.start_steps(lines.append, Local.of(story.cached), with_index=True)
            await story.prepare(rig)
            begin = len(lines)
            await story.perform(rig)
            end = len(lines)
            rig.tracer.stop_steps()
    named = normalised("\n".join(lines))
    return [*named[:HEADER_LINES], *named[max(begin, HEADER_LINES) : end], "@enduml"]
