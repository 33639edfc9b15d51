"""Fixtures of the tests of local trouble."""

from __future__ import annotations

from tests.tier.conftest import make_tier, tracer

__all__ = ["make_tier", "tracer"]
