"""Tools that read and write whole trees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications.trees import FULL_SIZE, make_tree, run, seen

FILES = 2_000 if FULL_SIZE else 300
MANY_FILES = 10_000 if FULL_SIZE else 1_000


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree on the machine's own filesystem, with a little of everything."""
    root = tmp_path_factory.mktemp("outside") / "tree"
    make_tree(root, FILES)
    (root / "link").symlink_to("d0/d0/file0")
    os.link(root / "d0" / "d0" / "file1", root / "hard")
    os.mkfifo(root / "fifo")
    (root / "empty").mkdir(mode=0o700)
    os.setxattr(root / "d0", "user.note", b"kept")
    # Long ago: rsync leaves a time alone that differs in fractions of a second only.
    for path in (root, *root.rglob("*")):
        os.utime(path, ns=(10**18, 10**18 + 1), follow_symlinks=False)
    return root


def test_tar_in_and_out(here: Path, outside: Path, tmp_path: Path) -> None:
    run("tar", "--format=posix", "-cf", tmp_path / "in.tar", "tree", cwd=outside.parent)
    run("tar", "-xpf", tmp_path / "in.tar", cwd=here)
    assert seen(here / "tree") == seen(outside)
    run("tar", "--format=posix", "-cf", here / "out.tar", "tree", cwd=here)
    run("tar", "-xpf", here / "out.tar", cwd=tmp_path)
    assert seen(tmp_path / "tree") == seen(outside)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_twice(here: Path, outside: Path) -> None:
    def synchronise() -> str:
        return run("rsync", "-aHAX", "--itemize-changes", f"{outside}/", here / "copy", cwd=here)

    assert synchronise().count("\n") > FILES
    assert seen(here / "copy") == seen(outside)
    assert os.getxattr(here / "copy" / "d0", "user.note") == b"kept"
    assert synchronise() == ""


@pytest.fixture
def without_files(here: Path) -> Iterator[Path]:
    """What a test does with very many files ends with their removal, so that none are compared again."""
    yield here
    assert os.listdir(here) == []


@pytest.mark.timeout(600)
def test_many_files_are_copied_moved_looked_at_and_removed(without_files: Path, tmp_path: Path) -> None:
    here = without_files
    make_tree(tmp_path / "tree", MANY_FILES)
    run("cp", "-a", tmp_path / "tree", "copied", cwd=here, timeout=500)
    run("mv", "copied", "moved", cwd=here)
    assert seen(here / "moved") == seen(tmp_path / "tree")
    assert len(run("find", "moved", "-type", "f", cwd=here).splitlines()) == MANY_FILES
    assert run("find", "moved", "-name", "file77", cwd=here) == "moved/d0/d0/file77\n"
    in_bytes = ("du", "--apparent-size", "--block-size=1", "--summarize")
    of_files = sum(path.stat().st_size for path in (tmp_path / "tree").rglob("file*"))
    assert 0 <= int(run(*in_bytes, "moved", cwd=here).split()[0]) - of_files < of_files / 10
    before = int(run("df", "--output=iused", ".", cwd=here).split()[1])
    run("rm", "-r", "moved", cwd=here, timeout=500)
    after = int(run("df", "--output=iused", ".", cwd=here).split()[1])
    directories = MANY_FILES // 100 + MANY_FILES // 1000
    assert before - after == MANY_FILES + directories + 1
