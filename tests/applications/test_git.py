"""git, with as many files as a project of some years has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.applications.trees import FULL_SIZE, make_tree, run, seen

FILES = 5_000 if FULL_SIZE else 500
WHO = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{f"GIT_{role}_NAME": "A" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")},
}


@pytest.mark.timeout(900)
def test_a_repository_of_many_files(here: Path) -> None:
    repository = here / "repository"

    def git(*arguments: str | Path) -> str:
        return run("git", "-c", "safe.directory=*", *arguments, cwd=repository, timeout=600, **WHO)

    repository.mkdir()
    git("init", "-q", "-b", "main")
    make_tree(repository / "src", FILES)
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    assert git("status", "--porcelain") == ""
    (repository / "src" / "d0" / "d0" / "file1").write_text("changed\n")
    git("commit", "-q", "-a", "-m", "second")
    git("gc", "-q")
    git("fsck", "--strict")
    git("clone", "-q", "--no-hardlinks", repository, here / "clone")
    cloned, original = seen(here / "clone" / "src"), seen(repository / "src")
    assert {path: each[-1] for path, each in cloned.items()} == {
        path: each[-1] for path, each in original.items()
    }
    git("checkout", "-q", "HEAD~")
    assert (repository / "src" / "d0" / "d0" / "file1").read_bytes() != b"changed\n"
    git("checkout", "-q", "main")
    assert git("status", "--porcelain") == ""
