"""The demo: an S3 server of its own, a volume in it, and a mount, all below one directory."""
