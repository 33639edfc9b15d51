"""The way to talk to a mounted volume: a unix socket beside its index."""
