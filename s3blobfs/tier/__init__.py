"""The local tier: staged files, the cache of whole immutable files, and fetching into it."""
