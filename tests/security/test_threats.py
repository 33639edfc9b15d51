"""Each threat of ``docs/security.md`` names the tests that hold it, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "security.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| threat")
]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_there_are_threats() -> None:
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_is_held_by_tests_that_exist(row: str) -> None:
    _, _, _, tests, _ = re.split(r"(?<!\\)\|", row)
    named = NAMED.findall(tests)
    assert named, row
    assert len(named) == tests.count("::")
    for path, name in named:
        module = ast.parse((ROOT / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert any(isinstance(each, functions) and each.name == name for each in module.body), (
            f"{path}::{name}"
        )
