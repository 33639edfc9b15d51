"""The commands of ``docs/operations.md``, in the order in which they stand there, on a volume in use."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3blobfs.cli.main import run
from s3blobfs.maintenance.gc_report import Kept, Kind
from tests.app.commands import CommandLine, command_line
from tests.conftest import UseServer, unique_bucket_name
from tests.support.servers import S3Server

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
IN_PROCESSES_OF_THEIR_OWN = ("mount", "umount")


def commands() -> list[list[str]]:
    """Every command in a block, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for line in "".join(blocks).splitlines() if line]


@pytest.fixture
def volume(tmp_path: Path, weed_server: S3Server, use_server: UseServer) -> Iterator[CommandLine]:
    server = use_server(weed_server)
    with command_line(tmp_path / "v", server, f"s3://{unique_bucket_name()}") as made:
        made.mkfs("--create-bucket")
        made.mount()
        (made.mountpoint / "file").write_bytes(b"content")
        yield made


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_every_command_works_as_written(volume: CommandLine) -> None:
    assert len(commands()) > 10
    for program, name, *words in commands():
        assert program == "s3blobfs"
        arguments: list[str] = []
        for word in words:
            replaced = {"/mnt/files": [str(volume.mountpoint)], "s3://my-bucket": [volume.uri, *volume.s3]}
            arguments += replaced.get(word, [word])
        if name in IN_PROCESSES_OF_THEIR_OWN:
            volume.ok(name, *arguments)
        else:
            assert run([name, *arguments]) == 0, (name, words)
    assert (volume.mountpoint / "file").read_bytes() == b"content"


def test_every_kind_of_leftover_is_explained() -> None:
    text = PAGE.read_text()
    assert all(f"`{kind.value}`" in text for kind in Kind)
    assert f"`{Kept.FOREIGN.value}`" in text
