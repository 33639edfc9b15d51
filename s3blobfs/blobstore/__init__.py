"""Immutable blobs over objects: how they are keyed, stored, copied and deleted."""
