"""Every damage that the check finds is mended as far as it can be, and the index is well afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from s3blobfs.index.check import Problem
from s3blobfs.index.repair import LIVE_KINDS, ORDER
from s3blobfs.maintenance.fsck import FsckReport, Outcome, fsck
from s3blobfs.s3.fake import FakeS3
from tests.index import test_check, volume
from tests.index.test_check import DAMAGES
from tests.maintenance.kit import damage, open_target

LEFT: dict[str, str] = {
    # What no repair can bring back: the file keeps its size and cannot be read.
    "DELETE FROM blobs WHERE id = 1": "missing-content",
    "UPDATE inodes SET blob_id = NULL WHERE id = 4": "missing-content",
    "DELETE FROM uploads": "missing-content",
    "UPDATE blobs SET state = 'deleting', refs = 0, unreferenced_ns = 1 WHERE id = 1": "missing-content",
    "UPDATE uploads SET staged_name = 's2'": "missing-staged-file",
    # The content that was journalled is in lost+found; the file that it was of has none.
    "UPDATE uploads SET inode_id = 99": "missing-content",
    "UPDATE uploads SET inode_id = 2": "missing-content",
    "UPDATE inodes SET target = NULL WHERE id = 7": "size",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One index, made once: each test damages a copy."""
    path = tmp_path_factory.mktemp("template") / "index.db"

    async def make() -> None:
        database = volume.make(path)
        await database.write(volume.fill)
        await database.write(test_check._populate)
        await database.aclose()

    trio.run(make)
    return path


@pytest.fixture
def index(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copy(template, tmp_path))


async def run(
    index: Path, monkeypatch: pytest.MonkeyPatch, *, repair: bool, mounted: bool = False
) -> tuple[FsckReport, list[Problem]]:
    """The report, and what a check finds afterwards."""
    server = FakeS3()
    await server.client("bucket").create_bucket()
    async with open_target(index, index.parent / "tier", server, mounted=mounted) as target:
        monkeypatch.setattr(target.tier.staging, "names", lambda: {"s1"})
        report = await fsck(target, repair=repair)
        return report, await target.db.check({"s1"})


@pytest.mark.parametrize(("kind", "sql"), DAMAGES)
async def test_damage_is_mended(index: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sql: str) -> None:
    damage(index, sql)
    report, problems = await run(index, monkeypatch, repair=True)
    assert {problem.kind for problem in problems} == {LEFT[sql]} if sql in LEFT else problems == []
    assert report.count(Outcome.LEFT) == len(problems)
    assert report.count(Outcome.FOUND) == 0
    assert all(finding.note for finding in report.findings)
    assert report.count(Outcome.MENDED) or sql in LEFT


@pytest.mark.parametrize(("kind", "sql"), DAMAGES)
async def test_without_repair_nothing_changes(
    index: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sql: str
) -> None:
    damage(index, sql)
    report, problems = await run(index, monkeypatch, repair=False)
    assert [finding.problem for finding in report.findings] == problems
    assert kind in {problem.kind for problem in problems}
    assert {finding.outcome for finding in report.findings} == {Outcome.FOUND}


@pytest.mark.parametrize(("kind", "sql"), DAMAGES)
async def test_what_is_mended_while_mounted(
    index: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sql: str
) -> None:
    damage(index, sql)
    report, problems = await run(index, monkeypatch, repair=True, mounted=True)
    if kind != "deleting-blob":  # its references are counted once it is mended
        assert not LIVE_KINDS & {problem.kind for problem in problems}
    for finding in report.findings:
        if finding.outcome is Outcome.LEFT and finding.problem.kind not in LIVE_KINDS:
            assert "unmount" in finding.note
        if finding.outcome is Outcome.MENDED:
            assert finding.problem.kind in LIVE_KINDS


async def test_a_sound_index_has_nothing_to_mend(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = index.read_bytes()
    report, problems = await run(index, monkeypatch, repair=True)
    assert report.findings == []
    assert problems == []
    assert index.read_bytes() == before


def test_every_kind_has_a_mending() -> None:
    assert {kind for kind, _ in DAMAGES} == set(ORDER)
