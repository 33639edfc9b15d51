"""Tests of the object client."""
