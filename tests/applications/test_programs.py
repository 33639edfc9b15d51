"""Programs that build, serve, log and edit."""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import botocore
import pytest

from tests.applications.trees import FULL_SIZE, make_tree, run, seen

SOURCES = 40


@pytest.mark.timeout(300)
def test_a_build_in_parallel(here: Path) -> None:
    for number in range(SOURCES):
        (here / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number}; }}\n")
    declared = "".join(f"int part{number}(void);\n" for number in range(SOURCES))
    summed = " + ".join(f"part{number}()" for number in range(SOURCES))
    (here / "main.c").write_text(
        f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {summed}); return 0; }}\n'
    )
    objects = " ".join(["main.o", *(f"part{number}.o" for number in range(SOURCES))])
    (here / "Makefile").write_text(f"program: {objects}\n\tcc -o $@ $^\n")
    run("make", "-j", "8", cwd=here)
    assert run(here / "program", cwd=here) == f"{sum(range(SOURCES))}\n"
    assert "up to date" in run("make", "-j", "8", cwd=here)
    (here / "part7.c").write_text("int part7(void) { return 1007; }\n")
    run("make", "-j", "8", cwd=here)
    assert run(here / "program", cwd=here) == f"{sum(range(SOURCES)) + 1000}\n"


@pytest.mark.timeout(900)
def test_a_virtual_environment_with_a_large_package(here: Path) -> None:
    """Of what the project itself needs: botocore has thousands of files, boto3 some dozens."""
    package = botocore if FULL_SIZE else boto3
    name = package.__name__
    run(sys.executable, "-m", "venv", here / "venv", cwd=here, timeout=600)
    python = here / "venv" / "bin" / "python"
    wanted = f"{name}=={package.__version__}"
    quietly = ("--quiet", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *quietly, "--no-deps", wanted, cwd=here, timeout=600)
    told = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
    assert run(python, "-I", "-c", told, cwd=here).startswith(str(here / "venv"))
    assert f"Version: {package.__version__}\n" in run(python, "-m", "pip", "show", name, cwd=here)


def test_an_editor_saves_by_renaming(here: Path) -> None:
    """Who reads meanwhile sees one of the versions, whole."""
    path = here / "document"
    versions = [f"version {number}\n".encode() * 1000 for number in range(30)]
    path.write_bytes(versions[0])
    stop = threading.Event()
    unexpected: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            content = path.read_bytes()
            if content not in versions:
                unexpected.append(content[:100])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in versions[1:]:
            with tempfile.NamedTemporaryFile(dir=here, delete=False) as file:
                file.write(version)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(path)
            directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(directory)
            os.close(directory)
    finally:
        stop.set()
        reader.join()
    assert unexpected == []
    assert path.read_bytes() == versions[-1]
    assert os.listdir(here) == ["document"]


def test_logs_are_rotated(here: Path) -> None:
    """Several writers append while the file is renamed away under them; no line is lost or torn."""
    log = here / "log"
    writers, lines, rotations = 3, 60, 5
    barrier = threading.Barrier(writers + 1)

    def write(writer: int) -> None:
        for part in range(rotations):
            with log.open("ab", buffering=0) as file:
                for line in range(lines):
                    file.write(b"%d %d %d\n" % (writer, part, line))
                    if line == lines // 2:
                        barrier.wait(60)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for rotation in range(rotations):
        barrier.wait(60)
        log.rename(here / f"log.{rotation}")
        log.touch()
    for thread in threads:
        thread.join()
    found = [line for path in here.iterdir() for line in path.read_bytes().splitlines()]
    expected = {
        b"%d %d %d" % (writer, part, line)
        for writer in range(writers)
        for part in range(rotations)
        for line in range(lines)
    }
    assert len(found) == len(expected)
    assert set(found) == expected


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(directory: Path) -> Iterator[tuple[str, int]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_web_server(here: Path) -> None:
    make_tree(here / "site", 300)
    names = [str(path.relative_to(here)) for path in (here / "site").rglob("file*")]
    random.Random(1).shuffle(names)

    def get(name: str) -> bytes:
        connection = http.client.HTTPConnection(address[0], address[1], timeout=60)
        connection.request("GET", f"/{name}")
        with connection.getresponse() as answer:
            assert answer.status == 200
            body = answer.read()
        connection.close()
        return body

    with served(here) as address, ThreadPoolExecutor(8) as pool:
        for name, body in zip(names, pool.map(get, names), strict=True):
            assert body == (here / name).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount an overlay")
def test_the_lower_directory_of_an_overlay(here: Path, tmp_path: Path) -> None:
    """As a container's image over a mount: what is changed goes to the upper directory, and ours stays."""
    make_tree(here / "image", 200)
    before = seen(here / "image")
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    merged = tmp_path / "merged"
    options = f"lowerdir={here / 'image'},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", options, merged, cwd=here)
    try:
        assert {path: each[-1] for path, each in seen(merged).items()} == {
            path: each[-1] for path, each in before.items()
        }
        (merged / "d0" / "d0" / "file1").write_bytes(b"changed")
        (merged / "d0" / "d0" / "file2").unlink()
        (merged / "new").write_bytes(b"new")
        assert (merged / "d0" / "d0" / "file1").read_bytes() == b"changed"
        assert not (merged / "d0" / "d0" / "file2").exists()
        subprocess.run(["rm", "-r", merged / "d0" / "d1"], check=True)
        assert not (merged / "d0" / "d1").exists()
    finally:
        run("umount", merged, cwd=here)
    assert seen(here / "image") == before
