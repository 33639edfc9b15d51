"""Fixtures of the tests against attackers."""

from __future__ import annotations

from tests.replica.conftest import autojump_clock, make_site

__all__ = ["autojump_clock", "make_site"]
