"""Every statement of ``docs/semantics.md`` names a test, and the test exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "semantics.md"
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row of every table, less the heads and the lines below them."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    tables = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [cells for cells in tables if cells != ["statement", "test"] and not cells[0].startswith("---")]


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_there_are_statements() -> None:
    assert len(rows()) > 40
    assert all(len(cells) == 2 for cells in rows())


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0][:50])
def test_a_statement_is_shown_by_a_test(cells: list[str]) -> None:
    statement, shown_by = cells
    assert statement.endswith(".")
    match = NODE.fullmatch(shown_by)
    assert match is not None, f"no test is named: {shown_by}"
    path, name = match.groups()
    assert name.startswith("test_")
    assert name in functions_of(path), f"{path} has no {name}"


def test_no_statement_is_made_twice() -> None:
    statements = [cells[0] for cells in rows()]
    assert len(set(statements)) == len(statements)
