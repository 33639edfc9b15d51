"""The ledger of ``scripts/torture`` notices what it is there to notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from torturelib.ledger import By, Ledger, Loss, content_of
from torturelib.load import contents_between


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path, "s3")
    with ledger.change("f", content_of(b"old"), By.CLOSE):
        (tmp_path / "f").write_bytes(b"old")
    return ledger


def begin(ledger: Ledger, data: bytes) -> None:
    """A change that is not acknowledged."""
    with pytest.raises(OSError, match="died"), ledger.change("f", content_of(data), By.FSYNC):
        raise OSError("died")


@pytest.mark.parametrize("data", [b"old", b"new"])
def test_either_content_of_an_unfinished_change_will_do(ledger: Ledger, data: bytes) -> None:
    begin(ledger, b"new")
    (ledger.root / "f").write_bytes(data)
    ledger.compare()
    assert ledger.losses == []
    (ledger.root / "f").write_bytes(b"new" if data == b"old" else b"old")
    ledger.compare()
    assert len(ledger.losses) == 1, "what was found once is there to stay"


@pytest.mark.parametrize("data", [b"", b"ol", b"olx"])
def test_anything_else_is_a_loss(ledger: Ledger, data: bytes) -> None:
    begin(ledger, b"new")
    (ledger.root / "f").write_bytes(data)
    ledger.compare()
    assert len(ledger.losses) == 1


def test_a_content_that_is_under_neither_name_is_a_loss(ledger: Ledger) -> None:
    with pytest.raises(OSError, match="died"), ledger.rename("f", "g"):
        raise OSError("died")
    (ledger.root / "f").rename(ledger.root / "g")
    ledger.compare()
    assert ledger.losses == []
    with pytest.raises(OSError, match="died"), ledger.rename("g", "h"):
        raise OSError("died")
    (ledger.root / "g").unlink()
    ledger.compare()
    assert ledger.losses == [Loss((By.CLOSE, "s3"), "g: lost in its rename to h")]


def test_a_loss_names_the_promise_that_was_broken(ledger: Ledger) -> None:
    with ledger.change("f", content_of(b"new"), By.FSYNC):
        pass
    assert ledger.acknowledged == {(By.CLOSE, "s3"): 1, (By.FSYNC, "s3"): 1}
    ledger.compare()
    assert [loss.promise for loss in ledger.losses] == [(By.FSYNC, "s3")]


def test_what_a_file_holds_between_the_requests_of_its_writes() -> None:
    """Of 200,000, 704, 199,296, 1,408, ... bytes."""
    old, new = b"o" * 450_000, b"n" * 450_000
    between = set(contents_between(b"", new, 0, len(new)))
    assert between == {content_of(new[:end]) for end in (0, 200_000, 200_704, 400_000, 401_408)}
    between = set(contents_between(old, old[:10] + new[:5000] + old[5010:], 10, 5010))
    assert between == {content_of(old), content_of(old[:10] + new[10:4096] + old[4096:])}
    between = set(contents_between(old, old + new[:100], len(old), len(old) + 100))
    assert between == {content_of(old)}
