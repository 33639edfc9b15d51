"""A tier directory is one volume's."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3blobfs.errors import UsageError, VolumeMismatch
from s3blobfs.volume.tier_mark import MARK, claim_tier


def test_a_new_directory_is_taken_and_found_again(tmp_path: Path) -> None:
    claim_tier(tmp_path, "a" * 32, 0)
    assert (tmp_path / MARK).stat().st_mode & 0o777 == 0o600
    claim_tier(tmp_path, "a" * 32, 5)


def test_another_volumes_directory_is_refused(tmp_path: Path) -> None:
    claim_tier(tmp_path, "a" * 32, 0)
    with pytest.raises(VolumeMismatch, match="--cache-dir"):
        claim_tier(tmp_path, "b" * 32, 0)


def test_staged_files_that_cannot_be_here_are_missed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 files are staged"):
        claim_tier(tmp_path, "a" * 32, 3)
    assert not (tmp_path / MARK).exists()


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot use the cache directory"):
        claim_tier(tmp_path / "missing", "a" * 32, 0)
