"""POSIX semantics, free of FUSE, S3 and SQL."""
