"""Programs that people use, on a mount."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.fs.calls import pattern
from tests.mount.conftest import remount_cold
from tests.support.mounted import MountedVolume


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def make_tree(root: Path) -> None:
    """A little of everything."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "text").write_text("one\ntwo\nthree\n")
    (root / "a" / "large").write_bytes(pattern(600_000))
    (root / "a" / "empty").touch()
    (root / "a" / "b" / "name with\nnewline").write_bytes(b"x")
    (root / "a" / "link").symlink_to("text")
    os.link(root / "a" / "text", root / "a" / "b" / "hard")
    (root / "a" / "text").chmod(0o640)
    os.mkfifo(root / "a" / "fifo")
    os.utime(root / "a" / "text", ns=(10**18, 10**18 + 1))


def same(one: Path, two: Path) -> bool:
    comparison = filecmp.dircmp(one, two)
    pairs = [(one / name, two / name) for name in comparison.common_files]
    return (
        not (comparison.left_only or comparison.right_only)
        and all(a.read_bytes() == b.read_bytes() for a, b in pairs)
        and all(same(one / name, two / name) for name in comparison.common_dirs)
    )


def test_cp_and_mv(here: Path, tmp_path: Path) -> None:
    make_tree(here)
    run("cp", "-a", "a", tmp_path / "out", cwd=here)
    assert same(here / "a", tmp_path / "out")
    run("cp", "-a", tmp_path / "out", "back", cwd=here)
    assert same(here / "a", here / "back")
    assert (here / "back" / "text").stat().st_nlink == 2
    assert (here / "back" / "text").stat().st_mtime_ns == 10**18 + 1
    run("mv", "back", "moved", cwd=here)
    run("mv", "moved", tmp_path / "away", cwd=here)
    assert same(here / "a", tmp_path / "away")
    assert sorted(os.listdir(here)) == ["a"]
    run("rm", "-r", "a", cwd=here)
    assert os.listdir(here) == []


def test_tar(here: Path, tmp_path: Path) -> None:
    make_tree(here)
    run("tar", "-cf", "archive.tar", "a", cwd=here)
    run("tar", "-xf", here / "archive.tar", cwd=tmp_path)
    assert same(here / "a", tmp_path / "a")
    (here / "out").mkdir()
    run("tar", "-xf", "../archive.tar", cwd=here / "out")
    assert same(here / "a", here / "out" / "a")


def test_find_and_sed(here: Path) -> None:
    make_tree(here)
    assert run("find", ".", "-type", "f", "-name", "text", "-size", "-1k", cwd=here) == ""
    assert run("find", ".", "-type", "p", cwd=here) == "./a/fifo\n"
    assert run("find", ".", "-newermt", "2000-01-01", "-type", "l", cwd=here) == "./a/link\n"
    run("sed", "-i", "s/two/TWO/", "a/text", cwd=here)
    assert (here / "a" / "text").read_text() == "one\nTWO\nthree\n"
    assert (here / "a" / "b" / "hard").read_text() == "one\ntwo\nthree\n"  # sed -i makes a new file
    run("find", ".", "-delete", cwd=here)
    assert os.listdir(here) == []


def test_shell_redirections(here: Path) -> None:
    run("sh", "-c", "echo one > f && echo two >> f && cat f f > g && wc -l < g > n", cwd=here)
    assert (here / "n").read_text().strip() == "4"
    run("dd", "if=/dev/zero", "of=z", "bs=64k", "count=5", "conv=fsync", cwd=here)
    assert (here / "z").stat().st_size == 5 * 65_536


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git(here: Path) -> None:
    who = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        **{f"GIT_{role}_NAME": "A" for role in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")},
    }

    def git(*arguments: str) -> str:
        return run("git", "-c", "safe.directory=*", *arguments, cwd=here / "repo", **who)

    (here / "repo").mkdir()
    git("init", "-q", "-b", "main")
    make_tree(here / "repo")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    (here / "repo" / "a" / "text").write_text("changed\n")
    git("commit", "-q", "-a", "-m", "second")
    git("branch", "other", "HEAD~")
    git("gc", "-q")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    git("checkout", "-q", "other")
    assert (here / "repo" / "a" / "text").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite(volume: MountedVolume, here: Path, journal: str) -> None:
    path = here / "db"
    with closing(sqlite3.connect(path, timeout=30)) as db:
        assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        for number in range(5):
            with db:
                db.executemany(
                    "INSERT INTO t VALUES (?, ?)",
                    [(number * 200 + i, pattern(500, i + 1)) for i in range(200)],
                )
        with db:
            db.execute("DELETE FROM t WHERE a % 3 = 0")
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    volume.remount()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM t").fetchone() == (666,)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_of_several_connections(here: Path, journal: str) -> None:
    path = here / "db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute("CREATE TABLE t (a)")

    def insert(number: int) -> None:
        with closing(sqlite3.connect(path, timeout=60)) as db:
            db.execute("PRAGMA synchronous = OFF")
            for _ in range(5):
                with db:
                    db.execute("INSERT INTO t VALUES (?)", (number,))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(insert, range(4)))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT a, count(*) FROM t GROUP BY a").fetchall() == [(n, 5) for n in range(4)]


def test_many_threads(any_volume: MountedVolume, any_here: Path) -> None:
    """What 16 threads wrote at the same time is what S3 has: read after a remount with an empty cache."""
    digests: dict[Path, str] = {}
    lock = threading.Lock()

    def work(worker: int) -> None:
        directory = any_here / f"t{worker}"
        directory.mkdir()
        for number in range(8):
            path = directory / f"f{number}"
            size = (1, 100, 5000, 70_000, 300_001)[(worker + number) % 5]
            data = pattern(size, worker * 10 + number + 1)
            path.write_bytes(data)
            assert path.read_bytes() == data
            if number % 4 == 1:
                with path.open("r+b") as file:
                    file.seek(size // 2)
                    file.write(b"changed")
                data = data[: size // 2] + b"changed" + data[size // 2 + 7 :]
            if number % 4 == 2:
                path = path.rename(directory / f"renamed{number}")
            if number % 4 == 3:
                path.unlink()
                continue
            with lock:
                digests[path] = hashlib.sha256(data).hexdigest()

    def read(path: Path) -> None:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[path], path

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    remount_cold(any_volume)
    assert sum(len(files) for _, _, files in os.walk(any_here)) == len(digests)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, digests))


def test_threads_on_one_file(here: Path) -> None:
    path = here / "f"
    path.touch()
    count, size = 16, 40_000

    def write(worker: int) -> None:
        with path.open("r+b") as file:
            file.seek(worker * size)
            file.write(bytes([worker]) * size)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(write, range(count)))
    data = path.read_bytes()
    assert data == b"".join(bytes([worker]) * size for worker in range(count))
